"""QK-clip: scales down query and key weights of heads whose scores are too high.

Letters: L layers of a stack, H heads, K width of a query or key.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from maxfdl.errors import UserError
from maxfdl.layers.parameter import Parameter
from maxfdl.layers.sinks import HeadScores
from maxfdl.sharding.memory import beside, on_device
from maxfdl.train.nested import part_at, with_part
from maxfdl.train.updates import Step, Update, Variables

_HEADS = ("heads", "kv_heads")


@dataclasses.dataclass(frozen=True)
class QkClip(Update):
    """Scales down query and key weights of heads whose highest score S > threshold.

    The scores of such a head are multiplied by `threshold / S`: the query and the key
    by its square root each. Where heads share a key (grouped queries, the rotary part
    of latent attention), the query is multiplied by the whole factor and the key stays,
    so that heads below the threshold keep every bit. Kimi K2,
    https://arxiv.org/abs/2507.20534, algorithm 1, which is about latent attention.

    Args:
      threshold: 100 in Kimi K2.
    """

    name = "qk_clip"
    rank = 1
    threshold: float = 100.0

    @staticmethod
    def check_config(node):
        if node.threshold <= 0:
            yield f"QkClip threshold ({node.threshold}) must be positive."

    @staticmethod
    def check_in(node, root):
        if not any(getattr(each, "watch", None) for each in root.model.below()):
            yield (
                "QkClip needs the highest scores of attention, and no attention of this"
                " model leaves them as a sink: apply use_muonclip, which sets their"
                " watch."
            )

    def check(self, parameters: dict) -> None:
        for declared in _of_attention(parameters):
            clips = _clips(declared)
            scaled = jax.tree.leaves([declared[name] for name in clips])
            if not all(parameter.trained for parameter in scaled):
                raise UserError(
                    f"QkClip scales {' and '.join(clips)} of attention, of which"
                    " parameters are frozen: unfreeze them, or apply use_muon."
                )

    def __call__(
        self, variables: Variables, memory: Any, step: Step
    ) -> tuple[Variables, Any]:
        params = variables["params"]
        found = {k: x for k, x in step.sinks.items() if isinstance(x, HeadScores)}
        assert found, "check_in asks for attention with a watch"
        for key, scores in found.items():
            highest = jnp.where(step.accepted, scores.highest.value, 0.0)
            factors = jnp.where(highest > self.threshold, self.threshold / highest, 1.0)
            attention, declared = (
                part_at(tree, key.layer) for tree in (params, step.parameters)
            )
            clipped = _clipped(attention, declared, factors, scores.shared)
            params = with_part(params, key.layer, clipped)
        return variables | {"params": params}, memory


def _clipped(
    params: Any, parameters: Any, factors: jax.Array, shared: int
) -> dict[str, Any]:
    """Returns the parameters of a layer of attention with clipped queries and keys.

    Args:
      params: Those of the layer.
      parameters: Their declarations.
      factors: [L?, H] of scores.
      shared: How many of the last features of a query meet a key that heads share.
    """
    clips_key = "key" in _clips(parameters)
    roots = jnp.sqrt(factors)
    own = roots if clips_key else factors
    width = _width(parameters["query"])
    per_feature = jnp.concatenate(
        [
            jnp.repeat(own[..., None], width - shared, axis=-1),
            jnp.repeat(factors[..., None], shared, axis=-1),
        ],
        axis=-1,
    )
    query = _scaled(params["query"], parameters["query"], per_feature)
    clipped = {**params, "query": query}
    if clips_key:
        clipped["key"] = _scaled(params["key"], parameters["key"], roots[..., None])
    return clipped


def _of_attention(declared: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yields the declarations of each layer that has queries and keys by head."""
    if {"query", "key"} <= declared.keys() and _of_heads(declared["key"]):
        yield declared
    for below in declared.values():
        if isinstance(below, Mapping):
            yield from _of_attention(below)


def _clips(declared: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the projections of a layer of attention that the clip scales."""
    heads, key_heads = (_num_heads(declared[n]) for n in ("query", "key"))
    return ("query", "key") if key_heads == heads else ("query",)


def _of_heads(declared: Any) -> list[Parameter]:
    return [p for p in jax.tree.leaves(declared) if set(_HEADS) & set(p.axes)]


def _num_heads(declared: Any) -> int:
    first = _of_heads(declared)[0]
    sizes = dict(zip(first.axes, first.shape, strict=True))
    return next(sizes[axis] for axis in _HEADS if axis in sizes)


def _width(declared: Any) -> int:
    return _of_heads(declared)[0].shape[-1]


def _scaled(params: Any, declared: Any, factors: jax.Array) -> Any:
    """Returns a projection's parameters times [L?, H, K or 1] factors.

    Parameters without heads, such as the down-projection of low rank, stay.
    """

    def scale(parameter: Parameter, value: jax.Array) -> jax.Array:
        if not set(_HEADS) & set(parameter.axes):
            return value
        kept = {parameter.stack_dim, "head_dim", *_HEADS}
        wide = [a in kept for a in parameter.full_axes]
        sizes = iter(factors.shape)
        shape = [next(sizes) if w else 1 for w in wide]
        scaled = on_device(value) * factors.reshape(shape)
        return beside(value, scaled.astype(value.dtype))

    return jax.tree.map(scale, declared, params)
