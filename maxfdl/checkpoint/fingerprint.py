"""What is known of an array's values, however the array is sharded.

Orbax does not checksum tensor data: a flipped bit on disk restores as another number.
"""

import collections
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from maxfdl.sharding.memory import HOST, on_device

# Odd numbers, so that multiplying by a weight modulo 2**32 loses no bit.
_STRIDES = (2654435761, 2246822519, 3266489917, 668265263, 374761393)


class Fingerprint(NamedTuple):
    """Of one array.

    Fields: `checksum`, an unsigned 32-bit integer; `finite`, whether no element is a
    NaN or an infinity.
    """

    checksum: int
    finite: bool


def fingerprint(tree: Any) -> list[Fingerprint]:
    """Returns the fingerprint of each leaf, in `jax.tree.leaves` order.

    The checksum is the sum, modulo `2**32`, of every element's bit pattern times an
    odd weight that depends on the element's position. Integer sums do not depend on
    order, so every mesh gives the same number. A change inside one element of up to 32
    bits is always found, any other with probability `1 - 2**-32`.

    Cost: one read of every array on its own devices, and no copy of it. What lies in
    the memory of the host is fetched, one array after the other.
    """
    leaves = jax.tree.leaves(tree)
    # One program serves all leaves that live on the same devices. Each that is on the
    # host has its own, for XLA may fetch all of a program's at once.
    groups = collections.defaultdict(list)
    for index, leaf in enumerate(leaves):
        groups[_devices(leaf), index if _on_host(leaf) else None].append(index)
    found: list[Any] = [None] * len(leaves)
    for indices in groups.values():
        # One program at a time: the next would fetch its array already, and programs of
        # several CPU devices wait for one another's threads for ever.
        values = jax.block_until_ready(_looked_at([leaves[i] for i in indices]))
        for index, value in zip(indices, values, strict=True):
            found[index] = value
    return [Fingerprint(int(sum_), bool(ok)) for sum_, ok in jax.device_get(found)]


_BLOCK = 2**20  # bytes, of which a few copies are made


def fingerprint_in_blocks(array: np.ndarray, at: tuple[int, ...] = ()) -> Fingerprint:
    """Returns the fingerprint of an array in NumPy, or that of what a larger one holds
    at an index of its first dims.

    Looks at some rows at a time, so that little memory is needed.
    """
    if not array.ndim:
        array, at = array[None], at[:-1]  # one row
    rows = max(1, _BLOCK // max(1, array[:1].nbytes))
    blocks = []
    for start in range(0, len(array), rows):
        block = array[start : start + rows][(None,) * len(at)]
        sum_, ok = _looked_at_rows(block, (*at, start))
        blocks.append(Fingerprint(int(sum_), bool(ok)))
    return of_parts(blocks)


def of_parts(parts: Iterable[Fingerprint]) -> Fingerprint:
    """Returns the fingerprint of an array, of those of all its parts."""
    parts = list(parts)
    checksum = sum(part.checksum for part in parts) % 2**32
    return Fingerprint(checksum, all(part.finite for part in parts))


def _devices(leaf: Any) -> frozenset[Any]:
    return frozenset(leaf.devices()) if isinstance(leaf, jax.Array) else frozenset()


def _on_host(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and leaf.sharding.memory_kind == HOST


@jax.jit
def _looked_at(leaves: list[jax.Array]) -> list[tuple[jax.Array, jax.Array]]:
    arrays = [on_device(jnp.asarray(leaf)) for leaf in leaves]
    return [(_checksum(array), _is_finite(array)) for array in arrays]


@jax.jit
def _looked_at_rows(rows: Any, first: tuple[Any, ...]) -> tuple[jax.Array, jax.Array]:
    return _checksum(rows, first), _is_finite(rows)


def _checksum(array: jax.Array, first: tuple[Any, ...] = ()) -> jax.Array:
    """Returns the part of the checksum that is due to a part of an array.

    `first` is where it begins, along the first dims.
    """
    bits = _bits(array)
    weights = jnp.zeros(bits.shape, jnp.uint32)
    for dim in range(bits.ndim):
        position = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, dim)
        if dim < len(first):
            position += jnp.asarray(first[dim], jnp.uint32)
        weights += (position + 1) * jnp.uint32(_STRIDES[dim % len(_STRIDES)])
    return jnp.sum(bits * (2 * weights + 1), dtype=jnp.uint32)


def _bits(array: jax.Array) -> jax.Array:
    """Returns the bit patterns as uint32; a 64-bit element becomes two of them."""
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        array = jnp.stack([array.real, array.imag], axis=-1)
    if array.dtype == jnp.bool_:
        return array.astype(jnp.uint32)
    width = min(32, jax.dtypes.itemsize_bits(array.dtype))
    return jax.lax.bitcast_convert_type(array, f"uint{width}").astype(jnp.uint32)


def _is_finite(array: jax.Array) -> jax.Array:
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        return jnp.array(True)
    if jax.dtypes.itemsize_bits(array.dtype) < 32:  # XLA does not ask 8 bits directly
        array = array.astype(jnp.float32)
    return jnp.all(jnp.isfinite(array))
