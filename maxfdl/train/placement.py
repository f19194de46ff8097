"""Where the training state lies: sharded over replicas or not, on device or host."""

import dataclasses
from typing import Any, Literal

from jax.sharding import NamedSharding, PartitionSpec

from maxfdl.layers.parameter import Parameter, map_parameters
from maxfdl.ops.state import StateDeclaration
from maxfdl.sharding.memory import HOST
from maxfdl.sharding.sharding import DATA, Sharding
from maxfdl.sharding.spec import only

Memory = Literal["device", "host"]


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where parameters and optimizer state lie.

    Args:
      optimizer: `replicated`: every data-parallel replica keeps all optimizer state.
        `sharded`: each keeps and updates a share; gradients are reduce-scattered to it
        and parameters all-gathered from it, once a step: ZeRO-1, Rajbhandari et al.
        2020, https://arxiv.org/abs/1910.02054. The state of a parameter without a dim
        that divides evenly stays replicated.
      memory: Of optimizer state: `device`, or `host`: fetched layer by layer for the
        update, then written back, which moves twice its bytes a step. On the device
        are at most one layer of each stack, and what is in no stack.
      param_memory: Of parameters: `device`, or `host`: fetched layer by layer where
        they are used, and again for the update. Without remat, the backward pass keeps
        the fetched copies. Gradients are in device memory.
    """

    optimizer: Literal["replicated", "sharded"] = "replicated"
    memory: Memory = "device"
    param_memory: Memory = "device"

    def cuts(self, parameters: dict, sharding: Sharding, axis: str = DATA) -> Any:
        """Returns which dim of each gradient is sharded over replicas, as a spec.

        Args:
          parameters: Declarations.
          sharding: Mesh and rules.
          axis: The mesh axis of the replicas: `data`, or DiLoCo's.
        """

        def cut(path: str, parameter: Parameter) -> PartitionSpec:
            further = self._of_moment(parameter, sharding, axis)
            return PartitionSpec(*(e if e == axis else None for e in further))

        return map_parameters(cut, parameters)

    def shares(self, parameters: dict, sharding: Sharding) -> Any:
        """Returns how each parameter is cut along the axes `Sharding.parallel`."""

        def share(path: str, parameter: Parameter) -> PartitionSpec:
            return sharding.spec(parameter.full_axes, only=sharding.parallel)

        return map_parameters(share, parameters)

    def shares_of_moments(self, parameters: dict, sharding: Sharding) -> Any:
        """Returns the same of optimizer state, which may be cut further."""

        def share(path: str, parameter: Parameter) -> PartitionSpec:
            spec = self._of_moment(parameter, sharding, DATA)
            return only(spec, sharding.parallel)

        return map_parameters(share, parameters)

    def of_moments(self, parameters: dict, sharding: Sharding, axis: str = DATA) -> Any:
        """Returns the sharding of optimizer state with the shape of a parameter.

        Arguments as for `cuts`.
        """

        def place(path: str, parameter: Parameter) -> NamedSharding:
            spec = self._of_moment(parameter, sharding, axis)
            return _in(self.memory, NamedSharding(sharding.mesh, spec))

        return map_parameters(place, parameters)

    def of_params(self, parameters: dict, sharding: Sharding) -> Any:
        """Returns the sharding of each parameter.

        Raises:
          UserError: If the mesh cannot cut one as the rules say.
        """

        def place(path: str, parameter: Parameter) -> NamedSharding:
            sharding.check(path, parameter.full_shape, parameter.full_axes)
            return _in(self.param_memory, sharding.named(parameter.full_axes))

        return map_parameters(place, parameters)

    def of_state(self, declared: dict, sharding: Sharding) -> Any:
        """Returns where each state of a layer lies: on the device, as the rules say."""

        def place(path: str, state: StateDeclaration) -> NamedSharding:
            sharding.check(path, state.full_shape, state.full_axes)
            return sharding.named(state.full_axes)

        return map_parameters(place, declared)

    def _of_moment(
        self, parameter: Parameter, sharding: Sharding, axis: str
    ) -> PartitionSpec:
        """Returns the spec of optimizer state that is sharded over `data` and `axis`,
        if optimizer state is sharded."""
        spec = sharding.spec(parameter.full_axes)
        if self.optimizer == "replicated":
            return spec
        spec = self._cut(spec, parameter, DATA, sharding.data_parallel)
        if axis == DATA:
            return spec
        return self._cut(spec, parameter, axis, sharding.size(axis))

    def _cut(
        self, spec: PartitionSpec, parameter: Parameter, axis: str, parts: int
    ) -> PartitionSpec:
        """Returns a spec with one more dim sharded by `axis`, if one divides evenly.

        The first choice is the dim of layers, which leaves matrices whole, as Muon
        needs them; not in host memory, which is fetched layer by layer. Then the
        longest dim.
        """
        if parts == 1:
            return spec
        shape = parameter.full_shape
        entries = [*spec, *[None] * (len(shape) - len(spec))]
        free = [d for d, e in enumerate(entries) if e is None and not shape[d] % parts]
        layers = [d for d in free if parameter.full_axes[d] == parameter.stack_dim]
        others = sorted(set(free) - set(layers), key=lambda d: -shape[d])
        on_host = "host" in (self.memory, self.param_memory)
        choices = others if on_host else layers + others
        if not choices:
            return spec
        entries[choices[0]] = axis
        return PartitionSpec(*entries)


def _in(memory: Memory, sharding: NamedSharding) -> NamedSharding:
    return sharding if memory == "device" else sharding.with_memory_kind(HOST)
