"""Arrays in the memory of the host, and their way to the device."""

from typing import Any

import jax

HOST = "pinned_host"
"""Memory of the host that devices copy from and to by themselves."""


def is_on_host(x: jax.Array) -> bool:
    """Returns whether an array of a traced function is in the memory of the host."""
    return jax.typeof(x).memory_space == jax.memory.Space.Host


def on_device(tree: Any) -> Any:
    """Returns arrays of a traced function in the memory of the device.

    Those that are there already are left as they are. The gradient of one that came
    from the host goes back to the host.
    """

    def move(x: jax.Array) -> jax.Array:
        return jax.device_put(x, jax.memory.Space.Device) if is_on_host(x) else x

    return jax.tree.map(move, tree)


def beside(old: jax.Array, new: jax.Array) -> jax.Array:
    """Returns `new`, which is on the device, in the memory in which `old` is."""
    return jax.device_put(new, jax.memory.Space.Host) if is_on_host(old) else new
