"""Where the state of training lies: cut over replicas or not, on device or host."""

import dataclasses
from typing import Any, Literal

from jax.sharding import NamedSharding, PartitionSpec

from maxfdl.layers.parameter import Parameter, map_parameters
from maxfdl.ops.state import StateDeclaration
from maxfdl.sharding.memory import HOST
from maxfdl.sharding.sharding import REPLICAS, Sharding

Memory = Literal["device", "host"]


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where parameters lie, and what optimizer and updates keep of each.

    Args:
      optimizer: `replicated` along the mesh axis of replicas, as the parameters are;
        `sharded`: each replica keeps and updates its share of the optimizer's state,
        the gradients reach it by one reduce-scatter, and the parameters by one
        all-gather: ZeRO-1, Rajbhandari et al. 2020, https://arxiv.org/abs/1910.02054.
        A parameter that has no dim to cut evenly stays whole.
      memory: Of that state: `device`, or `host`, from where that of one layer after the
        other comes for the update and whereto it returns: twice its bytes of traffic a
        step. At no time is more on the device than a layer's of each stack, and what
        belongs to no stack.
      param_memory: Of parameters: `device`, or `host`, from where each comes at its
        place of use, layer by layer, and once more for the update. Without remat the
        backward pass keeps what came. Gradients are on the device for the update.
    """

    optimizer: Literal["replicated", "sharded"] = "replicated"
    memory: Memory = "device"
    param_memory: Memory = "device"

    def cuts(self, parameters: dict, sharding: Sharding) -> Any:
        """Returns for each gradient the dim that replicas share out, as a spec."""

        def cut(path: str, parameter: Parameter) -> PartitionSpec:
            spec = sharding.spec(parameter.full_axes)
            further = self._cut(spec, parameter, sharding)
            return PartitionSpec(*(e if e == REPLICAS else None for e in further))

        return map_parameters(cut, parameters)

    def of_moments(self, parameters: dict, sharding: Sharding) -> Any:
        """Returns where state of the optimizer that is like a parameter lies."""

        def place(path: str, parameter: Parameter) -> NamedSharding:
            spec = sharding.spec(parameter.full_axes)
            cut = self._cut(spec, parameter, sharding)
            return _in(self.memory, NamedSharding(sharding.mesh, cut))

        return map_parameters(place, parameters)

    def of_params(self, parameters: dict, sharding: Sharding) -> Any:
        """Returns where each parameter lies.

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

    def _cut(
        self, spec: PartitionSpec, parameter: Parameter, sharding: Sharding
    ) -> PartitionSpec:
        """Returns a parameter's spec with one more dim cut, if there is one.

        Layers come first, so that what looks at whole matrices finds them, but not on
        the host, from where they come one by one; then the longest dim.
        """
        parts = sharding.num_replicas
        if self.optimizer == "replicated" or parts == 1:
            return spec
        shape = parameter.full_shape
        entries = [*spec, *[None] * (len(shape) - len(spec))]
        free = [d for d, e in enumerate(entries) if e is None and not shape[d] % parts]
        layers = [d for d in free if parameter.full_axes[d] == "layers"]
        others = sorted(set(free) - set(layers), key=lambda d: -shape[d])
        on_host = "host" in (self.memory, self.param_memory)
        choices = others if on_host else layers + others
        if not choices:
            return spec
        entries[choices[0]] = REPLICAS
        return PartitionSpec(*entries)


def _in(memory: Memory, sharding: NamedSharding) -> NamedSharding:
    return sharding if memory == "device" else sharding.with_memory_kind(HOST)
