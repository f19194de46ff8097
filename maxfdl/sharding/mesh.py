"""The shape of the device mesh."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np

from maxfdl.errors import UserError

REPLICA = "replica"
"""The mesh axis along which DiLoCo replicas train apart."""

STAGE = "stage"
"""The mesh axis along which the stages of a pipeline lie."""

_ALWAYS = ("data", "fsdp", "tensor")


@dataclasses.dataclass(frozen=True)
class MeshShape:
    """Number of devices along each mesh axis; one of them may be -1: all that are left.

    Args:
      replica: DiLoCo replicas, or groups of them, which exchange nothing but at a sync:
        the outermost axis, across slices or data centres. It is never -1.
      data: Data-parallel replicas of the parameters; each computes other rows.
      fsdp: Shards of the parameters, which are all-gathered for use; each computes
        other rows, too.
      stage: Stages of a pipeline; each holds some of the layers.
      context: Shards of the sequence; each computes other positions of the same rows.
      tensor: Tensor-parallel shards of matrix products; all compute the same rows.
      expert: Shards of the experts of an MoE layer; each computes other rows, whose
        tokens travel to the experts and back.

    The axes replica, stage, context and expert are left out of the mesh where they
    have one device.
    """

    replica: int = 1
    data: int = 1
    fsdp: int = -1
    stage: int = 1
    context: int = 1
    tensor: int = 1
    expert: int = 1

    @staticmethod
    def check_config(node):
        sizes = {name: getattr(node, name) for name in axis_names()}
        sizes = {name: size for name, size in sizes.items() if size != 1}
        if any(size < 1 and size != -1 for size in sizes.values()):
            yield f"MeshShape axes ({sizes}) must be positive, or -1 for the rest."
        if list(sizes.values()).count(-1) > 1:
            yield f"MeshShape axes ({sizes}) may have one -1."
        if max(sizes.values(), default=1) > 2**31 - 1:
            yield f"MeshShape axes ({sizes}) must be below 2**31."

    def sizes(self, num_devices: int) -> dict[str, int]:
        """Returns the size of each axis on `num_devices` devices.

        Raises:
          UserError: If the axes do not multiply to the number of devices.
        """
        named = {
            axis: size
            for axis, size in dataclasses.asdict(self).items()
            if size != 1 or axis in _ALWAYS
        }
        fixed = math.prod(size for size in named.values() if size != -1)
        sizes = {k: num_devices // fixed if v == -1 else v for k, v in named.items()}
        if math.prod(sizes.values()) != num_devices:
            raise UserError(
                f"mesh {named} does not fit {num_devices} devices:"
                " the axes must multiply to that number; set one of them to -1 to"
                " take what is left."
            )
        return sizes

    def build(self, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
        """Returns the mesh over `devices` (default: all), the last axis innermost.

        An axis of the physical network is split between two mesh axes only if no
        assignment of whole axes fits.
        """
        devices = jax.devices() if devices is None else devices
        sizes = self.sizes(len(devices))
        if devices[0].platform == "cpu":
            array = np.asarray(devices).reshape(tuple(sizes.values()))
        else:
            array = _on_network(tuple(sizes.values()), devices)
        return jax.sharding.Mesh(array, tuple(sizes))


def axis_names() -> tuple[str, ...]:
    """Returns the names of the mesh axes of one replica, outermost first."""
    names = [field.name for field in dataclasses.fields(MeshShape)]
    return tuple(name for name in names if name != REPLICA)


def _on_network(sizes: tuple[int, ...], devices: Sequence[jax.Device]) -> np.ndarray:
    """Returns the devices of a mesh of this shape, neighbours on the network together.

    Of several slices, which the data-centre network joins, each is a part of the
    outermost axis that can be cut into so many.

    Raises:
      UserError: If no axis can.
    """
    from jax.experimental import mesh_utils

    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return mesh_utils.create_device_mesh(
            sizes, devices, allow_split_physical_axes=True
        )
    across = [dim for dim, size in enumerate(sizes) if size % slices == 0]
    if not across:
        raise UserError(
            f"mesh axes of the sizes {sizes} must have one that is a multiple of the"
            f" number of slices ({slices}); give replica or data that size."
        )
    of_slices = [slices if dim == across[0] else 1 for dim in range(len(sizes))]
    within = [size // n for size, n in zip(sizes, of_slices, strict=True)]
    return mesh_utils.create_hybrid_device_mesh(
        within, of_slices, devices, allow_split_physical_axes=True
    )
