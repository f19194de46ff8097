"""Sends bytes from processes to others, over the links between their devices.

The bytes take the way that gradients take, so nothing listens on a port and no machine
needs to know the address of another.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from maxfdl.checkpoint.processes import gather

_CHUNK = 2**24
"""Most bytes that a device sends at once, which it needs twice in its memory."""
_UNIT = 2**12


def send(data: bytes, ways: Sequence[tuple[int, int]]) -> bytes:
    """Returns what another process has sent here; b"" if none has.

    All processes must call, with the same `ways`.

    Args:
      data: What this process sends, if it is the sender of a way.
      ways: Pairs of a sender and a receiver. A process sends to at most one, and
        receives from at most one.
    """
    sizes = gather(len(data))
    me, largest = jax.process_index(), max(sizes[sender] for sender, _ in ways)
    senders = {receiver: sender for sender, receiver in ways}
    if not largest:
        return b""
    rows = jax.local_device_count()
    chunk = min(_CHUNK, -(-largest // (rows * _UNIT)) * _UNIT)
    received = []
    for start in range(0, largest, rows * chunk):
        part = np.zeros(rows * chunk, np.uint8)
        piece = np.frombuffer(data[start : start + part.size], np.uint8)
        part[: piece.size] = piece
        moved = _moved(part.reshape(rows, chunk), tuple(ways))
        received.append(moved.tobytes())
    size = sizes[senders[me]] if me in senders else 0
    return b"".join(received)[:size]


def _moved(rows: np.ndarray, ways: tuple[tuple[int, int], ...]) -> np.ndarray:
    """Returns the rows of the process that sends to this one."""
    place, move = _program(ways)
    moved = move(jax.make_array_from_process_local_data(place, rows))
    shards = sorted(moved.addressable_shards, key=lambda each: each.index[0].start)
    return np.concatenate([np.asarray(shard.data) for shard in shards])


@functools.lru_cache(maxsize=8)
def _program(ways: tuple[tuple[int, int], ...]) -> tuple[Any, Any]:
    devices = sorted(jax.devices(), key=lambda each: (each.process_index, each.id))
    rows = jax.local_device_count()
    assert len(devices) == rows * jax.process_count(), "as many devices everywhere"
    mesh = jax.sharding.Mesh(np.array(devices), "device")
    spec = jax.sharding.PartitionSpec("device")
    pairs = [(a * rows + i, b * rows + i) for a, b in ways for i in range(rows)]
    move = jax.shard_map(
        lambda x: jax.lax.ppermute(x, "device", pairs),
        mesh=mesh,
        in_specs=spec,
        out_specs=spec,
    )
    place = jax.sharding.NamedSharding(mesh, spec)
    return place, jax.jit(move, donate_argnums=0)
