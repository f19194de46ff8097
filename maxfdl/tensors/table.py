"""Name tables: which tensor of a checkpoint is which of our parameters.

A table is data, read in both directions. Applied to a model it gives bindings, one for
each of their tensors, or for a few that belong together. "Theirs" are tensors of the
checkpoint, "ours" arrays of the model.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, cast

from maxfdl.errors import UserError
from maxfdl.layers.parameter import wholes
from maxfdl.model import Model
from maxfdl.ops.state import Declaration, StateDeclaration
from maxfdl.tensors.layouts import AsDeclared, Config, Layout

Names = str | tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table: their names, our paths, and the layout between them.

    `{layer}` in their names is the number of the layer, counted over all stacks; our
    path then starts inside the layer. `{expert}` is the number of an expert, an index
    of our first dim. A row is skipped for layers that lack its paths.

    Args:
      theirs: Name of their tensor; several where several together are one of ours.
      ours: Path of the parameter; several where one of theirs holds several of ours.
      layout: Converts between the two.
      state: Whether ours are state of the layer and not parameters.
      beside: Another path of ours that a layer must have for the row to apply; it
        tells kinds of layers apart whose parts have the same names.
    """

    theirs: Names
    ours: Names
    layout: Layout = AsDeclared()
    state: bool = False
    beside: str | None = None


@dataclasses.dataclass(frozen=True)
class NameTable:
    """The tensors of one family.

    Args:
      model_types: What config.json calls the family.
      rows: All tensors.
      prefix: Beginning of names that some checkpoints leave out.
      ignored: Regular expressions of names that hold no weights, besides `IGNORED`.
      later: Regular expression of modules of multi-token prediction.
    """

    model_types: tuple[str, ...]
    rows: tuple[Row, ...]
    prefix: str = "model."
    ignored: tuple[str, ...] = ()
    later: str | None = None

    def theirs(self, ours: str) -> str:
        """Returns the name of their tensor that is our parameter `ours`."""
        (name,) = [row.theirs for row in self.rows if row.ours == ours]
        assert isinstance(name, str)
        return name


IGNORED = (r"\.rotary_emb\.inv_freq$",)
"""Buffers of old checkpoints, which follow from config.json."""

EMBEDDING, HEAD = "embedding/table", "head/kernel"
"""Our paths of the two arrays that a tied model has as one."""

_MULTIMODAL_PREFIXES = (
    ("model.language_model.", "model."),
    ("language_model.model.", "model."),
    ("language_model.", ""),
)
_OTHER_MODALITIES = re.compile(
    r"(model\.)?(vision_tower|vision_model|vision_embed_tokens|audio_tower|visual"
    r"|embed_vision|embed_audio|multi_modal_projector)\."
)


@dataclasses.dataclass(frozen=True)
class Slot:
    """A place in one of our arrays.

    Args:
      collection: `params` or `state`.
      path: Path of the array.
      index: Repeat in the stack and number of the expert, if there are such dims.
      declared: Declaration of the array at that place.
    """

    collection: str
    path: tuple[str, ...]
    index: tuple[int, ...]
    declared: Declaration


@dataclasses.dataclass(frozen=True)
class Binding:
    """Tensors of theirs and the places in our arrays that hold the same values."""

    theirs: tuple[str, ...]
    slots: tuple[Slot, ...]
    layout: Layout

    @property
    def declared(self) -> tuple[Declaration, ...]:
        return tuple(slot.declared for slot in self.slots)

    def to_ours(self, theirs: list[Any], config: Config) -> list[Any]:
        return self.layout.to_ours(theirs, self.declared, config)

    def to_theirs(self, ours: list[Any], config: Config) -> list[Any]:
        return self.layout.to_theirs(ours, self.declared, config)


Leaves = dict[tuple[str, tuple[str, ...]], Declaration]
"""(collection, path) of each array of a model to its declaration."""


def leaves_of(model: Model) -> Leaves:
    """Returns the declaration of every array of the variables.

    A packed kernel counts as the one array that it stands for.
    """
    return _leaves({"params": wholes(model.parameters()), "state": model.state()})


def stored_leaves_of(model: Model) -> Leaves:
    """Returns the declaration of every array of the variables, as it is stored."""
    return _leaves({"params": model.parameters(), "state": model.state()})


def _leaves(collections: Mapping[str, Mapping[str, Any]]) -> Leaves:
    return {
        (collection, path): declaration
        for collection, tree in collections.items()
        for path, declaration in _flat(tree)
    }


def bind(table: NameTable, leaves: Leaves) -> list[Binding]:
    """Returns the bindings of a model: outside the layers first, then by layer.

    State that layers write as they run, such as the greatest number that a product has
    seen, needs no tensor: it starts as declared, and is no part of an export.

    Raises:
      UserError: If a parameter is in no row, such as one that a mutation added.
    """
    layers = list(layers_of(leaves))
    places = [((), None, None), *layers]
    bindings = [
        binding
        for stack, repeat, number in places
        for row in table.rows
        if ("{layer}" in _tuple(row.theirs)[0]) == (number is not None)
        for binding in _bindings(row, leaves, stack, repeat, number)
    ]
    missing = unbound(leaves, bindings)
    if missing:
        raise UserError(
            f"Hugging Face's {table.model_types[0]} has no tensor for"
            f" {', '.join(missing)}; save the run as a checkpoint instead."
        )
    return bindings


def unbound(leaves: Leaves, bindings: list[Binding]) -> list[str]:
    """Returns the paths of arrays that have no binding, and need one."""
    bound = {(slot.collection, slot.path) for b in bindings for slot in b.slots}
    return [
        "/".join(key[1])
        for key, declared in leaves.items()
        if key not in bound and not _is_written_by_layers(declared)
    ]


def _is_written_by_layers(declared: Declaration) -> bool:
    return isinstance(declared, StateDeclaration) and declared.merge != "same"


def _bindings(row, leaves, stack, repeat, number) -> Iterator[Binding]:
    collection = "state" if row.state else "params"
    paths = [(*stack, *each.split("/")) for each in _tuple(row.ours)]
    needed = [(collection, path) for path in paths]
    if row.beside is not None:
        needed.append(("params", (*stack, *row.beside.split("/"))))
    if not all(each in leaves for each in needed):
        return
    declared = [leaves[collection, path] for path in paths]
    by_expert = "{expert}" in _tuple(row.theirs)[0]
    experts = range(declared[0].shape[0]) if by_expert else [None]
    for expert in experts:
        index = tuple(i for i in (repeat, expert) if i is not None)
        slots = tuple(
            Slot(collection, path, index, _one_expert(each) if by_expert else each)
            for path, each in zip(paths, declared, strict=True)
        )
        names = [
            each.format(layer=number, expert=expert) for each in _tuple(row.theirs)
        ]
        yield Binding(tuple(names), slots, row.layout)


def layers_of(leaves: Leaves) -> Iterator[tuple[tuple[str, ...], int, int]]:
    """Yields (path of the stacked layer, repeat, number) of each layer, in order."""
    cycles: dict[int, dict[int, int]] = {}
    for (_, path), parameter in leaves.items():
        if _in_stack(path):
            assert parameter.repeats is not None
            stack, layer = (int(name.rpartition("_")[2]) for name in path[1:3])
            cycles.setdefault(stack, {})[layer] = parameter.repeats
    numbers = itertools.count()
    for stack, cycle in sorted(cycles.items()):
        for repeat in range(next(iter(cycle.values()))):
            for layer in sorted(cycle):
                path = ("decoder", f"stacks_{stack}", f"layers_{layer}")
                yield path, repeat, next(numbers)


def _in_stack(path: tuple[str, ...]) -> bool:
    return len(path) > 2 and path[0] == "decoder" and path[1].startswith("stacks_")


def _one_expert(parameter: Declaration) -> Declaration:
    return dataclasses.replace(
        cast(Any, parameter),
        shape=parameter.shape[1:],
        axes=parameter.axes[1:],
        batched=parameter.batched - 1,
        repeats=None,
    )


def canonical_names(
    names: list[str], table: NameTable, wanted: set[str]
) -> dict[str, str]:
    """Returns the name in the file of each wanted name that is there.

    Multimodal checkpoints prefix the names of their text part, and some leave out the
    prefix of the base model.
    """
    spelled: dict[str, str] = {}
    for name in names:
        candidates = [name, f"{table.prefix}{name}"]
        for prefix, instead in _MULTIMODAL_PREFIXES:
            if name.startswith(prefix):
                candidates.append(instead + name.removeprefix(prefix))
        found = next((each for each in candidates if each in wanted), None)
        if found is not None:
            spelled[found] = name
    return spelled


Why = Literal["buffers", "other modalities", "modules that predict later tokens"]


def why_left_out(name: str, table: NameTable, config: Mapping[str, Any]) -> Why | None:
    """Returns why a tensor that is not used may be in the files, or None if it may not.

    Buffers can be computed from config.json. Modules of other modalities and of
    multi-token prediction hold weights that this model does not use.
    """
    if any(re.search(each, name) for each in (*IGNORED, *table.ignored)):
        return "buffers"
    if _OTHER_MODALITIES.match(name):
        return "other modalities"
    layer = re.search(r"(?:^|\.)layers\.(\d+)\.", name)
    first = config.get("num_hidden_layers", 0)
    further = range(first, first + (config.get("num_nextn_predict_layers") or 0))
    is_later = layer is not None and int(layer[1]) in further
    if is_later or (table.later is not None and re.search(table.later, name)):
        return "modules that predict later tokens"
    return None


def _flat(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[Any]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, (*path, name))
        else:
            yield (*path, name), value


def _tuple(names: Names) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names
