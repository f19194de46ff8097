"""What the products of a model multiply, on the data of its experiment."""

from collections.abc import Mapping, Sequence
from typing import Any

import fiddle as fdl
import jax
import numpy as np

from maxfdl import graph
from maxfdl.errors import UserError
from maxfdl.hf.describing import without_extras
from maxfdl.model import Model
from maxfdl.mutations.products import selected
from maxfdl.ops.grouped_dot import GroupedProduct
from maxfdl.ops.second_moment import NAME, ObservedDot, ObservedGroupedDot
from maxfdl.tensors.table import Binding
from maxfdl.tensors.writing import Moments

Tree = Mapping[str, Any]


def by_name(state: Tree, bindings: Sequence[Binding]) -> Moments:
    """Returns the moments in a state, by what Hugging Face calls the kernel.

    Kernels that are one tensor there multiply the same.
    """
    slots = {name: binding.slots[0] for binding in bindings for name in binding.theirs}

    def moment(name: str) -> np.ndarray:
        slot = slots[name]
        node: Any = state
        for each in (*slot.path[:-1], f"dot_{NAME}"):
            node = node[each]
        return np.asarray(node[slot.index])

    return moment


def second_moments(
    experiment: fdl.Buildable, variables: Tree, steps: int
) -> dict[str, Any]:
    """Returns state with the second moments over the first batches of an experiment.

    One device runs the forward pass, with all products in the type of activations.
    Beside the weights it holds the moments: a square matrix of the inputs for each
    kernel, in float32.

    Args:
      experiment: Its graph.
      variables: The weights.
      steps: How many batches; at least 1.

    Raises:
      UserError: If `steps` is not positive, or if its data cannot be read.
    """
    if steps < 1:
        raise UserError(f"calibrate_steps ({steps}) must be at least 1.")
    config: Any = experiment
    network: Any = without_extras(config.model)
    for node in selected(network, (), (), "calibration"):
        grouped = issubclass(fdl.get_callable(node), GroupedProduct)  # type: ignore[arg-type]
        graph.swap(node, ObservedGroupedDot if grouped else ObservedDot)
    make_model: Any = graph.build(config.backend)
    model: Model = make_model(module=graph.build(network), sharding=None)
    data = _data(config, model)
    params = {name: variables["params"][name] for name in model.parameters()}
    state = _first(model.state(), variables["state"])

    @jax.jit
    def observe(params: Tree, state: Tree, batch: Tree) -> Tree:
        inputs = {key: batch[key] for key in ("segment_ids", "positions")}
        given = {"params": params, "state": state}
        return model.apply(given, batch["tokens"], **inputs).state

    batches = data.train()
    for _ in range(steps):
        state = observe(params, state, next(batches))
    return jax.device_get(state)


def _data(config: Any, model: Model) -> Any:
    make_data = graph.build(config.data)
    return make_data(
        batch_size=config.batch_size,
        sequence_length=config.sequence_length,
        seed=config.seed,
        process_index=0,
        process_count=1,
        vocab_size=model.network.vocab_size,
    )


def _first(declared: Tree, given: Tree) -> dict[str, Any]:
    """Returns the state before a step: what is given, and the rest as declared."""
    return {
        name: _first(value, given.get(name, {}))
        if isinstance(value, Mapping)
        else given.get(name, value.first())
        for name, value in declared.items()
    }
