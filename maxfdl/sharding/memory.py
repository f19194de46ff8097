"""Arrays in the memory of the host, and their way to the device."""

from typing import Any

import jax

HOST = "pinned_host"
"""Memory of the host that devices copy from and to by themselves."""


def on_device(tree: Any) -> Any:
    """Returns arrays of a traced function in the memory of the device.

    Those that are there already are left as they are. The gradient of one that came
    from the host goes back to the host.
    """

    def move(x: jax.Array) -> jax.Array:
        if jax.typeof(x).memory_space == jax.memory.Space.Device:
            return x
        return jax.device_put(x, jax.memory.Space.Device)

    return jax.tree.map(move, tree)
