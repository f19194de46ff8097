"""Products with packed kernels that never form the kernel: for decoding on CPUs.

A token reads each weight once, so the time it takes is that of the bytes of weights.
XLA:CPU has no product of float32 and codes. It would write each kernel as float32 and
read it again, and schedules that for all layers at once. The loops here unpack as much
as the cache holds. Letters: M rows, I inputs, O outputs, G groups of inputs.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from maxfdl.ops.codec import Codec, PackedKernel, unpaired
from maxfdl.ops.target import target_platform

_MOST = 64  # rows; with more, unpacking the whole kernel is the smaller part
_FEW = 2  # rows up to which numbers are multiplied as they are read
_AT_ONCE = 4  # inputs of a trip with few rows; with more, XLA of JAX 0.10 is slower
_BYTES = 2**20  # of float32 that a trip with more rows unpacks


def is_read_packed(rows: int, codec: Codec) -> bool:
    """Says whether so many rows are multiplied faster so than with the whole kernel."""
    in_bytes = codec.bits == 8 or codec.inputs is None or codec.inputs % 2 == 0
    return in_bytes and rows <= _MOST and target_platform() == "cpu"


@jax.jit  # so that kernels of one shape are traced once
def rows_by_packed(
    x_MI: Float[Array, "M I"], kernel: PackedKernel
) -> Float[Array, "M O"]:
    """Returns `x @ kernel` in float32, for a kernel without leading dims."""
    rows, inputs = x_MI.shape
    outputs = kernel.codes.shape[1]
    few = rows <= _FEW
    size = _inputs_of_a_trip(kernel.codec.inputs, inputs, outputs, few)
    scales_GO = _scales_of_outputs(kernel, outputs)
    x_MI = x_MI.astype(jnp.float32)
    product = _by_numbers if few else _by_tile

    def add(y_MO: jax.Array, start: jax.Array | int, count: int) -> jax.Array:
        part_MO = product(x_MI, kernel, start, count)
        if kernel.codec.inputs is None:
            return y_MO + part_MO
        group = start // kernel.codec.inputs
        return y_MO + part_MO * lax.dynamic_slice_in_dim(scales_GO, group, 1)

    y_MO = jnp.zeros((rows, outputs), jnp.float32)
    trips, rest = divmod(inputs, size)
    y_MO = lax.fori_loop(0, trips, lambda i, y_MO: add(y_MO, i * size, size), y_MO)
    if rest:
        y_MO = add(y_MO, trips * size, rest)
    return y_MO * scales_GO if kernel.codec.inputs is None else y_MO


def _inputs_of_a_trip(group: int | None, inputs: int, outputs: int, few: bool) -> int:
    """Returns a number that divides a group, and is even where a byte holds two."""
    size = _AT_ONCE
    while not few and 8 * size * outputs <= _BYTES:
        size *= 2
    size = min(math.gcd(size, group or size), inputs)
    return size - size % 2 if size > 1 else size


def _scales_of_outputs(kernel: PackedKernel, outputs: int) -> jax.Array:
    """Returns the scale of each output in each group of inputs."""
    scales = kernel.codec.read_scales(kernel.scales)
    return jnp.repeat(scales, kernel.codec.outputs or outputs, axis=1)[:, :outputs]


def _by_numbers(x_MI: jax.Array, kernel: PackedKernel, start: Any, count: int):
    """Adds up `x[:, i] * number[i]`: one loop over O, which reads each code once."""
    sums: Any = 0.0
    for i in range(count):
        x_M1 = lax.dynamic_slice_in_dim(x_MI, start + i, 1, axis=1)
        if kernel.codec.bits == 4:
            pair = lax.dynamic_slice_in_dim(kernel.codes, start // 2 + i // 2, 1)
            code = pair >> 4 if i % 2 else pair & 15
        else:
            code = lax.dynamic_slice_in_dim(kernel.codes, start + i, 1)
        sums = sums + x_M1 * kernel.codec.numbers_of(code)
    return sums


def _by_tile(x_MI: jax.Array, kernel: PackedKernel, start: Any, count: int):
    """Multiplies the numbers of some inputs, unpacked to float32."""
    x = lax.dynamic_slice_in_dim(x_MI, start, count, axis=1)
    if kernel.codec.bits == 4:
        pairs = lax.dynamic_slice_in_dim(kernel.codes, start // 2, (count + 1) // 2)
        codes = unpaired(pairs, count)
    else:
        codes = lax.dynamic_slice_in_dim(kernel.codes, start, count)
    return x @ kernel.codec.numbers_of(codes)
