"""What the products of a network multiply on data, one layer after the other."""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import fiddle as fdl
import jax
import numpy as np

from maxfdl import graph
from maxfdl.errors import UserError
from maxfdl.hf.describing import without_extras
from maxfdl.layers.context import Context, Rows
from maxfdl.model import NnxModel
from maxfdl.mutations.family import with_layers_of
from maxfdl.mutations.products import selected
from maxfdl.ops.grouped_dot import GroupedProduct
from maxfdl.ops.second_moment import NAME, ObservedDot, ObservedGroupedDot
from maxfdl.tensors.table import Binding

Tree = Mapping[str, Any]
Step = Callable[[Tree, jax.Array, Rows], tuple[jax.Array, Tree]]


class _Place(NamedTuple):
    """Which layer: the stack, the repeat of its cycle, and the layer of the cycle."""

    stack: int
    repeat: int
    layer: int


class Moments:
    """Second moments `sum x x^T` of what kernels multiply, by Hugging Face's names.

    A call runs the layers up to the one that is asked for, over the first batches of an
    experiment, with the weights as they are and products in the type of activations. So
    layers must be asked for in order. Memory holds the activations of all batches at
    one layer, and the moments of that layer: for each kernel a square of its inputs.

    Args:
      experiment: The graph of the experiment.
      variables: The weights, in either family of layers.
      steps: How many batches.
      bindings: Which kernels there are.

    Raises:
      UserError: If `steps` is not positive, or if the data cannot be read.
    """

    def __init__(
        self,
        experiment: fdl.Buildable,
        variables: Tree,
        steps: int,
        bindings: Sequence[Binding],
    ):
        if steps < 1:
            raise UserError(f"calibrate_steps ({steps}) must be at least 1.")
        config: Any = experiment
        network: Any = with_layers_of(without_extras(config.model), "nnx")
        for node in selected(network, (), (), "calibration"):
            grouped = issubclass(fdl.get_callable(node), GroupedProduct)  # type: ignore[arg-type]
            graph.swap(node, ObservedGroupedDot if grouped else ObservedDot)
        self._network, self._variables = network, variables
        # Kernels that are one tensor there multiply the same.
        self._slots = {
            name: binding.slots[0] for binding in bindings for name in binding.theirs
        }
        batches = [
            jax.tree.map(jax.numpy.asarray, batch)
            for batch in itertools.islice(_batches(config), steps)
        ]
        self._rows = [Rows(b["positions"], b["segment_ids"]) for b in batches]
        pairs = zip(batches, self._rows, strict=True)
        self._xs = [self._embedded(b["tokens"], rows) for b, rows in pairs]
        self._layers = self._places()
        self._place: _Place | None = None
        self._state: Tree = {}

    def __call__(self, name: str) -> np.ndarray:
        """Returns the moment of a kernel, [..., inputs, inputs].

        Raises:
          UserError: If what it multiplies is not finite.
        """
        slot = self._slots[name]
        stack, layer = (int(each.rpartition("_")[2]) for each in slot.path[1:3])
        repeat, *index = slot.index
        while self._place != (stack, repeat, layer):
            self._place = next(self._layers)
            self._run_layer(self._place)
        node: Any = self._state["layers_0"]
        for each in (*slot.path[3:-1], f"dot_{NAME}"):
            node = node[each]
        moment = np.asarray(node[(0, *index)])
        if not np.isfinite(moment).all():
            raise UserError(
                f"{name} multiplies numbers that are not finite, on the data to"
                " calibrate with; take other data or weights."
            )
        return moment

    def _places(self) -> Iterator[_Place]:
        for i, stack in enumerate(self._network.decoder.stacks):
            for repeat in range(stack.repeats):
                for layer in range(len(stack.layers)):
                    yield _Place(i, repeat, layer)

    def _run_layer(self, place: _Place) -> None:
        """Replaces activations by those after the layer, and notes its moments."""
        model, step = self._step(place.stack, place.layer)
        params, given = (
            _layer(self._variables[name], place) for name in ("params", "state")
        )
        state = _first(model.state(), given)
        for i, rows in enumerate(self._rows):
            variables = {"params": params, "state": state}
            self._xs[i], state = step(variables, self._xs[i], rows)
        self._state = jax.device_get(state)

    @functools.cache  # noqa: B019 (it lives as long as one export)
    def _step(self, stack: int, layer: int) -> tuple[NnxModel, Step]:
        """Returns a layer as a stack of its own, and the program that runs it."""
        alone = graph.copy(self._network.decoder.stacks[stack])
        alone.layers, alone.repeats = [alone.layers[layer]], 1
        made: Any = graph.build(alone)
        model = NnxModel(
            module=functools.partial(made, features=self._network.features)
        )
        return model, jax.jit(lambda v, x, rows: model.run(v, x, Context(rows)))

    def _embedded(self, x: jax.Array, rows: Rows) -> jax.Array:
        """Returns the activations before the first layer, of tokens."""
        network, params = self._network, self._variables["params"]
        sizes = dict(features=network.features)
        of_tokens = dict(vocab_size=network.vocab_size, dtype=network.dtype)
        context = Context(rows)
        for name, fields in (("embedding", of_tokens), ("position_embedding", {})):
            if getattr(network, name) is not None:
                made: Any = graph.build(getattr(network, name))
                model = NnxModel(module=functools.partial(made, **sizes, **fields))
                x, _ = model.run({"params": params[name], "state": {}}, x, context)
        return x


def _batches(config: Any) -> Iterator[dict[str, np.ndarray]]:
    make_data: Any = graph.build(config.data)
    data = make_data(
        batch_size=config.batch_size,
        sequence_length=config.sequence_length,
        seed=config.seed,
        process_index=0,
        process_count=1,
        vocab_size=config.model.vocab_size,
    )
    return data.train()


def _layer(tree: Tree, place: _Place) -> dict[str, Any]:
    """Returns the arrays of one layer, as those of a stack that has no other."""
    for name in ("decoder", f"stacks_{place.stack}", f"layers_{place.layer}"):
        tree = tree.get(name, {})
    one = slice(place.repeat, place.repeat + 1)
    return {"layers_0": jax.tree.map(lambda x: x[one], dict(tree))}


def _first(declared: Tree, given: Tree) -> dict[str, Any]:
    """Returns the state before a step: what is given, and the rest as declared."""
    return {
        name: _first(value, given.get(name, {}))
        if isinstance(value, Mapping)
        else given.get(name, value.first())
        for name, value in declared.items()
    }
