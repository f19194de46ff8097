"""What each device holds at the moment of a step that needs the most memory."""

import collections
import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from maxfdl.ops.target import tracing_for
from maxfdl.report.ahead import memory_of
from maxfdl.report.memory.layouts import Layout
from maxfdl.report.memory.liveness import Buffer, buffers_of, most_at_once
from maxfdl.report.memory.program import Value, program_of
from maxfdl.sharding.room import bytes_on_host, bytes_per_device
from maxfdl.sharding.spec import names_of
from maxfdl.train.program import Program

_LARGEST = 12
"""How many lines of arrays are listed by themselves."""

_LAYERS = re.compile(r"maxfdl/((?:layers|ops|optim|train)/\w+)\.py$")
_NO_LAYERS = frozenset(
    "context decoder execution layer linear packing parameter product stack".split()
)
"""Files of `layers` that other layers run in."""


@dataclasses.dataclass(frozen=True)
class Held:
    """Arrays that lie in the memory of a device at the peak, equal ones together.

    Args:
      kind: What they are for.
      source: File of the library that computes them.
      shape: Of the part that a device holds.
      dtype: Of their numbers.
      count: How many there are.
      bytes: Of all of them.
    """

    kind: str
    source: str
    shape: tuple[int, ...]
    dtype: str
    count: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The memory of a step; all figures are of one device.

    Args:
      name: Of the experiment.
      platform: That it is estimated for.
      device_kind: The chip, if it is known.
      mesh: Devices along each mesh axis.
      memory_bytes: What the chip has; None if that is not known.
      arguments: Bytes of the state and the batch, by what they are and their type.
      temporaries: Bytes of the other arrays at the peak, by what they are for.
      host_bytes: Bytes of the state that lie in the memory of the host.
      largest: The largest arrays among the temporaries.
    """

    name: str
    platform: str
    device_kind: str | None
    mesh: dict[str, int]
    memory_bytes: float | None
    arguments: dict[str, int]
    temporaries: dict[str, int]
    host_bytes: int
    largest: tuple[Held, ...]

    @property
    def devices(self) -> int:
        return math.prod(self.mesh.values())

    @property
    def argument_bytes(self) -> int:
        return sum(self.arguments.values())

    @property
    def temp_bytes(self) -> int:
        return sum(self.temporaries.values())

    @property
    def peak_bytes(self) -> int:
        return self.argument_bytes + self.temp_bytes

    @property
    def fits(self) -> bool | None:
        """Whether a device has the memory; None if that is not known."""
        have = self.memory_bytes
        return None if have is None else self.peak_bytes <= have

    def as_json(self) -> dict[str, Any]:
        derived = {
            name: getattr(self, name)
            for name in (
                "devices",
                "argument_bytes",
                "temp_bytes",
                "peak_bytes",
                "fits",
            )
        }
        return dataclasses.asdict(self) | derived


def estimate(
    name: str,
    program: Program,
    platform: str,
    device_kind: str | None = None,
    memory_bytes: float | None = None,
) -> Estimate:
    """Returns the memory that a step needs, from shapes alone.

    Args:
      name: Of the experiment.
      program: On any mesh, whose devices need not be here.
      platform: `cpu`, `gpu` or `tpu`, which ops choose their implementation by.
      device_kind, memory_bytes: Of its devices, if they are known.
    """
    state, batch = program.abstract_state(), program.abstract_batch()
    held = most_at_once(_buffers(program, platform))
    temporaries = collections.Counter()
    for buffer in held:
        temporaries[_kind(buffer.value)] += buffer.bytes
    return Estimate(
        name=name,
        platform=platform,
        device_kind=device_kind,
        mesh=dict(program.sharding.mesh.shape),
        memory_bytes=memory_bytes,
        arguments=dict(_arguments(state, batch)),
        temporaries=dict(temporaries.most_common()),
        host_bytes=bytes_on_host(state),
        largest=tuple(_alike(held)[:_LARGEST]),
    )


def estimate_on(name: str, program: Program, device: jax.Device) -> Estimate:
    """Returns the memory that a step needs on devices like this one.

    CPU devices share the memory of this host, unless there are more than are here.
    """
    count = program.sharding.mesh.size
    is_here = device.platform != "cpu" or count <= jax.device_count()
    memory = memory_of(device, count) if is_here else None
    return estimate(name, program, device.platform, device.device_kind, memory)


def _buffers(program: Program, platform: str) -> list[Buffer]:
    """Returns what the step needs in memory besides its arguments, over its time."""
    arguments = program.abstract_state(), program.abstract_batch()
    with tracing_for(platform):
        jaxpr = jax.make_jaxpr(program.trainer.step)(*arguments)
    layouts = [_layout(array) for array in jax.tree.leaves(arguments)]
    sizes = program.sharding.mesh.shape
    return buffers_of(program_of(jaxpr, layouts, sizes, platform))


def _layout(array: Any) -> Layout:
    spec = [*map(names_of, array.sharding.spec)]
    return tuple(spec + [()] * (array.ndim - len(spec)))


def _arguments(state: Mapping[str, Any], batch: Any) -> collections.Counter[str]:
    """Returns the bytes of each part of the state, and of the batch, by type."""
    parts = {**state, "batch": batch}
    parts |= {f"replicas' {k}": v for k, v in parts.pop("replicas", {}).items()}
    found = collections.Counter()
    for name, tree in parts.items():
        for leaf in jax.tree.leaves(tree):
            size = bytes_per_device(leaf) - bytes_on_host(leaf)
            if size:
                found[f"{name}, {leaf.dtype}"] += size
    return found


def _alike(buffers: Iterable[Buffer]) -> list[Held]:
    """Returns buffers, like ones together, those of the most bytes first."""
    alike: dict[tuple, list[Buffer]] = collections.defaultdict(list)
    for each in buffers:
        value = each.value
        key = _kind(value), _source(value), value.shape, value.dtype
        alike[key].append(each)
    found = [
        Held(*key, count=len(each), bytes=sum(buffer.bytes for buffer in each))
        for key, each in alike.items()
    ]
    return sorted(found, key=lambda held: -held.bytes)


def _kind(value: Value) -> str:
    """Returns what an array is for, by what computes it, and where."""
    if value.role == "cast":
        return "weights, cast before loops"
    if value.role == "all_gather":
        return "weights, gathered for use"
    backward = "transpose(" in value.scope
    if value.role == "stacked":
        return "gradients" if backward else "saved for the backward pass"
    if value.role == "reduce_scatter" and backward:
        return "gradients"
    if "cross_entropy" in _source(value):
        return "logits and loss"
    if "rematted_computation" in value.scope:
        return "computed again"
    if backward:
        return "backward pass"
    return "forward pass" if "jvp(" in value.scope else "update and the rest"


def _source(value: Value) -> str:
    """Returns the innermost layer, op or rule that an array was written in."""
    if value.eqn is None or value.eqn.source_info.traceback is None:
        return ""
    files = [
        found.group(1)
        for frame in value.eqn.source_info.traceback.frames
        if (found := _LAYERS.search(frame.file_name.replace("\\", "/")))
    ]
    layers = [
        file
        for file in files
        if file.startswith("layers/") and file.split("/")[1] not in _NO_LAYERS
    ]
    return next(iter(layers or files), "")
