"""What the compiled step of an experiment holds, computes and sends on each device."""

import collections
import dataclasses
import math
import re
import time
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from maxfdl.experiment import Experiment
from maxfdl.report import hlo
from maxfdl.report.roofline import Roofline, Sent, roofline
from maxfdl.run.chips import chip_of
from maxfdl.sharding.room import bytes_on_host, bytes_per_device, host_bytes
from maxfdl.train.program import CompiledStep, Program

_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Exchange:
    """Collectives of one kind over the same devices, as each device runs them.

    Args:
      kind: Such as `all-gather`.
      axes: Mesh axes along which the devices lie that exchange.
      group_size: How many these are.
      network: `ici`, or `dcn` where they are in several slices.
      in_loop: Whether they stand in the body of a loop.
      executions: How often one of them runs in a step.
      payload_bytes: Of the whole arrays, over all executions.
      wire_bytes: That the device sends, over all executions.
      overlapped_wire_bytes: Of these, what asynchronous ones send that have products
        between their start and their end.
      beside_flops: Of those products, over all executions; one that stands beside two
        collectives counts twice.
      source: What the largest of them was written as: JAX's name stack.
    """

    kind: str
    axes: tuple[str, ...]
    group_size: int
    network: str
    in_loop: bool
    executions: float
    payload_bytes: float
    wire_bytes: float
    overlapped_wire_bytes: float
    beside_flops: float
    source: str


@dataclasses.dataclass(frozen=True)
class Ahead:
    """A step as it was compiled; all figures are of one device and one step.

    Args:
      name: Of the experiment.
      device_kind: What it was compiled for.
      mesh: Devices along each mesh axis.
      num_slices: Slices that the devices are in.
      compile_seconds, compile_cpu_seconds: What it took to trace and compile it.
      refusal: Why the compiler gave up for want of memory; None if it did not. Then
        what follows is not known, but for bytes of memory.
      argument_bytes: State and batch; of a refusal, by their shapes.
      temp_bytes: What the step needs beside them at its peak.
      peak_bytes: All that it needs of its main memory at a time; of a refusal, what the
        compiler says that it would.
      memory_bytes: What the device has; None if that is not known.
      model_flops: Of the formula: three times the matrix products forward.
      written_flops: Of all products that the step is written with: the gradients, and
        what is computed again.
      flops: That the program computes, recomputation included.
      routed_flops: Those among them of experts: of the rows that a device gets if
        tokens spread evenly. All devices together have these, however tokens spread.
      unknown_kernels: What may compute more that is not counted.
      hbm_bytes: Moved to and from main memory, estimated.
      collectives: What it exchanges, the most first.
      roofline: The least time; None for a chip that is not known.
      mfu: Model FLOPs over peak FLOPs in that time.
    """

    name: str
    device_kind: str
    mesh: dict[str, int]
    num_slices: int
    compile_seconds: float
    compile_cpu_seconds: float
    model_flops: float
    written_flops: float
    memory_bytes: float | None = None
    refusal: str | None = None
    argument_bytes: int | None = None
    temp_bytes: int | None = None
    peak_bytes: int | None = None
    flops: float | None = None
    routed_flops: float | None = None
    unknown_kernels: tuple[str, ...] = ()
    hbm_bytes: float | None = None
    collectives: tuple[Exchange, ...] = ()
    roofline: Roofline | None = None
    mfu: float | None = None

    @property
    def devices(self) -> int:
        return math.prod(self.mesh.values())

    @property
    def fits(self) -> bool:
        """Whether a device has the memory, as far as is known."""
        if self.refusal is not None or self.memory_bytes is None:
            return self.refusal is None
        return (self.peak_bytes or 0) <= self.memory_bytes

    @property
    def wire_bytes(self) -> float:
        """Bytes that a device sends."""
        return sum(each.wire_bytes for each in self.collectives)

    def as_json(self) -> dict[str, Any]:
        times = self.roofline and dataclasses.asdict(self.roofline)
        derived = {
            "devices": self.devices,
            "fits": self.fits,
            "wire_bytes": None if self.refusal else self.wire_bytes,
            "roofline_seconds": self.roofline and self.roofline.seconds,
            "bound_by": self.roofline and self.roofline.bound_by,
        }
        return _finite(dataclasses.asdict(self) | derived | {"roofline": times})


def program_of(experiment: Experiment, devices: Sequence[jax.Device]) -> Program:
    """Returns the program that `launch` would compile on these devices.

    Raises:
      UserError: If they do not fill the mesh, or it does not cut batch or parameters.
    """
    trainer = experiment.make_trainer(experiment.make_sharding(devices))
    return Program(trainer, experiment.batch_size, experiment.sequence_length)


def compile_ahead(name: str, program: Program) -> tuple[Ahead, CompiledStep | None]:
    """Compiles the step; returns the report, and the step if a device has room for it.

    Args:
      name: For the report.
      program: Of any devices that there is a compiler for here.
    """
    mesh = program.sharding.mesh
    device = mesh.devices.flat[0]
    started, cpu_started = time.perf_counter(), time.process_time()
    step, refusal = None, None
    try:
        step = program.compile_step()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        refusal = _sentence(str(error))
    report = Ahead(
        name=name,
        device_kind=device.device_kind,
        mesh=dict(mesh.shape),
        num_slices=len(set(_slices(mesh))),
        compile_seconds=time.perf_counter() - started,
        compile_cpu_seconds=time.process_time() - cpu_started,
        model_flops=program.model_flops() / mesh.size,
        written_flops=program.written_flops() / mesh.size,
        memory_bytes=memory_of(device, mesh.size),
        refusal=refusal,
        argument_bytes=_size_of_arguments(program),
        peak_bytes=None if refusal is None else _needed(refusal),
    )
    return (report if step is None else _with_figures(report, step, mesh)), step


def _size_of_arguments(program: Program) -> int:
    """Returns the bytes of state and batch in the memory of a device."""
    arguments = program.abstract_state(), program.abstract_batch()
    return bytes_per_device(arguments) - bytes_on_host(arguments)


def _with_figures(report: Ahead, step: CompiledStep, mesh: Mesh) -> Ahead:
    arguments = step.run.memory_analysis().argument_size_in_bytes
    peak = _peak_bytes(step, mesh)
    does = hlo.read(step.run.as_text())
    exchanges, sent = _exchanges(does.collectives, mesh)
    chip = chip_of(mesh.devices.flat[0])
    times = chip and roofline(chip, does.flops, does.traffic, sent)
    return dataclasses.replace(
        report,
        argument_bytes=arguments,
        temp_bytes=peak - arguments,
        peak_bytes=peak,
        flops=does.flops,
        routed_flops=does.expected,
        unknown_kernels=tuple(sorted(does.unknown)),
        hbm_bytes=does.traffic,
        collectives=exchanges,
        roofline=times,
        mfu=times and chip and report.model_flops / times.seconds / chip.peak_flops,
    )


def _peak_bytes(step: CompiledStep, mesh: Mesh) -> int:
    """Returns the main memory that a step needs at its peak.

    libtpu's `temp_size_in_bytes` is more than the memory that it gives temporaries. Of
    llama2 7B on v5e:4x4, 6 rows of 2048 a chip, it is 11.3 GiB. The buffers lie in
    7.5 GiB, and at most 7.3 are in use at a time: the peak, without gaps.
    """
    if mesh.devices.flat[0].platform == "tpu":
        return step.run.memory_analysis().peak_memory_in_bytes
    return step.peak_bytes()


def _exchanges(
    collectives: Iterable[hlo.Collective], mesh: Mesh
) -> tuple[tuple[Exchange, ...], list[Sent]]:
    """Returns the collectives, like ones together, and what goes over each network."""
    slices, sent = _slices(mesh), []
    alike: dict[tuple, list[hlo.Collective]] = collections.defaultdict(list)
    for each in collectives:
        across = each.through_host or hlo.crosses(each.groups, slices)
        axes = hlo.axes_of(each.groups or _across(slices), mesh.shape)
        sent.append(Sent(each.wire, 0 if across else _dims(each.groups, mesh)))
        network = "dcn" if across else "ici"
        alike[each.kind, axes, each.group, network, each.in_loop].append(each)
    exchanges = [
        Exchange(
            *key,
            executions=sum(each.times for each in together),
            payload_bytes=sum(each.times * each.payload for each in together),
            wire_bytes=sum(each.wire for each in together),
            overlapped_wire_bytes=sum(each.wire for each in together if each.beside),
            beside_flops=sum(each.times * each.beside for each in together),
            source=max(together, key=lambda each: each.payload).source,
        )
        for key, together in alike.items()
    ]
    return tuple(sorted(exchanges, key=lambda each: -each.wire_bytes)), sent


def _finite(value: Any) -> Any:
    """Returns figures with None for NaN, which JSON lacks."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _slices(mesh: Mesh) -> list[int]:
    """Returns the slice of each device of a mesh, by its place."""
    return [getattr(device, "slice_index", None) or 0 for device in mesh.devices.flat]


def _across(slices: Sequence[int]) -> hlo.Groups:
    """Returns one group: the first place of each slice."""
    return (tuple({number: slices.index(number) for number in slices}.values()),)


def _dims(groups: hlo.Groups, mesh: Mesh) -> int:
    """Returns how many dims of the torus a group spans; at least one."""
    devices = mesh.devices.flat
    if not hasattr(devices[0], "coords"):
        return 1
    places = np.array([[devices[place].coords for place in group] for group in groups])
    spanned = np.any(places != places[:, :1], axis=(0, 1))
    return max(1, int(np.sum(spanned)))


def memory_of(device: jax.Device, num_devices: int) -> float | None:
    """Returns the bytes that a device has; of a CPU, its share of the host's."""
    if device.platform == "cpu":
        whole = host_bytes()
        return whole and whole / num_devices
    chip = chip_of(device)
    return chip and chip.hbm_bytes


def _sentence(error: str) -> str:
    """Returns what the compiler says, without its code and the lists that follow."""
    text = error.partition("RESOURCE_EXHAUSTED: ")[2] or error
    return text.strip().splitlines()[0]


def _needed(refusal: str) -> int | None:
    """Returns the bytes that a refusal speaks of: the first of its sizes."""
    found = re.search(r"\b(\d+(?:\.\d+)?)([KMGT])(?:i?B)?\b", refusal)
    return found and int(float(found.group(1)) * _UNITS[found.group(2)])
