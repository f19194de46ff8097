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

      across: Axes that go across slices, which the data-centre network joins, the
        outermost first; the number of slices must divide their sizes. Without any, it
        is the outermost axis that can be cut into so many.

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
    across: tuple[str, ...] = ()

    @staticmethod
    def check_config(node):
        for axis in node.across:
            if axis not in (REPLICA, *axis_names()):
                yield (
                    f"MeshShape across names the axis {axis!r}, which must be one of"
                    f" {', '.join((REPLICA, *axis_names()))}."
                )
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
            for axis, size in self._named().items()
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

    def _named(self) -> dict[str, int]:
        """Returns the fields that are sizes of axes, the outermost first."""
        return {axis: getattr(self, axis) for axis in (REPLICA, *axis_names())}

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
            array = _on_network(sizes, devices, self.across)
        return jax.sharding.Mesh(array, tuple(sizes))


def axis_names() -> tuple[str, ...]:
    """Returns the names of the mesh axes of one replica, outermost first."""
    names = [field.name for field in dataclasses.fields(MeshShape)]
    return tuple(name for name in names if name not in (REPLICA, "across"))


def _on_network(
    sizes: dict[str, int], devices: Sequence[jax.Device], across: Sequence[str]
) -> np.ndarray:
    """Returns the devices of a mesh of this shape, neighbours on the network together.

    Raises:
      UserError: If the axes cannot go across the slices.
    """
    from jax.experimental import mesh_utils

    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return mesh_utils.create_device_mesh(
            tuple(sizes.values()), devices, allow_split_physical_axes=True
        )
    parts = parts_across(sizes, slices, across)
    return mesh_utils.create_hybrid_device_mesh(
        [size // parts[axis] for axis, size in sizes.items()],
        [parts[axis] for axis in sizes],
        devices,
        allow_split_physical_axes=True,
    )


def parts_across(
    sizes: dict[str, int], slices: int, across: Sequence[str]
) -> dict[str, int]:
    """Returns into how many parts each axis goes across slices: 1, all in one slice.

    Args:
      sizes: Of the axes.
      slices: How many there are.
      across: Axes that may, as in `MeshShape`.

    Raises:
      UserError: If their sizes do not have the number of slices as a factor.
    """
    able = [axis for axis, size in sizes.items() if size % slices == 0][:1]
    parts, left = dict.fromkeys(sizes, 1), slices
    for axis in across or able:
        parts[axis] = math.gcd(sizes.get(axis, 1), left)
        left //= parts[axis]
    if left > 1:
        must = " x ".join(across) or "one"
        raise UserError(
            f"mesh axes of the sizes {sizes} must have {must} of a multiple of the"
            f" number of slices ({slices}); give it such a size, or name others in"
            " across."
        )
    return parts
