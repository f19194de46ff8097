"""Pieces of a state: what single devices hold of its arrays, and files of them.

A piece is named by its array and by where in the array it is, so every process can say
what any other holds, and a piece that several devices hold is kept once.
"""

import hashlib
import json
import pathlib
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from maxfdl.checkpoint.record import DamagedCheckpointError
from maxfdl.checkpoint.structure import structure_of
from maxfdl.files import file_replaced

FORMAT = 1


class Piece(NamedTuple):
    """Which part of which array: `index` has the first and last element of each dim."""

    array: str
    index: tuple[tuple[int, int], ...]
    dtype: str

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(stop - start for start, stop in self.index)

    @property
    def num_bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * jnp.dtype(self.dtype).itemsize


Pieces = Mapping[Piece, np.ndarray]


def pieces_of(state: Any, process: int) -> list[Piece]:
    """Returns what the devices of a process hold of a state, each piece once.

    Args:
      state: Arrays, or `jax.ShapeDtypeStruct` with shardings.
      process: Its index.
    """
    found: dict[Piece, None] = {}
    leaves = zip(structure_of(state), jax.tree.leaves(state), strict=True)
    for name, leaf in leaves:
        for device, index in leaf.sharding.devices_indices_map(leaf.shape).items():
            if device.process_index == process:
                found[_piece(name, leaf, index)] = None
    return list(found)


def held_here(state: Any) -> dict[Piece, np.ndarray]:
    """Returns copies, in memory of the host, of what this process holds of a state."""
    found: dict[Piece, np.ndarray] = {}
    for leaf in jax.tree.leaves(state):
        for shard in leaf.addressable_shards:
            shard.data.copy_to_host_async()
    leaves = zip(structure_of(state), jax.tree.leaves(state), strict=True)
    for name, leaf in leaves:
        for shard in leaf.addressable_shards:
            piece = _piece(name, leaf, shard.index)
            if piece not in found:
                found[piece] = np.array(shard.data)
    return found


def assembled(abstract: Any, pieces: Pieces) -> Any:
    """Returns the state that `abstract` describes, from the pieces of this process."""

    def leaf(name: str, leaf: Any) -> jax.Array:
        parts = [
            jax.device_put(
                pieces[_piece(name, leaf, index)],
                jax.sharding.SingleDeviceSharding(
                    device, memory_kind=leaf.sharding.memory_kind
                ),
            )
            for device, index in leaf.sharding.devices_indices_map(leaf.shape).items()
            if device.process_index == jax.process_index()
        ]
        return jax.make_array_from_single_device_arrays(
            leaf.shape, leaf.sharding, parts
        )

    leaves, tree = jax.tree.flatten(abstract)
    names = structure_of(abstract)
    return tree.unflatten([leaf(*each) for each in zip(names, leaves, strict=True)])


def _piece(name: str, leaf: Any, index: tuple[slice, ...]) -> Piece:
    spans = tuple(
        each.indices(size)[:2] for each, size in zip(index, leaf.shape, strict=True)
    )
    return Piece(name, spans, str(leaf.dtype))


def to_bytes(pieces: Pieces, names: list[Piece]) -> bytes:
    """Returns the bytes of some pieces, one after the other."""
    return b"".join(_bytes_of(pieces[name]) for name in names)


def _bytes_of(array: np.ndarray) -> Any:
    """Returns the bytes of an array without a copy: `tobytes` keeps other threads from
    running Python, the steps of the run among them, for half a second per GB."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def from_bytes(data: bytes, names: list[Piece]) -> dict[Piece, np.ndarray]:
    """Returns the pieces that `to_bytes` has made bytes of."""
    found, at = {}, 0
    for name in names:
        part = data[at : at + name.num_bytes]
        found[name] = np.frombuffer(part, jnp.dtype(name.dtype)).reshape(name.shape)
        at += name.num_bytes
    return found


def write_pieces(path: pathlib.Path, about: Mapping[str, Any], pieces: Pieces) -> None:
    """Writes a file of pieces, which is whole or not there.

    It has a line of JSON, under a seal, and then the bytes of the pieces, each with a
    CRC-32 in that line.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    listed = [[*piece, zlib.crc32(_bytes_of(array))] for piece, array in pieces.items()]
    head = {"format": FORMAT, "about": about, "pieces": listed}
    with file_replaced(path) as file:
        file.write(json.dumps(head | {"seal": _seal(head)}).encode() + b"\n")
        for array in pieces.values():
            file.write(_bytes_of(array))


class PieceFile:
    """A file of pieces on disk, whose list is read.

    Raises:
      DamagedCheckpointError: If the list is not what was written.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path
        try:
            with open(path, "rb") as file:
                line = file.readline()
            head = json.loads(line)
            seal = head.pop("seal", None)
        except (OSError, ValueError, AttributeError, TypeError):
            raise DamagedCheckpointError(f"{path} cannot be read") from None
        if seal != _seal(head) or head["format"] != FORMAT:
            raise DamagedCheckpointError(f"{path} has changed since it was written")
        self.about: dict[str, Any] = head["about"]
        self._places: dict[Piece, tuple[int, int]] = {}
        at = len(line)
        for name, index, dtype, checksum in head["pieces"]:
            piece = Piece(name, tuple(map(tuple, index)), dtype)
            self._places[piece] = at, checksum
            at += piece.num_bytes

    def __contains__(self, piece: Piece) -> bool:
        return piece in self._places

    def read(self, piece: Piece) -> np.ndarray:
        """Returns a piece.

        Raises:
          DamagedCheckpointError: If it is not what was written.
        """
        at, checksum = self._places[piece]
        try:
            with open(self.path, "rb") as file:
                file.seek(at)
                data = file.read(piece.num_bytes)
        except OSError as error:
            raise DamagedCheckpointError(f"{self.path}: {error.strerror}") from None
        if len(data) != piece.num_bytes or zlib.crc32(data) != checksum:
            problem = f"{piece.array} has changed since it was written"
            raise DamagedCheckpointError(f"{self.path}: {problem}")
        return np.frombuffer(data, jnp.dtype(piece.dtype)).reshape(piece.shape)


def _seal(head: Mapping[str, Any]) -> str:
    text = json.dumps(head, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
