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
from maxfdl.graph.select import makes
from maxfdl.hf.describing import without_extras
from maxfdl.layers.context import Context, Rows
from maxfdl.model import NnxModel
from maxfdl.mutations.family import with_layers_of
from maxfdl.mutations.products import selected
from maxfdl.ops.grouped_dot import GroupedProduct
from maxfdl.ops.second_moment import NAME, ObservedDot, ObservedGroupedDot
from maxfdl.tensors.table import Binding, Slot

Tree = Mapping[str, Any]
Step = Callable[[Tree, jax.Array, Rows], tuple[jax.Array, Tree]]


_COLLECTIONS = ("params", "state")


class _Place(NamedTuple):
    """Which layer: the stack, the repeat of its cycle, and the layer of the cycle."""

    stack: int
    repeat: int
    layer: int


class Moments:
    """Second moments `sum x x^T` of what kernels multiply, by Hugging Face's names.

    A call runs the layers up to the one that is asked for, over the first batches of an
    experiment, with products in the type of activations. So layers must be asked for in
    order. Those before have the kernels that `keep` was told of. Memory holds the
    activations of all batches at one layer, and the moments of that layer: for each
    kernel a square of its inputs.

    Args:
      experiment: The graph of the experiment.
      variables: The weights, in either family of layers.
      steps: How many batches.
      bindings: Which kernels there are.
      theirs: The normalised config.json.

    Raises:
      UserError: If `steps` is not positive, or if the data cannot be read.
    """

    def __init__(
        self,
        experiment: fdl.Buildable,
        variables: Tree,
        steps: int,
        bindings: Sequence[Binding],
        theirs: Mapping[str, Any],
    ):
        if steps < 1:
            raise UserError(f"calibrate_steps ({steps}) must be at least 1.")
        config: Any = experiment
        network: Any = with_layers_of(without_extras(config.model), "nnx")
        if any("storage" in node.__arguments__ for _, node in graph.iterate(network)):
            raise UserError(
                f"calibrate_steps ({steps}) must be left out where kernels are in few"
                " bits already: they keep their codes."
            )
        for node in selected(network, (), (), "calibration"):
            grouped = makes(node, GroupedProduct)
            graph.swap(node, ObservedGroupedDot if grouped else ObservedDot)
        self._network, self._variables = network, variables
        self._theirs = theirs
        self._bindings = {
            name: binding for binding in bindings for name in binding.theirs
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
        self._layer: Tree = {}
        self._kept: dict[str, np.ndarray] = {}

    def __call__(self, name: str) -> np.ndarray:
        """Returns the moment of a kernel, [..., inputs, inputs].

        Raises:
          UserError: If what it multiplies is not finite.
        """
        # Kernels that are one tensor there multiply the same.
        slot = self._bindings[name].slots[0]
        while self._place != _place_of(slot):
            self._go_on()
        node: Any = self._layer["state"]["layers_0"]
        for each in (*slot.path[3:-1], f"dot_{NAME}"):
            node = node[each]
        moment = np.asarray(node[(0, *slot.index[1:])])
        if not np.isfinite(moment).all():
            raise UserError(
                f"{name} multiplies numbers that are not finite, on the data to"
                " calibrate with; take other data or weights."
            )
        return moment

    def keep(self, name: str, values: np.ndarray) -> None:
        """Notes what a kernel of this layer is stored as."""
        self._kept[name] = values

    def _places(self) -> Iterator[_Place]:
        for i, stack in enumerate(self._network.decoder.stacks):
            for repeat in range(stack.repeats):
                for layer in range(len(stack.layers)):
                    yield _Place(i, repeat, layer)

    def _go_on(self) -> None:
        """Leaves the layer with its kernels as they are stored, and enters the next."""
        if self._place is not None:
            self._replace_kernels()
            self._xs, _ = self._run(self._place, self._layer)
        self._place = place = next(self._layers)
        model, _ = self._step(place.stack, place.layer)
        given = {name: _layer(self._variables[name], place) for name in _COLLECTIONS}
        self._layer = given | {"state": _first(model.state(), given["state"])}
        _, self._layer["state"] = self._run(place, self._layer)

    def _replace_kernels(self) -> None:
        bindings = {id(b): b for b in map(self._bindings.__getitem__, self._kept)}
        for binding in bindings.values():
            theirs = [self._kept[name] for name in binding.theirs]
            ours = binding.to_ours(theirs, self._theirs)
            for slot, values in zip(binding.slots, ours, strict=True):
                node: Any = self._layer["params"]["layers_0"]
                for each in slot.path[3:-1]:
                    node = node[each]
                whole, at = node[slot.path[-1]], (0, *slot.index[1:])
                node[slot.path[-1]] = whole.at[at].set(values.astype(whole.dtype))
        self._kept = {}

    def _run(self, place: _Place, layer: Tree) -> tuple[list[jax.Array], Tree]:
        """Returns the activations after a layer, and the state that it leaves."""
        (_, step), state, after = (
            self._step(place.stack, place.layer),
            layer["state"],
            [],
        )
        for x, rows in zip(self._xs, self._rows, strict=True):
            x, state = step({"params": layer["params"], "state": state}, x, rows)
            after.append(x)
        return after, state

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


def _place_of(slot: Slot) -> _Place:
    stack, layer = (int(each.rpartition("_")[2]) for each in slot.path[1:3])
    return _Place(stack, slot.index[0], layer)


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
