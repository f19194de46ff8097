"""What a parameter knows of itself, the same in both families of layers.

Sharding, weight decay, initialisation and tools read this; nothing matches names.
"""

import dataclasses
import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from maxfdl.errors import UserError
from maxfdl.ops.initializers import Initializer
from maxfdl.ops.state import Declaration

_LONGEST = 2**31 - 1  # what int32, the type of indices, counts to
_MOST = 2**60  # whose bytes int64 counts, in every type

DType = Literal["float32", "bfloat16", "float16", "float64"]
Role = Literal["kernel", "embedding", "scale", "bias"]


@dataclasses.dataclass(frozen=True)
class Parameter(Declaration):
    """The declaration of one array of weights.

    Args:
      shape: Shape inside one layer.
      axes: Logical name of each dim, which the sharding rules map to mesh axes.
      init: How it is drawn, called as `init(key, shape, fan_in)`.
      role: What it is to an optimizer: weight decay and learning rates go by it.
      contracted: Leading dims of a kernel that a product sums over; the rest are
        outputs. 0 for what is no kernel.
      batched: Dims before those that number kernels of the same kind, one per expert.
      repeats: Layers of the stack that holds it; the array has them as leading dim.
        None outside stacks.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    init: Initializer
    role: Role
    contracted: int = 0
    batched: int = 0
    repeats: int | None = None

    @classmethod
    def of_dims(
        cls, *dims: Mapping[str, int], init: Initializer, role: Role, **kwargs: int
    ) -> "Parameter":
        """Returns the declaration of an array by the name and size of each dim."""
        named = [pair for group in dims for pair in group.items()]
        shape = tuple(size for _, size in named)
        return cls(shape, tuple(name for name, _ in named), init, role, **kwargs)

    def __post_init__(self):
        assert len(self.shape) == len(self.axes), (self.shape, self.axes)
        # Here, because to draw it, even abstractly, fails in ways that tell nothing.
        sizes = self.full_shape
        fits = all(1 <= size <= _LONGEST for size in sizes)
        if not fits or math.prod(sizes) > _MOST:
            pairs = zip(self.full_axes, sizes, strict=True)
            dims = " x ".join(f"{axis} ({size})" for axis, size in pairs)
            raise UserError(
                f"A parameter with the dims {dims} cannot be: each must be from 1 to"
                f" {_LONGEST}, and all together at most {_MOST} numbers."
            )

    def draw(self, key: jax.Array) -> jax.Array:
        """Returns fresh float32 values; each layer of a stack has a key of its own.

        Layer i draws with `fold_in(key, i)`, so that weights do not depend on how a
        stack is cut or run.
        """
        if self.repeats is None:
            return self.init(key, self.shape, self.fan_in)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(self.repeats))
        return jax.vmap(lambda key: self.init(key, self.shape, self.fan_in))(keys)

    @property
    def fan_in(self) -> int:
        return math.prod(self.shape[self.batched :][: self.contracted])

    def abstract(self, dtype: str) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.full_shape, jnp.dtype(dtype))


def path_hash(path: str) -> int:
    """A number for a path that is the same in every process and version."""
    return zlib.crc32(path.encode())


def map_parameters(
    function: Callable[[str, Any], Any], tree: Mapping[str, Any], prefix: str = ""
) -> dict[str, Any]:
    """Returns the nested dict `tree` with `function(path, declaration)` at each leaf.

    The leaves are declarations, of parameters or of state.
    """
    result = {}
    for name, value in tree.items():
        path = f"{prefix}{name}"
        if isinstance(value, Declaration):
            result[name] = function(path, value)
        else:
            result[name] = map_parameters(function, value, f"{path}/")
    return result
