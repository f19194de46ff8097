"""The shape of the device mesh."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np

from maxfdl.errors import UserError


@dataclasses.dataclass(frozen=True)
class MeshShape:
    """Number of devices along each mesh axis; one of them may be -1: all that are left.

    Args:
      data: Data-parallel replicas of the parameters; each computes other rows.
      fsdp: Shards of the parameters, which are all-gathered for use; each computes
        other rows, too.
      tensor: Tensor-parallel shards of matrix products; all compute the same rows.
    """

    data: int = 1
    fsdp: int = -1
    tensor: int = 1

    @staticmethod
    def check_config(node):
        sizes = {name: getattr(node, name) for name in axis_names()}
        if any(size < 1 and size != -1 for size in sizes.values()):
            yield f"MeshShape axes ({sizes}) must be positive, or -1 for the rest."
        if list(sizes.values()).count(-1) > 1:
            yield f"MeshShape axes ({sizes}) may have one -1."
        if max(sizes.values()) > 2**31 - 1:
            yield f"MeshShape axes ({sizes}) must be below 2**31."

    def sizes(self, num_devices: int) -> dict[str, int]:
        """Returns the size of each axis on `num_devices` devices.

        Raises:
          UserError: If the axes do not multiply to the number of devices.
        """
        sizes = dataclasses.asdict(self)
        fixed = math.prod(size for size in sizes.values() if size != -1)
        sizes = {k: num_devices // fixed if v == -1 else v for k, v in sizes.items()}
        if math.prod(sizes.values()) != num_devices:
            raise UserError(
                f"mesh {dataclasses.asdict(self)} does not fit {num_devices} devices:"
                " the axes must multiply to that number; set one of them to -1 to"
                " take what is left."
            )
        return sizes

    def build(self, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
        """Returns the mesh over `devices` (default: all), tensor axis innermost.

        An axis of the physical network is split between two mesh axes only if no
        assignment of whole axes fits.
        """
        devices = jax.devices() if devices is None else devices
        sizes = self.sizes(len(devices))
        if devices[0].platform == "cpu":
            array = np.asarray(devices).reshape(tuple(sizes.values()))
        else:
            from jax.experimental import mesh_utils

            array = mesh_utils.create_device_mesh(
                tuple(sizes.values()), devices, allow_split_physical_axes=True
            )
        return jax.sharding.Mesh(array, tuple(sizes))


def axis_names() -> tuple[str, ...]:
    """Returns the names of the mesh axes, outermost first."""
    return tuple(field.name for field in dataclasses.fields(MeshShape))
