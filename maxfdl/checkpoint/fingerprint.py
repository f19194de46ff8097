"""What is known of an array's values, however the array is sharded.

Orbax does not checksum tensor data: a flipped bit on disk restores as another number.
Arrays in the memory of a device are read by that device, arrays in the memory of the
host by NumPy, see `on_host`. Both give the same numbers.
"""

import collections
import concurrent.futures
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from maxfdl.checkpoint import on_host
from maxfdl.checkpoint.processes import gather
from maxfdl.sharding.memory import HOST


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

    Cost: one read of every array where it lies. All processes must call this.
    """
    leaves = jax.tree.leaves(tree)
    on_hosts = [i for i, leaf in enumerate(leaves) if _is_on_host(leaf)]
    others = [i for i in range(len(leaves)) if i not in set(on_hosts)]
    found: dict[int, Fingerprint] = {}
    for which, look in ((on_hosts, _look_on_host), (others, _look_on_devices)):
        found |= zip(which, look([leaves[i] for i in which]), strict=True)
    return [found[i] for i in range(len(leaves))]


def fingerprint_of(array: np.ndarray, first: tuple[int, ...] = ()) -> Fingerprint:
    """Returns the part of the fingerprint of an array that is due to a part of it.

    Args:
      array: The part.
      first: Where it begins, along the first dims of the whole array.
    """
    checksum, finite = on_host.checksum_and_finite(array, first)
    return Fingerprint(checksum, finite)


def of_parts(parts: Iterable[Fingerprint]) -> Fingerprint:
    """Returns the fingerprint of an array, of those of all its parts."""
    parts = list(parts)
    checksum = sum(part.checksum for part in parts) % 2**32
    return Fingerprint(checksum, all(part.finite for part in parts))


def _is_on_host(leaf: Any) -> bool:
    if not isinstance(leaf, jax.Array):
        return True
    platforms = {device.platform for device in leaf.sharding.device_set}
    return platforms == {"cpu"} or leaf.sharding.memory_kind == HOST


def _look_on_host(leaves: list[Any]) -> list[Fingerprint]:
    """Looks at the shards of this process, each once, and adds up all processes."""
    with concurrent.futures.ThreadPoolExecutor() as pool:  # NumPy lets go of the GIL
        found = [*pool.map(lambda leaf: of_parts(_shards(leaf)), leaves)]
    shared = [i for i, leaf in enumerate(leaves) if _is_shared(leaf)]
    if shared:
        every = gather([found[i] for i in shared])
        for i, parts in zip(shared, zip(*every, strict=True), strict=True):
            found[i] = of_parts(Fingerprint(*part) for part in parts)
    return found


def _is_shared(leaf: Any) -> bool:
    """Returns whether other processes hold shards of an array, too."""
    return isinstance(leaf, jax.Array) and not leaf.is_fully_addressable


def _shards(leaf: Any) -> Iterator[Fingerprint]:
    """Yields the fingerprints of the shards here that are not copies of others."""
    if not isinstance(leaf, jax.Array):
        yield fingerprint_of(np.asarray(leaf))
        return
    for shard in leaf.addressable_shards:
        if shard.replica_id == 0:
            first = tuple(part.start or 0 for part in shard.index)
            yield fingerprint_of(np.asarray(shard.data), first)


def _look_on_devices(leaves: list[Any]) -> list[Fingerprint]:
    """One program serves all arrays that live on the same devices."""
    groups = collections.defaultdict(list)
    for index, leaf in enumerate(leaves):
        groups[frozenset(leaf.sharding.device_set)].append(index)
    found: list[Any] = [None] * len(leaves)
    for indices in groups.values():
        values = jax.device_get(checksums_and_finite([leaves[i] for i in indices]))
        for index, (checksum, finite) in zip(indices, values, strict=True):
            found[index] = Fingerprint(int(checksum), bool(finite))
    return found


@jax.jit
def checksums_and_finite(
    arrays: list[jax.Array],
) -> list[tuple[jax.Array, jax.Array]]:
    """Returns what the fingerprint of each array says, for accelerators."""
    return [(_checksum(array), _is_finite(array)) for array in arrays]


def _checksum(array: jax.Array) -> jax.Array:
    bits = _bits(array)
    weights = jnp.zeros(bits.shape, jnp.uint32)
    for dim in range(bits.ndim):
        position = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, dim)
        weights += (position + 1) * jnp.uint32(on_host.stride(dim))
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
