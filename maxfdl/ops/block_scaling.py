"""Formats in which a few numbers along a dim share a scale: MXFP8, MXFP4 and NVFP4.

The MX formats are those of OCP Microscaling Formats (MX) 1.0,
https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf:
32 numbers share a power of two. NVFP4 is that of NVIDIA 2025,
https://arxiv.org/abs/2509.25149: 16 numbers share a scale in FP8 e4m3, and the tensor
has one in float32.

Every number times its scale has at most 8 significant bits, so bfloat16 holds it. The
scale of a tensor is not part of that; it multiplies results.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from maxfdl.ops.contraction import greatest_magnitude
from maxfdl.ops.row_blocks import padded

Format = Literal["mxfp8", "mxfp4", "nvfp4"]
Exponents = Literal["down", "up"]

_MOST_E4M3, _LEAST_E4M3 = 448.0, 2.0**-9
_LEAST = 2.0**-100  # a tensor's magnitude whose scale float32 holds well
_BITS, _BIAS = 23, 127  # of a float32: mantissa, and what its exponent counts from


@dataclasses.dataclass(frozen=True)
class BlockFormat:
    """A format.

    Args:
      dtype: Type of the numbers.
      size: How many share a scale.
      scales: Type of the scales.
    """

    dtype: Any
    size: int
    scales: Any

    @property
    def most(self) -> float:
        """The greatest number."""
        return float(jnp.finfo(self.dtype).max)

    @property
    def has_tensor_scale(self) -> bool:
        return self.scales == jnp.float8_e4m3fn


FORMATS: dict[Format, BlockFormat] = {
    "mxfp8": BlockFormat(jnp.float8_e4m3fn, 32, jnp.float8_e8m0fnu),
    "mxfp4": BlockFormat(jnp.float4_e2m1fn, 32, jnp.float8_e8m0fnu),
    "nvfp4": BlockFormat(jnp.float4_e2m1fn, 16, jnp.float8_e4m3fn),
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Blocks:
    """An array in such a format.

    Args:
      values: The array divided by its scales. Along the dim of the blocks it has
        zeros after it, so that the last block is whole.
      scales: One for each block.
      tensor_scale: That of the array, or one for each index of its first dims; a number
        is `value * scale * tensor_scale`. None: there is none.
      dim: Along which blocks lie.
      size: The array's, along that dim.
    """

    values: Any
    scales: Any
    tensor_scale: Any  # an array; JAX also makes trees of placeholders
    dim: int = dataclasses.field(metadata={"static": True})
    size: int = dataclasses.field(metadata={"static": True})

    def numbers(self) -> jax.Array:
        """Returns the array in bfloat16, exactly, but for the tensor's scale."""
        size = self.values.shape[self.dim] // self.scales.shape[self.dim]
        values = _split(self.values.astype(jnp.bfloat16), self.dim, size)
        scales = jnp.expand_dims(self.scales.astype(jnp.bfloat16), self.dim + 1)
        numbers = (values * scales).reshape(self.values.shape)
        return lax.slice_in_dim(numbers, 0, self.size, axis=self.dim)


def encode(
    a: jax.Array,
    dim: int,
    name: Format,
    *,
    exponents: Exponents = "up",
    tensor_dims: tuple[int, ...] | None = None,
) -> Blocks:
    """Returns a float32 array in a format, with blocks along a dim.

    A block with infinities or NaN has a NaN as its scale; the tensor's scale is that of
    the finite numbers. Numbers beyond the greatest become that.

    Args:
      a: The array.
      dim: Along which blocks lie. The last one may be shorter.
      name: The format.
      exponents: Of scales that are powers of two, see `_power_of_two`.
      tensor_dims: Dims whose numbers share a tensor's scale; None: all.
    """
    form = FORMATS[name]
    whole = padded(a, [form.size if i == dim else 1 for i in range(a.ndim)])
    split = _split(whole, dim, form.size)
    amax = greatest_magnitude(split, (dim + 1,), not_finite=jnp.inf)
    if form.has_tensor_scale:
        tensor_scale = _tensor_scale(greatest_magnitude(a, tensor_dims), form.most)
        dims = range(tensor_scale.ndim, a.ndim)
        scales, by = _in_e4m3(amax, form.most, jnp.expand_dims(tensor_scale, dims))
    else:
        tensor_scale = None
        scales, by = _power_of_two(amax, form.most, exponents)
    scaled = jnp.clip(split / jnp.expand_dims(by, dim + 1), -form.most, form.most)
    scaled = jnp.where(jnp.isnan(scaled), 0, scaled)  # its scale says so
    if form.dtype == jnp.float4_e2m1fn:
        scaled = _to_e2m1(scaled)
    values = scaled.astype(form.dtype).reshape(whole.shape)
    return Blocks(values, scales, tensor_scale, dim, a.shape[dim])


def _to_e2m1(x: jax.Array) -> jax.Array:
    """Returns the nearest of 0, .5, 1, 1.5, 2, 3, 4 and 6; ties go to even codes.

    Then the cast that follows has nothing to round. XLA:CPU reshapes and pads such
    numbers as float16, and makes one cast of two: from float32 by way of float16, which
    rounds twice and takes one number in 600 to the second nearest (JAX 0.10.2).
    """
    magnitude = jnp.abs(x)
    step = jnp.where(magnitude < 2, 0.5, jnp.where(magnitude < 4, 1.0, 2.0))
    return jnp.rint(x / step) * step


def _tensor_scale(amax: jax.Array, most: float) -> jax.Array:
    """Returns the scale by which the greatest scale of a block is that of e4m3."""
    return jnp.maximum(jnp.where(amax > 0, amax, 1.0), _LEAST) / (most * _MOST_E4M3)


def _in_e4m3(
    amax: jax.Array, most: float, tensor_scale: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the scales of blocks, and by what to divide the blocks."""
    scales = jnp.clip(amax / most / tensor_scale, _LEAST_E4M3, _MOST_E4M3)
    scales = jnp.where(jnp.isfinite(amax), scales, jnp.nan)
    scales = scales.astype(jnp.float8_e4m3fn)
    return scales, scales.astype(jnp.float32) * tensor_scale


def _power_of_two(
    amax: jax.Array, most: float, exponents: Exponents
) -> tuple[jax.Array, jax.Array]:
    """Returns scales that are powers of two, as e8m0 and as float32.

    `down` is the rule of OCP: the exponent of the greatest magnitude becomes that of
    the greatest number. So a magnitude beyond the greatest number by up to 1 / 7 (e4m3)
    or 1 / 3 (e2m1) becomes that. `up` takes the least power of two by which none does,
    as Mishra et al. 2025, https://arxiv.org/abs/2506.08027, train. Exponents end
    where float32 holds all numbers with that scale.
    """
    bits = lax.bitcast_convert_type(amax, jnp.int32)
    of_most = int(np.float32(most).view(np.int32))
    above = (of_most >> _BITS) - _BIAS
    exponent = (bits >> _BITS) - above
    if exponents == "up":
        mantissa = (1 << _BITS) - 1
        exponent += (bits & mantissa) > (of_most & mantissa)
    exponent = jnp.clip(exponent, 1, 254 - above)
    by = lax.bitcast_convert_type(exponent << _BITS, jnp.float32)
    stored = jnp.where(jnp.isfinite(amax), exponent, 255).astype(jnp.uint8)
    scales = lax.bitcast_convert_type(stored, jnp.float8_e8m0fnu)
    return scales, jnp.where(jnp.isfinite(amax), by, jnp.nan)


def _split(a: jax.Array, dim: int, size: int) -> jax.Array:
    """Returns an array with a dim cut in two, of which the second is in a block."""
    shape = a.shape
    return a.reshape(*shape[:dim], shape[dim] // size, size, *shape[dim + 1 :])
