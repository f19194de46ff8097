"""Where all arrays of a run lie on its mesh: weights, optimizer state, activations.

Shapes alone are needed: nothing is allocated or compiled, and the mesh may have any
number of devices.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import jax
from jax.sharding import NamedSharding

from maxfdl.experiment import Experiment
from maxfdl.layers.parameter import Parameter, map_parameters
from maxfdl.report.facts import Spec, planned_program
from maxfdl.report.text import aligned, spec_text
from maxfdl.sharding.room import bytes_per_device, size_text
from maxfdl.sharding.sharding import Sharding
from maxfdl.train.program import Program

Kind = Literal["parameter", "optimizer", "activation"]


@dataclasses.dataclass(frozen=True)
class Place:
    """Where one array lies.

    Args:
      kind: What it is.
      path: Of a parameter or of optimizer state, in its tree; empty for activations.
      axes: Logical names of the dims; none of what is no parameter or activation.
      shape: Of the whole array.
      on_device: Shape of what one device holds.
      sharding: Mesh axes by dim.
      bytes_per_device: What one device holds.
    """

    kind: Kind
    path: str
    axes: tuple[str, ...]
    shape: tuple[int, ...]
    on_device: tuple[int, ...]
    sharding: Spec
    bytes_per_device: int

    @classmethod
    def of(cls, kind: Kind, path: str, axes: Sequence[str], array: Any) -> "Place":
        place: NamedSharding = array.sharding
        spec = tuple(place.spec)
        return cls(
            kind=kind,
            path=path,
            axes=tuple(axes),
            shape=array.shape,
            on_device=place.shard_shape(array.shape),
            sharding=spec + (None,) * (len(array.shape) - len(spec)),
            bytes_per_device=bytes_per_device(array),
        )


def places_of(experiment: Experiment, num_devices: int) -> tuple[Sharding, list[Place]]:
    """Returns the mesh of a run on so many devices, and where its arrays lie on it.

    Raises:
      UserError: If the mesh does not cut the batch and every parameter evenly.
    """
    program = planned_program(experiment, num_devices)
    sharding, trainer = program.sharding, program.trainer
    state = program.abstract_state()
    found: list[Place] = []
    leaves = iter(jax.tree.leaves(state["params"]))

    def add(path: str, parameter: Parameter) -> None:
        place = Place.of("parameter", path, parameter.full_axes, next(leaves))
        found.append(place)

    map_parameters(add, _in_order(trainer.model.parameters()))
    for path, leaf in jax.tree_util.tree_leaves_with_path(state["optimizer"]):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        found.append(Place.of("optimizer", name, (), leaf))
    return sharding, found + _activations(program)


def _in_order(tree: Any) -> Any:
    """Returns nested dicts with their keys in the order of `jax.tree.leaves`."""
    if not isinstance(tree, dict):
        return tree
    return {name: _in_order(tree[name]) for name in sorted(tree)}


@dataclasses.dataclass(frozen=True)
class _Recording(Sharding):
    """Notes the activations that layers pin to the mesh."""

    seen: list[Any] = dataclasses.field(default_factory=list, compare=False)

    def constrain(self, x: jax.Array, axes: Sequence[str | None]) -> jax.Array:
        array = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.named(axes))
        self.seen.append((tuple(axis or "" for axis in axes), array))
        return super().constrain(x, axes)


def _activations(program: Program) -> list[Place]:
    """Returns the activations that a forward pass pins, each kind once."""
    trainer, own = program.trainer, program.sharding
    sharding = _Recording(own.mesh, own.rules)
    model = trainer.model.on(sharding)
    state, batch = program.abstract_state(), program.abstract_batch()
    variables = {name: state[name] for name in ("params", "state")}
    jax.eval_shape(lambda v, b: model.apply(v, b["tokens"]).hidden, variables, batch)
    places = [Place.of("activation", "", axes, x) for axes, x in sharding.seen]
    return list(dict.fromkeys(places))


def table(places: Iterable[Place]) -> list[str]:
    """Returns a line for each array, under a heading for each kind, and sums.

    Optimizer state that lies as its parameters do has one line for all.
    """
    places = list(places)
    rows: list[list[str]] = []
    headings = {
        "parameter": "parameters",
        "optimizer": "optimizer state",
        "activation": "activations that layers pin",
    }
    for kind, heading in headings.items():
        of_kind = [place for place in places if place.kind == kind]
        total = sum(place.bytes_per_device for place in of_kind)
        sum_of = f", {size_text(total)} on a device" if kind != "activation" else ""
        rows.append([f"{heading}{sum_of}"])
        alike = _like_parameters(places) if kind == "optimizer" else {}
        for prefix, held in alike.items():
            count = f"{len(held)} arrays that lie as their parameters do"
            size = size_text(sum(place.bytes_per_device for place in held))
            rows.append([f"  {prefix}: {count}, {size}"])
        shown = {place for held in alike.values() for place in held}
        rows += [_row(place) for place in of_kind if place not in shown]
    return aligned(rows)


def _like_parameters(places: Sequence[Place]) -> dict[str, list[Place]]:
    """Returns the arrays of optimizer state that lie as the parameter at the end of
    their path does, by what comes before it."""
    parameters = {p.path: p for p in places if p.kind == "parameter"}
    found: dict[str, list[Place]] = {}
    for place in places:
        parts = place.path.split("/")
        for i in range(1, len(parts)) if place.kind == "optimizer" else ():
            own = parameters.get("/".join(parts[i:]))
            if own and (own.shape, own.sharding) == (place.shape, place.sharding):
                found.setdefault("/".join(parts[:i]), []).append(place)
    return found


def _row(place: Place) -> list[str]:
    name = place.path or " x ".join(place.axes)
    return [
        f"  {name}",
        str(list(place.shape)),
        ", ".join(place.axes),
        spec_text(place.sharding),
        str(list(place.on_device)),
        size_text(place.bytes_per_device),
    ]
