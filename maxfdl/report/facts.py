"""Sizes, places and costs of a run, without allocating any of it.

The mesh is abstract, so that it may have more devices than there are here.
"""

import collections
import dataclasses
import functools
import math
import operator
from typing import Any

from jax.sharding import AbstractMesh, AxisType

from maxfdl.experiment import Experiment
from maxfdl.layers.parameter import Parameter, map_parameters
from maxfdl.sharding.mesh import REPLICA, MeshShape, axis_names
from maxfdl.sharding.room import bytes_on_host, bytes_per_device
from maxfdl.sharding.sharding import Sharding
from maxfdl.train.diloco import DiLoCo
from maxfdl.train.program import Program
from maxfdl.train.trainer import State, Trainer

_BATCH_AXES = ("batch", "sequence")

Spec = tuple[None | str | tuple[str, ...], ...]
"""For each dim the mesh axis or axes that cut it, as in a PartitionSpec."""


@dataclasses.dataclass(frozen=True)
class ParameterFacts:
    """One array of weights; `path` is that of the parameter tree.

    `size` is how many weights it holds: of a kernel packed in codes and scales, the
    codes hold all, and the scales none.
    """

    path: str
    role: str
    shape: tuple[int, ...]
    dtype: str
    axes: tuple[str, ...]
    sharding: Spec
    bytes_per_device: int
    trained: bool
    size: int


@dataclasses.dataclass(frozen=True)
class ReplicaFacts:
    """The replicas of DiLoCo.

    Args:
      count: How many there are.
      bytes_per_device: By name, what they have of their own in the memory of a device:
        a part of the state.
      bytes_sent_per_step: Mean bytes that one gives to exchanges.
    """

    count: int
    bytes_per_device: dict[str, int]
    bytes_sent_per_step: float


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a run takes.

    Args:
      parameters: Every array of weights.
      mesh: Devices along each mesh axis.
      batch_size, sequence_length: Of the global batch.
      batch_sharding: Of [batch_size, sequence_length].
      state_bytes_per_device: By top-level name of the train state, what lies in the
        memory of a device.
      state_bytes_on_host: Likewise, what lies in that of its host.
      replicas: Of DiLoCo; None for the standard trainer.
      flops_per_step: Of the matrix products forward and backward (three times the
        forward pass); causal attention counts half, recomputation does not count.
    """

    parameters: tuple[ParameterFacts, ...]
    mesh: dict[str, int]
    batch_size: int
    sequence_length: int
    batch_sharding: Spec
    state_bytes_per_device: dict[str, int]
    state_bytes_on_host: dict[str, int]
    replicas: ReplicaFacts | None
    flops_per_step: int

    @property
    def num_devices(self) -> int:
        return math.prod(self.mesh.values())

    @property
    def num_parameters(self) -> int:
        return sum(parameter.size for parameter in self.parameters)

    @property
    def num_frozen_parameters(self) -> int:
        return sum(each.size for each in self.parameters if not each.trained)

    @property
    def num_parameters_by_role(self) -> dict[str, int]:
        """Counts by what they are to an optimizer, the largest first."""
        counts: collections.Counter[str] = collections.Counter()
        for parameter in self.parameters:
            counts[parameter.role] += parameter.size
        return dict(counts.most_common())

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.sequence_length

    @property
    def flops_per_token(self) -> float:
        return self.flops_per_step / self.tokens_per_step

    def as_json(self) -> dict[str, Any]:
        """Returns fields and totals as what JSON holds; `replicas` if there are any."""
        by_memory = ("state_bytes_per_device", "state_bytes_on_host")
        states = {name: getattr(self, name) for name in by_memory}
        totals = (
            "num_parameters",
            "num_frozen_parameters",
            "num_parameters_by_role",
            "num_devices",
            "tokens_per_step",
            "flops_per_token",
        )
        fields = dataclasses.asdict(self)
        if self.replicas is None:
            del fields["replicas"]
        return {
            **{name: getattr(self, name) for name in totals},
            **fields,
            **{k: {**v, "total": sum(v.values())} for k, v in states.items()},
        }


def facts_of(experiment: Experiment, devices_here: int) -> Facts:
    """Returns the facts of a run on the mesh that the experiment asks for.

    Raises:
      UserError: If the mesh does not cut the batch and every parameter evenly.
    """
    program = planned_program(experiment, devices_here)
    sharding, trainer = program.sharding, program.trainer
    state = program.abstract_state()
    return Facts(
        parameters=_parameters(trainer.model.parameters(), state["params"]),
        mesh=dict(sharding.mesh.shape),
        batch_size=experiment.batch_size,
        sequence_length=experiment.sequence_length,
        batch_sharding=tuple(sharding.spec(_BATCH_AXES)),
        state_bytes_per_device={
            k: bytes_per_device(v) - bytes_on_host(v) for k, v in state.items()
        },
        state_bytes_on_host={k: bytes_on_host(v) for k, v in state.items()},
        replicas=_replicas(trainer, state),
        flops_per_step=program.model_flops(),
    )


def _replicas(trainer: Trainer, state: State) -> ReplicaFacts | None:
    if not isinstance(trainer, DiLoCo):
        return None
    own = state["replicas"].items()
    return ReplicaFacts(
        count=trainer.num_replicas,
        bytes_per_device={k: bytes_per_device(v) - bytes_on_host(v) for k, v in own},
        bytes_sent_per_step=trainer.bytes_sent_per_step,
    )


def planned_program(experiment: Experiment, devices_here: int) -> Program:
    """Returns the step on the mesh that an experiment asks for, which is abstract.

    Raises:
      UserError: If the mesh does not cut the batch evenly.
    """
    trainer = experiment.make_trainer(planned_sharding(experiment, devices_here))
    return Program(trainer, experiment.batch_size, experiment.sequence_length)


def planned_sharding(experiment: Experiment, devices_here: int) -> Sharding:
    """Returns the rules on the mesh that an experiment asks for, which is abstract.

    Raises:
      UserError: If the mesh does not cut the batch evenly.
    """
    sizes = experiment.mesh.sizes(_planned_devices(experiment.mesh, devices_here))
    # It has no devices, and nothing that is asked of it here needs them.
    mesh: Any = AbstractMesh(
        tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes)
    )
    sharding = Sharding(mesh, experiment.sharding)
    experiment.check_rows(sharding)
    return sharding


def _planned_devices(mesh: MeshShape, devices_here: int) -> int:
    """Returns how many devices the mesh names; an axis of -1 has at least one."""
    sizes = [getattr(mesh, axis) for axis in (REPLICA, *axis_names())]
    named = math.prod(size for size in sizes if size != -1)
    return max(named, devices_here) if -1 in sizes else named


def _weights(parameter: Parameter) -> int:
    packing = parameter.packing
    return parameter.whole.size if packing is None or packing.part == "codes" else 0


def _parameters(declared: dict, params: dict) -> tuple[ParameterFacts, ...]:
    found = []

    def add(path: str, parameter: Parameter) -> None:
        leaf: Any = functools.reduce(operator.getitem, path.split("/"), params)
        found.append(
            ParameterFacts(
                path=path,
                role=parameter.role,
                shape=leaf.shape,
                dtype=leaf.dtype.name,
                axes=parameter.full_axes,
                sharding=tuple(leaf.sharding.spec),
                bytes_per_device=bytes_per_device(leaf),
                trained=parameter.trained,
                size=_weights(parameter),
            )
        )

    map_parameters(add, declared)
    return tuple(found)
