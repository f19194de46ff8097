"""Memory that arrays need, against the memory that there is, before allocation."""

import math
import os
import pathlib
from typing import Any

import jax
from jax.sharding import SingleDeviceSharding

from maxfdl.errors import UserError
from maxfdl.sharding.memory import HOST

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_LIMITS_OF_CONTAINERS = (
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
)


def check_room(arrays: Any, what: str) -> None:
    """Refuses arrays that do not fit into memory together.

    Args:
      arrays: A tree of abstract arrays with their shardings, over devices of this
        process. What else a program needs, such as activations, is not counted.
      what: Beginning of the error message, such as `a run needs`.

    Raises:
      UserError: If they take more than a device of this process has, or its host.
    """
    on_device, on_host = bytes_per_device(arrays), bytes_on_host(arrays)
    on_device -= on_host
    devices = _local_devices(arrays)
    if devices and devices[0].platform == "cpu":  # whose memory is that of the host
        on_device, on_host = 0, on_device + on_host
    limits = [
        (on_device, (device.memory_stats() or {}).get("bytes_limit"), f"on {device}")
        for device in devices
        if on_device
    ]
    limits.append((on_host * len(devices), host_bytes(), "on this host"))
    for need, room, where in limits:
        if room is not None and need > room:
            count = sum(math.prod(x.shape) for x in jax.tree.leaves(arrays))
            raise UserError(
                f"{what} {size_text(need)} of memory {where} for arrays of {count:,}"
                f" numbers, and there are {size_text(room)}; take a smaller model, more"
                " devices, or types of fewer bytes."
            )


def on_one_device(arrays: Any) -> Any:
    """Returns abstract arrays that all lie on the first device."""
    place = SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), arrays
    )


def bytes_per_device(tree: Any) -> int:
    """Returns the bytes that one device keeps of a tree of arrays, maybe abstract."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def bytes_on_host(tree: Any) -> int:
    """Returns those of `bytes_per_device` that are in the memory of the host."""
    leaves = jax.tree.leaves(tree)
    return bytes_per_device([x for x in leaves if x.sharding.memory_kind == HOST])


def host_bytes() -> int | None:
    """Returns the memory and the swap space that this process may use, if known."""
    try:
        found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") + _swap()]
    except (OSError, ValueError):
        return None
    for file in map(pathlib.Path, _LIMITS_OF_CONTAINERS):
        text = file.read_text("utf-8").strip() if file.is_file() else ""
        found += [int(text)] if text.isdigit() else []
    return min(found)


def _swap() -> int:
    info = pathlib.Path("/proc/meminfo")
    lines = info.read_text("utf-8").splitlines() if info.is_file() else []
    kibibytes = [line.split()[1] for line in lines if line.startswith("SwapTotal:")]
    return sum(map(int, kibibytes)) * 1024


def _local_devices(arrays: Any) -> list[jax.Device]:
    devices = {
        device
        for leaf in jax.tree.leaves(arrays)
        for device in leaf.sharding.addressable_devices
    }
    return sorted(devices, key=lambda device: device.id)


def size_text(number: int) -> str:
    """Returns bytes in the unit that fits: `512 B`, `1.5 MiB`, `100.4 GiB`."""
    power = min(max(number.bit_length() - 1, 0) // 10, len(_UNITS) - 1)
    digits = 1 if power else 0
    return f"{number / 1024**power:.{digits}f} {_UNITS[power]}"
