"""Fragments of a model that are synced one after the other: Streaming DiLoCo.

A fragment has layers, of any stacks, and modules outside of the stacks. Each layer and
each such module is in exactly one fragment.

Letters: H steps between two syncs of one fragment, P fragments.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp

from maxfdl.errors import UserError
from maxfdl.layers.parameter import Parameter, map_parameters

_DECODER = "decoder"

Layers = tuple[int, ...] | None
"""Indices along the leading dim of a stacked array; None takes an array whole."""


@dataclasses.dataclass(frozen=True)
class Streaming:
    """Syncs `fragments` parts of the model in turns, one every H / P steps.

    The bytes of a sync are those of a fragment, and no step has all of them. Douillard
    et al. 2025, https://arxiv.org/abs/2501.18512.

    Args:
      fragments: P, at most the number of layers; it divides the sync period.
      order: Which layers a fragment has: every P-th (`strided`), or as many bytes of
        neighbours (`sequential`).
      overlap: tau, steps from the sync to the step after which replicas take over what
        it gave, below H / P. With 0 both are at the end of one step. Else the exchange
        belongs to the next step, whose forward and backward pass need nothing of it, so
        that both can run at once; the step is then compiled for each fragment.
      mix: alpha, the share of its own weights that a replica keeps at a sync, from 0 to
        1. With 1 the replicas never hear of each other.
      eager: Whether replicas move at once at a sync, each along its own delta and the
        last that is known of the others, see `maxfdl.train.eager`. The exchange then
        has until the next sync, a whole period. Each replica has three more copies of
        the weights: its outer weights, their momentum, and what it knows of the others.
    """

    fragments: int = 1
    order: Literal["strided", "sequential"] = "strided"
    overlap: int = 0
    mix: float = 0.0
    eager: bool = False

    @staticmethod
    def check_config(node):
        if node.fragments < 1:
            yield f"Streaming fragments ({node.fragments}) must be at least 1."
        if node.overlap < 0:
            yield f"Streaming overlap ({node.overlap}) must not be negative."
        if not 0.0 <= node.mix <= 1.0:
            yield f"Streaming mix ({node.mix}) must be from 0 to 1."
        if node.eager and not node.overlap:
            yield (
                "Streaming eager updates hide the exchange behind the steps after a"
                " sync: they need an overlap (0) of 1 or more."
            )
        if node.eager and node.mix:
            yield (
                f"Streaming mix ({node.mix}) must be 0 with eager updates, for replicas"
                " then take over no outer weights to mix with."
            )

    @staticmethod
    def check_in(node, root):
        period = root.trainer.sync_period
        if node.fragments < 1 or period < 1:
            return  # which rules of their own say
        if period % node.fragments:
            yield (
                f"Streaming fragments ({node.fragments}) must divide"
                f" trainer.sync_period ({period}), for they are synced at equal"
                " distances."
            )
        elif node.overlap and node.overlap >= period // node.fragments:
            yield (
                f"Streaming overlap ({node.overlap}) must be below the"
                f" {period // node.fragments} steps between the syncs of two fragments"
                f" (trainer.sync_period {period} / fragments {node.fragments})."
            )

    def plan(self, parameters: Mapping[str, Any]) -> list["Fragment"]:
        """Returns the fragments of parameters with these declarations.

        Raises:
          UserError: If there are more fragments than layers.
        """
        layers, modules = _units(parameters)
        count = self.fragments
        if count > max(len(layers), 1):
            raise UserError(
                f"Streaming fragments ({count}) must be at most the number of layers"
                f" that are trained ({len(layers)}); take fewer fragments."
            )
        order = _strided if self.order == "strided" else _sequential
        found: list[list[_Unit]] = [[] for _ in range(count)]
        for unit, number in zip(layers, order(layers, count), strict=True):
            found[number].append(unit)
        for unit in sorted(modules, key=lambda unit: -unit.size):
            min(found, key=_size).append(unit)  # the smallest so far
        return [Fragment.of(units) for units in found]


@dataclasses.dataclass(frozen=True)
class Fragment:
    """Some arrays of a tree like the parameters, or some layers of them.

    Args:
      arrays: By path, which layers of an array it has.
    """

    arrays: Mapping[str, Layers]

    @classmethod
    def of(cls, units: Sequence["_Unit"]) -> "Fragment":
        arrays: dict[str, Layers] = {}
        for unit in units:
            for path, parameter in unit.arrays.items():
                if unit.repeat is None:
                    arrays[path] = None
                    continue
                layers = (*(arrays.get(path) or ()), unit.repeat)
                is_whole = len(layers) == parameter.repeats
                arrays[path] = None if is_whole else layers
        return cls(arrays)

    def declared(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the declarations of what the fragment has."""

        def cut(parameter: Parameter, layers: tuple[int, ...]) -> Parameter:
            alone = dataclasses.replace(parameter, repeats=None)
            return alone.stacked(len(layers))

        return self._of(parameters, cut)

    def of_tree(self, tree: Mapping[str, Any], dim: int = 0) -> dict[str, Any]:
        """Returns the fragment of arrays, whose layers are counted by `dim`."""
        return self._of(tree, lambda x, layers: x[_at(layers, dim)])

    def put(
        self, tree: Mapping[str, Any], part: Mapping[str, Any], dim: int = 0
    ) -> dict[str, Any]:
        """Returns `tree` with this fragment of it replaced by `part`."""

        def merged(tree: Any, part: Any, prefix: str) -> Any:
            found = dict(tree)
            for name, new in part.items():
                path = f"{prefix}{name}"
                if isinstance(new, Mapping):
                    found[name] = merged(tree[name], new, f"{path}/")
                elif (layers := self.arrays[path]) is None:
                    found[name] = new
                else:
                    found[name] = tree[name].at[_at(layers, dim)].set(new)
            return found

        return merged(tree, part, "")

    def _of(self, tree: Mapping[str, Any], cut: Callable, prefix: str = "") -> dict:
        found = {}
        for name, value in tree.items():
            path = f"{prefix}{name}"
            if isinstance(value, Mapping):
                if below := self._of(value, cut, f"{path}/"):
                    found[name] = below
            elif path in self.arrays:
                layers = self.arrays[path]
                found[name] = value if layers is None else cut(value, layers)
        return found


class _Unit(NamedTuple):
    """What is never cut: a layer, one repeat of stacked arrays, or a module."""

    arrays: dict[str, Parameter]
    repeat: int | None

    @property
    def size(self) -> int:
        return sum(
            p.size if self.repeat is None else p.size // (p.repeats or 1)
            for p in self.arrays.values()
        )


def _units(parameters: Mapping[str, Any]) -> tuple[list[_Unit], list[_Unit]]:
    """Returns the layers, the first first, and the modules outside of stacks."""
    of_layers: dict[str, dict[str, Parameter]] = {}
    of_modules: dict[str, dict[str, Parameter]] = {}

    def add(path: str, parameter: Parameter) -> None:
        top, *names = path.split("/")
        if top == _DECODER and parameter.repeats is not None:
            of_layers.setdefault("/".join(names[:2]), {})[path] = parameter
        else:
            of_modules.setdefault(top, {})[path] = parameter

    map_parameters(add, parameters)
    layers = []
    for key, arrays in of_layers.items():
        stack, place = (int(name.rpartition("_")[2]) for name in key.split("/"))
        repeats = max(parameter.repeats or 1 for parameter in arrays.values())
        layers += [((stack, i, place), _Unit(arrays, i)) for i in range(repeats)]
    layers.sort(key=lambda pair: pair[0])
    modules = [_Unit(arrays, None) for arrays in of_modules.values()]
    return [unit for _, unit in layers], modules


def _strided(layers: Sequence[_Unit], count: int) -> list[int]:
    return [number % count for number in range(len(layers))]


def _sequential(layers: Sequence[_Unit], count: int) -> list[int]:
    """Returns the fragment of each layer: neighbours, of equal bytes as far as it goes,
    and at least one for each fragment."""
    total, before = _size(layers), 0
    numbers: list[int] = []
    for number, unit in enumerate(layers):
        ideal = int((before + unit.size / 2) / total * count)
        before += unit.size
        last = numbers[-1] if numbers else -1
        least = max(last, count - (len(layers) - number), 0)
        numbers.append(min(max(ideal, least), last + 1))
    return numbers


def _size(units: Sequence[_Unit]) -> int:
    return sum(unit.size for unit in units)


def _at(layers: tuple[int, ...], dim: int) -> tuple[Any, ...]:
    """Returns the index of these layers along `dim`: a slice where they are evenly
    spaced."""
    steps = {b - a for a, b in zip(layers, layers[1:], strict=False)}
    even = len(steps) <= 1
    step = steps.pop() if len(steps) == 1 else 1
    index = slice(layers[0], layers[-1] + 1, step) if even else jnp.array(layers)
    return (*[slice(None)] * dim, index)
