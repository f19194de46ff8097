"""Arrays of weights that are not read yet."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class OnDisk:
    """An array that is read when it is wanted. To `jax.tree` it is a leaf.

    Args:
      abstract: Its shape and type.
      read: Reads it.
      read_part: Reads what it holds at an index of its first dim, such as one layer of
        a stack, without the rest; None: it cannot be read so.
    """

    abstract: jax.ShapeDtypeStruct
    read: Callable[[], jax.Array | np.ndarray]
    read_part: Callable[[int], np.ndarray] | None = None

    @property
    def dtype(self) -> Any:
        return self.abstract.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.abstract.shape


def in_memory(array: Any) -> Any:
    """Returns an array, read and put on the device if it is on disk."""
    return jnp.asarray(array.read()) if isinstance(array, OnDisk) else array
