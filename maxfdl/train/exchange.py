"""What replicas of DiLoCo send one another of their deltas: all of it, or less.

Where a format has no sum of its own, each replica gathers what the others have packed,
unpacks it, and adds it up in float32.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from maxfdl.ops.state import Declaration
from maxfdl.sharding.mesh import REPLICA

Packed = dict[str, jax.Array]
"""The arrays that one replica sends of one array."""

_TOGETHER = 128
"""Numbers that share a scale, at least."""


class Exchange:
    """Base: packs an array of a replica's deltas, and unpacks it again.

    Attributes:
      error_decay: What a replica could not send is kept, and added to its next delta
        times this. None keeps nothing.
    """

    error_decay: float | None = None

    def packed(self, x: jax.Array) -> Packed:
        """Returns what is sent of a float32 array."""
        raise NotImplementedError

    def unpacked(self, packed: Packed, shape: tuple[int, ...]) -> jax.Array:
        """Returns the float32 array of this shape that `packed` stands for."""
        raise NotImplementedError

    def bytes(self, parameter: Declaration) -> int:
        """Returns the bytes that a replica sends of a parameter."""
        x = jax.ShapeDtypeStruct(parameter.full_shape, jnp.float32)
        arrays = jax.tree.leaves(jax.eval_shape(self.packed, x))
        return sum(each.size * each.dtype.itemsize for each in arrays)


@dataclasses.dataclass(frozen=True)
class Quantized(Exchange):
    """Sends each number in 8 or 4 bits, with a float32 scale for 128 or more.

    The scale is the greatest magnitude of those numbers: trailing dims, as many as make
    128. `int8` rounds to 255 equal steps. `e3m0` has a sign and 3 bits of exponent: 0,
    and the powers of two from the scale down to 1/64 of it, two in a byte, as Streaming
    DiLoCo sends outer gradients (Douillard et al. 2025).
    """

    format: Literal["int8", "e3m0"]

    def packed(self, x: jax.Array) -> Packed:
        dims = _trailing(x.shape)
        scale = jnp.max(jnp.abs(x), axis=dims, keepdims=True)
        x = x / jnp.where(scale > 0, scale, 1.0)
        if self.format == "int8":
            return {"codes": jnp.round(127.0 * x).astype(jnp.int8), "scale": scale}
        # Powers of two by the nearest: 0.75 is as far from 0.5 as from 1.
        exponent = jnp.floor(jnp.log2(jnp.maximum(jnp.abs(x), 2.0**-20) / 0.75))
        level = jnp.where(jnp.abs(x) < 2.0**-7, 0.0, jnp.clip(exponent + 7.0, 1.0, 7.0))
        codes = level.astype(jnp.uint8) | (x < 0).astype(jnp.uint8) << 3
        return {"codes": _in_pairs(codes), "scale": scale}

    def unpacked(self, packed: Packed, shape: tuple[int, ...]) -> jax.Array:
        codes, scale = packed["codes"], packed["scale"]
        if self.format == "int8":
            return codes.astype(jnp.float32) / 127.0 * scale
        codes = _from_pairs(codes, shape[-1])
        level = (codes & 7).astype(jnp.float32)
        size = jnp.where(level > 0, jnp.exp2(level - 7.0), 0.0)
        return jnp.where(codes >> 3 > 0, -size, size) * scale


@dataclasses.dataclass(frozen=True)
class TopK(Exchange):
    """Sends the largest `density` of the numbers in each chunk, and where they stand.

    What is not sent is kept, and added to the next delta: this takes the place of outer
    momentum, so the outer optimizer is SGD without it. SparseLoCo, Sarfi et al. 2025,
    https://arxiv.org/abs/2508.15706. Per chunk there are, for each number sent, a
    16-bit index and its value: in 2 bits, a sign and one of two magnitudes between the
    least and the greatest sent, which are sent too; or in float32.

    Args:
      density: Share of the numbers that are sent, above 0 and at most 1.
      chunk: Numbers in a chunk; neighbours in a layer.
      value_bits: 2 or 32.
      decay: Of what was kept, beta.
    """

    density: float = 0.02
    chunk: int = 4096
    value_bits: Literal[2, 32] = 2
    decay: float = 0.95

    @staticmethod
    def check_config(node):
        if not 0.0 < node.density <= 1.0:
            yield f"TopK density ({node.density}) must be above 0 and at most 1."
        if not 4 <= node.chunk <= 2**16 or node.chunk % 4:
            yield f"TopK chunk ({node.chunk}) must be a multiple of 4, 4 to 65536."
        if not 0.0 <= node.decay <= 1.0:
            yield f"TopK decay ({node.decay}) must be from 0 to 1."

    @property
    def error_decay(self) -> float:  # type: ignore[override]
        return self.decay

    def packed(self, x: jax.Array) -> Packed:
        chunks = self._chunks(x)
        width = chunks.shape[1]
        count = max(1, math.ceil(self.density * width))
        sizes, indices = lax.top_k(jnp.abs(chunks), count)
        values = jnp.take_along_axis(chunks, indices, axis=1)
        places = indices.astype(jnp.uint16)
        if self.value_bits == 32:
            return {"places": places, "values": values}
        ends = jnp.stack([sizes[:, -1], sizes[:, 0]], axis=1)
        is_high = sizes > jnp.mean(ends, axis=1, keepdims=True)
        codes = is_high.astype(jnp.uint8) | (values < 0).astype(jnp.uint8) << 1
        return {"places": places, "codes": _in_fours(codes), "ends": ends}

    def unpacked(self, packed: Packed, shape: tuple[int, ...]) -> jax.Array:
        places = packed["places"].astype(jnp.int32)
        if self.value_bits == 32:
            values = packed["values"]
        else:
            codes = _from_fours(packed["codes"], places.shape[1])
            least, most = packed["ends"][:, :1], packed["ends"][:, 1:]
            at = jnp.where(codes & 1 > 0, 0.75, 0.25)
            sizes = least + at * (most - least)
            values = jnp.where(codes >> 1 > 0, -sizes, sizes)
        width = self._width(math.prod(shape))
        chunks = jnp.zeros((places.shape[0], width), jnp.float32)
        rows = jnp.arange(places.shape[0])[:, None]
        chunks = chunks.at[rows, places].set(values)
        return chunks.reshape(-1)[: math.prod(shape)].reshape(shape)

    def _width(self, size: int) -> int:
        """Returns the numbers in a chunk of an array: all, if these are fewer."""
        return min(self.chunk, size)

    def _chunks(self, x: jax.Array) -> jax.Array:
        """Returns the numbers of an array in chunks; the last is filled up with 0."""
        width = self._width(x.size)
        x = jnp.pad(x.reshape(-1), (0, -x.size % width))
        return x.reshape(-1, width)


def _trailing(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the last dims of an array: as many as make 128 numbers."""
    first = len(shape)
    while first and math.prod(shape[first:]) < _TOGETHER:
        first -= 1
    return tuple(range(first, len(shape)))


def _in_pairs(codes: jax.Array) -> jax.Array:
    """Returns 4-bit codes, two to a byte, along the last dim."""
    codes = _filled(codes, 2)
    return codes[..., 0] | codes[..., 1] << 4


def _from_pairs(packed: jax.Array, size: int) -> jax.Array:
    codes = jnp.stack([packed & 15, packed >> 4], axis=-1)
    return codes.reshape(*packed.shape[:-1], -1)[..., :size]


def _in_fours(codes: jax.Array) -> jax.Array:
    """Returns 2-bit codes, four to a byte, along the last dim."""
    codes = _filled(codes, 4)
    shifts = 2 * jnp.arange(4, dtype=jnp.uint8)
    return jnp.sum(codes << shifts, axis=-1, dtype=jnp.uint8)


def _from_fours(packed: jax.Array, size: int) -> jax.Array:
    codes = packed[..., None] >> (2 * jnp.arange(4, dtype=jnp.uint8)) & 3
    return codes.reshape(*packed.shape[:-1], -1)[..., :size]


def _filled(codes: jax.Array, count: int) -> jax.Array:
    """Returns codes in groups of `count`, the last filled up with 0."""
    missing = -codes.shape[-1] % count
    codes = jnp.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, missing)])
    return codes.reshape(*codes.shape[:-1], -1, count)


def exchanged(
    exchange: Exchange, x: jax.Array, shares: jax.Array, cut_by: Sequence[str] | None
) -> tuple[jax.Array, jax.Array]:
    """Returns the mean of all replicas' arrays, and what each has sent of its own.

    Args:
      exchange: How they are sent.
      x: [r, ...] of the replicas here, in float32.
      shares: [r] weights of the mean.
      cut_by: Mesh axes that a replica is sharded over, see `_gathered`; None if all
        replicas are here.
    """
    shape = x.shape[1:]
    mine = jax.vmap(exchange.packed)(x)

    def unpacked(packed: Any) -> jax.Array:
        return exchange.unpacked(packed, shape)

    everyone = (mine, shares)
    if cut_by is not None:
        everyone = _gathered(everyone, cut_by)

    def add(total: jax.Array, each: Any) -> tuple[jax.Array, None]:
        packed, share = each
        return total + share * unpacked(packed), None

    mean, _ = lax.scan(add, jnp.zeros(shape, jnp.float32), everyone)
    return mean, jax.vmap(unpacked)(mine)


def _gathered(arrays: Any, cut_by: Sequence[str]) -> Any:
    """Returns the arrays of all replicas, [R, ...], of those of the replicas here.

    Each device gathers a share of each array, cut by the mesh axes `cut_by` where they
    divide a dim. All mesh axes are manual here: with automatic ones XLA gathers whole
    arrays inside the replica first, and every device of it sends all of them.
    """
    mesh = jax.sharding.get_abstract_mesh()
    sizes = {axis: mesh.shape[axis] for axis in cut_by if mesh.shape.get(axis, 1) > 1}
    specs = jax.tree.map(lambda x: _spec(x.shape, sizes), arrays)
    return jax.shard_map(
        lambda arrays: lax.all_gather(arrays, REPLICA, tiled=True),
        in_specs=(specs,),
        out_specs=specs,
        axis_names=set(mesh.axis_names) - {REPLICA},
        check_vma=False,
    )(arrays)


def _spec(shape: tuple[int, ...], sizes: Mapping[str, int]) -> PartitionSpec:
    """Returns a spec that cuts the first dim by no axis, and the others by each axis
    once, if it divides one."""
    left = [*shape]
    entries: list[tuple[str, ...]] = [()] * len(shape)
    for axis, size in sizes.items():
        free = [d for d in range(1, len(shape)) if left[d] % size == 0]
        if free:
            left[free[0]] //= size
            entries[free[0]] += (axis,)
    return PartitionSpec(*(entry or None for entry in entries))
