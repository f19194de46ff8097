"""The arrays of one Orbax item on disk, read and written one at a time.

Orbax keeps a pytree as zarr arrays in a key-value store, OCDBT or plain folders, and
lists the tree in `_METADATA`. A key is a tuple: names of dict entries as strings, and
places in lists as integers.
"""

import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from maxfdl import outside
from maxfdl.errors import UserError
from maxfdl.paths import AnyPath, kvstore

Key = tuple[str | int, ...]

METADATA = "_METADATA"
_ARRAY_METADATA = pathlib.PurePath("array_metadatas", "process_0")
_IN_LIST, _IN_DICT = 1, 2  # Orbax's key types
_CHUNK_BYTES = 2**22
"""Arrays are compressed and written in chunks of at most so many bytes, one by one."""


class Entry(NamedTuple):
    """What the tree holds at a key: an array, or a `kind` without one (None, Dict)."""

    key: Key
    kind: str

    @property
    def is_array(self) -> bool:
        return self.kind not in ("None", "Dict", "List")


class Items:
    """The tree in a folder that Orbax wrote.

    Args:
      path: The folder, which has a `_METADATA`.

    Raises:
      UserError: If its list of arrays cannot be read.
    """

    def __init__(self, path: AnyPath):
        self.path = path
        found = outside.read_object(path / METADATA)
        self._use_ocdbt = found.take("use_ocdbt", outside.Flag(), default=True)
        self._use_zarr3 = found.take("use_zarr3", outside.Flag(), default=False)
        tree = found.within("tree_metadata").content
        try:
            self.entries = {entry.key: entry for entry in map(_entry, tree.values())}
        except (KeyError, TypeError, ValueError) as error:
            raise found.wrong(
                "tree_metadata must list arrays as Orbax does; put back a copy"
            ) from error

    def arrays(self) -> list[Key]:
        """Returns the keys of all arrays."""
        return [key for key, entry in self.entries.items() if entry.is_array]

    def read(self, key: Key) -> np.ndarray:
        """Returns an array.

        Raises:
          UserError: If it cannot be read.
        """
        return read_array(self._opened(key), self.where(key))

    def spec(self, key: Key) -> tuple[tuple[int, ...], np.dtype]:
        """Returns the shape and type of an array, without its values."""
        array = self._opened(key)
        return tuple(array.shape), array.dtype.numpy_dtype

    def where(self, key: Key) -> str:
        """Returns the folder and the name in it of an array, for errors."""
        return f"{self.path}: {'/'.join(map(str, key))}"

    def _opened(self, key: Key) -> Any:
        spec = _spec(self.path, key, self._use_ocdbt, self._use_zarr3)
        future = tensorstore().open(spec, open=True, read=True)
        return resolved_array(future, self.where(key))


def read_array(array: Any, where: str) -> np.ndarray:
    """Returns an array of TensorStore, read one row of chunks after the other.

    Read at once, memory would hold all of its chunks as they are stored, too.

    Raises:
      UserError: If it cannot be read.
    """
    dtype = array.dtype.numpy_dtype
    if array.size * dtype.itemsize <= _CHUNK_BYTES:
        return np.asarray(resolved_array(array.read(), where))
    shape, chunk = array.shape, array.chunk_layout.read_chunk.shape
    counts = [math.ceil(n / size) for n, size in zip(shape, chunk, strict=True)]
    axis = counts.index(max(counts))
    whole = np.empty(shape, dtype)
    for start in range(0, shape[axis], chunk[axis]):
        stop = min(start + chunk[axis], shape[axis])
        part = (slice(None),) * axis + (slice(start, stop),)
        whole[part] = resolved_array(array[part].read(), where)
    return whole


def resolved_array(future: Any, where: str) -> Any:
    """Returns what TensorStore has read.

    Raises:
      UserError: If it could not.
    """
    try:
        return future.result()
    except ValueError as error:
        reason = str(error).splitlines()[0][:200]
        raise UserError(
            f"{where} cannot be read ({reason}); put back a copy of the checkpoint."
        ) from error


def _entry(node: Any) -> Entry:
    keys, value = node["key_metadata"], node["value_metadata"]
    parts = (
        int(each["key"]) if each["key_type"] == _IN_LIST else each["key"]
        for each in keys
    )
    return Entry(tuple(parts), value["value_type"])


class ItemsWriter:
    """Writes arrays into a new folder that Orbax and MaxText restore.

    `close` writes the list of arrays, without which the folder counts as unfinished.

    Args:
      path: The folder; made if it is missing.
    """

    def __init__(self, path: AnyPath):
        self._path = path
        self._tree: dict[str, Any] = {}
        self._arrays: list[dict[str, Any]] = []
        path.mkdir(parents=True, exist_ok=True)

    def write(
        self,
        key: Key,
        values: np.ndarray,
        *,
        kind: str = "jax.Array",
        random: str | None = None,
    ) -> None:
        """Writes an array; `random` names the kind of random keys that it holds."""
        chunks = chunks_of(values)
        spec = _spec(self._path, key, use_ocdbt=True, use_zarr3=True) | {
            "dtype": values.dtype.name,
            "metadata": {"shape": list(values.shape), **_zarr3(chunks)},
            "store_data_equal_to_fill_value": True,
        }
        write_array(spec, values, chunks)
        self._add(key, value_type=kind, skip_deserialize=False, write_shape=chunks)
        self._arrays.append(
            {
                "array_metadata": {
                    "param_name": _name(key),
                    "write_shape": chunks,
                    "chunk_shape": chunks,
                    "ext_metadata": random and {"random_key_impl": random},
                }
            }
        )

    def leave_empty(self, key: Key, kind: str = "None") -> None:
        """Notes that the tree has a None, or another `kind` without arrays, there."""
        self._add(key, value_type=kind, skip_deserialize=True)

    def close(self) -> None:
        arrays = self._path / _ARRAY_METADATA
        arrays.parent.mkdir(exist_ok=True)
        arrays.write_text(json.dumps({"array_metadatas": self._arrays}), "utf-8")
        text = json.dumps(
            {
                "tree_metadata": self._tree,
                "use_ocdbt": True,
                "use_zarr3": True,
                "store_array_data_equal_to_fill_value": True,
                "custom_metadata": None,
            }
        )
        (self._path / METADATA).write_text(text, "utf-8")

    def _add(self, key: Key, **value: Any) -> None:
        kinds = [_IN_LIST if isinstance(part, int) else _IN_DICT for part in key]
        pairs = zip(map(str, key), kinds, strict=True)
        self._tree[str(tuple(map(str, key)))] = {
            "key_metadata": [{"key": part, "key_type": kind} for part, kind in pairs],
            "value_metadata": value,
        }


def write_array(spec: Any, values: np.ndarray, chunks: Sequence[int]) -> None:
    """Writes a new array, a few of its rows at a time."""
    store = tensorstore().open(spec, create=True, open=False).result()
    if list(values.shape) == list(chunks):
        store.write(values).result()
        return
    for start in range(0, values.shape[0], chunks[0]):
        rows = slice(start, min(start + chunks[0], values.shape[0]))
        store[rows].write(values[rows]).result()


def chunks_of(values: np.ndarray) -> list[int]:
    """Returns the shape of a chunk: whole but for the first dim of a large array."""
    if values.nbytes <= _CHUNK_BYTES:
        return list(values.shape)
    rows = _CHUNK_BYTES * values.shape[0] // values.nbytes
    return [max(rows, 1), *values.shape[1:]]


def _name(key: Key) -> str:
    return ".".join(map(str, key))


def _spec(path: AnyPath, key: Key, use_ocdbt: bool, use_zarr3: bool) -> dict[str, Any]:
    """Returns where TensorStore finds an array."""
    name = f"{_name(key)}/"
    if use_ocdbt:
        store = {"driver": "ocdbt", "base": kvstore(path), "path": name}
    else:
        store = kvstore(path / name)
    return {"driver": "zarr3" if use_zarr3 else "zarr", "kvstore": store}


def _zarr3(chunks: list[int]) -> dict[str, Any]:
    """Returns the metadata of zarr 3 that Orbax writes."""
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    compressed = {"name": "zstd", "configuration": {"level": 3}}
    shards = {
        "chunk_shape": chunks,
        "codecs": [little, compressed],
        "index_codecs": [little, {"name": "crc32c"}],
    }
    if not math.prod(chunks):  # nothing to cut
        return {}
    return {
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunks}},
        "codecs": [{"name": "sharding_indexed", "configuration": shards}],
    }


def tensorstore() -> Any:
    import tensorstore as ts  # slow to import, and few programs read such checkpoints

    return ts
