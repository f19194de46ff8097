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
import numpy as np

from maxfdl.errors import UserError
from maxfdl.ops.codec import Codec, PackedKernel, Part, Parts
from maxfdl.ops.initializers import Initializer
from maxfdl.ops.state import Declaration
from maxfdl.ops.straight_through import straight_through

_LONGEST = 2**31 - 1  # what int32, the type of indices, counts to
_MOST = 2**60  # whose bytes int64 counts, in every type

DType = Literal["float32", "bfloat16", "float16", "float64"]
"""Types that weights are trained in, or frozen."""

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
      stack_dim: Logical name of that dim.
      trained: Whether training changes it; see `maxfdl.layers.frozen`.
      dtype: Type it is stored in; None is the model's `param_dtype`.
      packing: Of which kernel it is a part, if that is stored in a few bits.
      simulates: In what products see the values, see `Simulated`; None: as they are.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    init: Initializer
    role: Role
    contracted: int = 0
    batched: int = 0
    repeats: int | None = None
    stack_dim: str = "layers"
    trained: bool = True
    dtype: str | None = None
    packing: "Packing | None" = None
    simulates: Codec | None = None

    @classmethod
    def of_dims(
        cls, *dims: Mapping[str, int], init: Initializer, role: Role, **kwargs: Any
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
        stack is cut or run. A part of a packed kernel is that of the kernel so drawn.
        """
        if self.packing is not None:
            return self.part_of(self.whole.draw(key))
        if self.repeats is None:
            return self.init(key, self.shape, self.fan_in)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(self.repeats))
        return jax.vmap(lambda key: self.init(key, self.shape, self.fan_in))(keys)

    @property
    def whole(self) -> "Parameter":
        """The kernel that it is a part of; itself if it is none."""
        return self if self.packing is None else self.packing.whole

    def part_of(self, values: Any) -> Any:
        """Returns what is stored here of the values of the kernel `whole`."""
        if self.packing is None:
            return values
        return self.packing.encode(values)[self.packing.part]

    def simulated(self, values: jax.Array) -> jax.Array:
        """Returns the values of one layer as products see them."""
        if self.simulates is None:
            return values
        packing = Packing(self.simulates, "codes", self)

        def stored(values: jax.Array) -> jax.Array:
            return packing.kernel(**packing.encode(values)).unpacked()

        return straight_through(stored, values)

    def stacked(self, repeats: int, dim: str = "layers") -> "Parameter":
        one = super().stacked(repeats, dim)
        if self.packing is None:
            return one
        whole = self.packing.whole.stacked(repeats, dim)
        return dataclasses.replace(
            one, packing=dataclasses.replace(self.packing, whole=whole)
        )

    @property
    def fan_in(self) -> int:
        return math.prod(self.shape[self.batched :][: self.contracted])

    def abstract(self, dtype: str) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.full_shape, jnp.dtype(dtype))


@dataclasses.dataclass(frozen=True)
class Packing:
    """How a kernel is stored that is packed, and which part of it an array is.

    Codes and scales are [*batched, inputs, outputs]: the contracted dims of the kernel
    are one, and so are the others.

    Args:
      codec: Makes the parts of the kernel, and the kernel of the parts.
      part: The part.
      whole: Declaration of the kernel.
    """

    codec: Codec
    part: Part
    whole: Parameter

    def encode(self, kernel: Any) -> Parts:
        """Returns all parts of the values of a kernel, or of several along first dims.

        Takes NumPy arrays, too.
        """
        return self.codec.encode(self._flat(kernel))

    def exactly(self, numbers: np.ndarray, scales: np.ndarray) -> Parts | None:
        """Returns the parts of a kernel that is rounded already, as `Codec.exactly`."""
        return self.codec.exactly(self._flat(numbers), self._flat(scales))

    def apart(self, codes: np.ndarray, scales: np.ndarray) -> list[np.ndarray]:
        """Returns the numbers of a kernel in NumPy, and the scale of each."""
        dims = self.whole.shape[self.whole.batched :]
        parts: Parts = {"codes": codes, "scales": scales}
        flat = self.codec.apart(parts, math.prod(dims[: self.whole.contracted]))
        return [x.reshape(*x.shape[:-2], *dims) for x in flat]

    def _flat(self, kernel: Any) -> Any:
        dims = self.whole.shape[self.whole.batched :]
        lead = kernel.shape[: kernel.ndim - len(dims)]
        return kernel.reshape(*lead, *_flat(self.whole)[-2:])

    def kernel(self, codes: Any, scales: Any) -> PackedKernel:
        """Returns the kernel of its parts, or several of such along first dims."""
        dims = self.whole.shape[self.whole.batched :]
        inputs, outputs = dims[: self.whole.contracted], dims[self.whole.contracted :]
        return PackedKernel(
            codes=codes, scales=scales, codec=self.codec, inputs=inputs, outputs=outputs
        )


def packed(kernel: Parameter, codec: Codec) -> dict[Part, Parameter]:
    """Returns the declarations of the parts of a kernel, which are not trained.

    A dim of a part is cut over a mesh as the first of the dims that it stands for. The
    scales of groups of inputs or outputs are whole on every device.
    """
    inputs, outputs = _axis_of_each(kernel)
    batch = kernel.axes[: kernel.batched]
    scale_axes = (
        inputs if codec.inputs == 1 else GROUPS,
        outputs if codec.outputs == 1 else GROUPS,
    )
    axes = {"codes": (*batch, inputs, outputs), "scales": (*batch, *scale_axes)}
    declared = codec.declare(_flat(kernel))
    return {
        part: Parameter(
            shape,
            axes[part],
            kernel.init,
            "kernel",
            contracted=1,
            batched=kernel.batched,
            trained=False,
            dtype=dtype,
            packing=Packing(codec, part, kernel),
        )
        for part, (shape, dtype) in declared.items()
    }


SUFFIXES: dict[Part, str] = {"codes": "", "scales": "_scale"}
"""What is added to the name of a kernel for each of its parts."""

GROUPS = "groups"
"""Logical name of a dim that counts groups of weights with a scale each."""


def _flat(kernel: Parameter) -> tuple[int, ...]:
    """Returns the shape [*batched, inputs, outputs] of a kernel."""
    batch, rest = kernel.shape[: kernel.batched], kernel.shape[kernel.batched :]
    inputs, outputs = rest[: kernel.contracted], rest[kernel.contracted :]
    return (*batch, math.prod(inputs), math.prod(outputs))


def _axis_of_each(kernel: Parameter) -> tuple[str, str]:
    """Returns the names of the dims of inputs and of outputs: of the first of each."""
    axes = kernel.axes[kernel.batched :]
    inputs, outputs = axes[: kernel.contracted], axes[kernel.contracted :]
    return inputs[0], outputs[0] if outputs else GROUPS


def wholes(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Returns declarations with those of kernels in place of those of their parts."""
    result = {}
    for name, value in parameters.items():
        if not isinstance(value, Parameter):
            result[name] = wholes(value)
        elif value.packing is None or value.packing.part == "codes":
            result[name] = value.whole
    return result


def whole_path(path: str, parameter: Parameter) -> str:
    """Returns the path of the kernel that the parameter at `path` is a part of."""
    packing = parameter.packing
    return path if packing is None else path.removesuffix(SUFFIXES[packing.part])


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
