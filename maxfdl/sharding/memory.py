"""Arrays in host memory, and their transfer to the device."""

from typing import Any

import jax

HOST = "pinned_host"
"""Memory of the host that devices copy from and to by themselves."""


def is_on_host(x: jax.Array) -> bool:
    """Returns whether an array of a traced function is in the memory of the host."""
    return jax.typeof(x).memory_space == jax.memory.Space.Host


def on_device(tree: Any) -> Any:
    """Returns the arrays of a traced function in device memory.

    Arrays that are there already stay. The gradient of an array that was fetched from
    host memory goes back to host memory.
    """

    def move(x: jax.Array) -> jax.Array:
        return jax.device_put(x, jax.memory.Space.Device) if is_on_host(x) else x

    return jax.tree.map(move, tree)


def beside(old: jax.Array, new: jax.Array) -> jax.Array:
    """Returns `new`, which is in device memory, in the memory of `old`."""
    return jax.device_put(new, jax.memory.Space.Host) if is_on_host(old) else new
