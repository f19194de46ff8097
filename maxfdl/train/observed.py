"""Metrics of a step: norms, packing and sinks."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from maxfdl.layers.parameter import Parameter, Role
from maxfdl.layers.sinks import HeadScores, Last, Max, Mean, RouterLoad, Sinks
from maxfdl.ops import balance
from maxfdl.ops.mask import Places
from maxfdl.sharding.memory import is_on_host, on_device
from maxfdl.train.auxiliary import router_loads
from maxfdl.train.loss import Term

Metrics = dict[str, jax.Array]


def norms(name: str, tree: Any, parameters: dict) -> Metrics:
    """Returns the L2 norm of a tree like the parameters, in all and of each role."""
    squares: dict[Role, jax.Array] = {}
    declared, leaves = jax.tree.leaves(parameters), jax.tree.leaves(tree)
    for parameter, leaf in zip(declared, leaves, strict=True):
        so_far = squares.get(parameter.role, jnp.zeros(()))
        squares[parameter.role] = so_far + _square(parameter, leaf)
    of_roles = {f"{name}/{role}": jnp.sqrt(part) for role, part in squares.items()}
    return {name: jnp.sqrt(sum(squares.values()))} | of_roles


def norm(tree: Any, parameters: dict) -> jax.Array:
    """Returns the L2 norm of a tree like the parameters."""
    return norms("", tree, parameters)[""]


def _square(parameter: Parameter, x: jax.Array) -> jax.Array:
    """Returns the squared L2 norm; stacks on the host are fetched layer by layer."""
    if parameter.repeats is None or not is_on_host(x):
        return _summed(on_device(x))

    def add(i: jax.Array, total: jax.Array) -> jax.Array:
        return total + _summed(on_device(lax.dynamic_slice_in_dim(x, i, 1, 0)))

    return lax.fori_loop(0, x.shape[0], add, jnp.zeros(()))


def _summed(x: jax.Array) -> jax.Array:
    """Returns the sum of squares, in float32 at least."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return optax.tree.norm(x.astype(wide), squared=True)


def packing(batch: Mapping[str, jax.Array]) -> Metrics:
    """Returns how full the rows of a batch are.

    `packed` is the share of places that are not padding, `documents_per_row` the mean
    number of documents, or pieces of them, in a row.
    """
    real = balance.counted(Places(batch["positions"], batch["segment_ids"]))
    begins = real & (batch["positions"] == 0)
    return {
        "packed": jnp.mean(real, dtype=jnp.float32),
        "documents_per_row": jnp.sum(begins, dtype=jnp.float32) / real.shape[0],
    }


def of_sinks(sinks: Sinks) -> Metrics:
    """Returns the metrics of the sinks of all layers.

    `expert_load` is the largest ratio, in any layer, of tokens of an expert to the mean
    of the layer's experts: 1 is even; `expert_load_least` is the smallest. `dropped`
    counts tokens dropped by experts at capacity, `max_logit` is the highest attention
    score before the softmax. Any other sink is one number under its name, merged over
    layers by its kind; of `Last`, it is the mean.
    """
    ratios = []
    for load in router_loads(sinks).values():
        counts = load.counts.value.astype(jnp.float32)
        mean = jnp.mean(counts, axis=-1, keepdims=True)
        ratios.append((counts / jnp.where(mean > 0, mean, 1.0)).reshape(-1))
    metrics = {}
    if ratios:
        ratio = jnp.concatenate(ratios)
        metrics |= {
            "expert_load": jnp.max(ratio),
            "expert_load_least": jnp.min(ratio),
        }
    return metrics | _together(sinks)


def _together(sinks: Sinks) -> Metrics:
    """Returns one number for each name, merged over all layers with such a sink."""
    by_name: dict[str, list[Any]] = {}
    for (_, name), sink in sinks.items():
        if isinstance(sink, HeadScores):
            name, sink = "max_logit", sink.highest
        if not isinstance(sink, RouterLoad):
            by_name.setdefault(name, []).append(jax.tree.map(jnp.ravel, sink))
    return {
        name: _number(jax.tree.map(lambda *parts: jnp.concatenate(parts), *parts))
        for name, parts in by_name.items()
    }


def _number(sink: Any) -> jax.Array:
    """Returns the value of a sink whose one dim counts parts."""
    match sink:
        case Mean():
            return Term(jnp.sum(sink.sum), jnp.sum(sink.weight)).mean
        case Max():
            return jnp.max(sink.value)
        case Last():
            return jnp.mean(sink.value)
    return jnp.sum(sink.value)
