"""How arrays of a checkpoint are cut on disk, and read one part at a time.

Orbax stores an array in chunks, each of which is read and decompressed as a whole. The
parts of an array are what lies at one index of its first dim: one layer of a stack.
"""

import functools
import math
from typing import Any

import jax
import numpy as np

from maxfdl.checkpoint.failure import gist
from maxfdl.checkpoint.fingerprint import Fingerprint, fingerprint_of, of_parts
from maxfdl.checkpoint.orbax import import_orbax, orbax_context
from maxfdl.checkpoint.record import DamagedCheckpointError, Record, check_leaf
from maxfdl.paths import AnyPath, kvstore

_SMALLEST = 2**20
"""Bytes of a part that is worth a chunk: smaller ones slow reading down."""


def saving_context(directory: AnyPath) -> Any:
    """Returns the Orbax context in which large parts have a chunk each."""
    options = import_orbax().options.ArrayOptions.Saving.StorageOptions

    def chunks(path: Any, array: Any) -> Any:
        if not isinstance(array, jax.Array):
            return None
        local = array.sharding.shard_shape(array.shape)
        size = math.prod(local[1:]) * array.dtype.itemsize
        return options(shard_axes=(0,)) if local and size >= _SMALLEST else None

    context = orbax_context(directory)
    context.array.saving.scoped_storage_options_creator = chunks
    return context


class SavedArray:
    """One array of a step, read from disk whole or in parts, into the host's memory.

    What was damaged in a part is known once all parts are read, for the checksum is
    that of the array.

    Args:
      path: The directory of the step.
      record: The record in it.
      name: Path of the array in the state, as the record has it.
      allow_non_finite: Whether values may be NaN or infinite.
    """

    def __init__(
        self,
        path: AnyPath,
        record: Record,
        name: str,
        allow_non_finite: bool = False,
    ):
        self._path = path
        self._record = record
        self._name = name
        self._allow_non_finite = allow_non_finite
        self._found: dict[int, Fingerprint] = {}

    @property
    def is_in_parts(self) -> bool:
        """Whether each part has chunks of its own."""
        chunk = self._store.chunk_layout.read_chunk.shape
        return bool(chunk) and chunk[0] == 1 < self._store.shape[0]

    def read(self) -> np.ndarray:
        """Returns the whole array.

        Raises:
          DamagedCheckpointError: If it cannot be read, is not what was written, or is
            not finite but must be.
        """
        array = self._values(...)
        self._check(fingerprint_of(array))
        return array

    def read_part(self, index: int) -> np.ndarray:
        """Returns the part at an index.

        Raises:
          DamagedCheckpointError: As `read`; the last part to be read tells whether the
            array is what was written.
        """
        part = self._values(index)
        self._found[index] = found = fingerprint_of(part[None], (index,))
        if len(self._found) == self._store.shape[0]:
            self._check(of_parts(self._found.values()))
        elif not found.finite:
            self._check(found._replace(checksum=self._saved["checksum"]))
        return part

    @functools.cached_property
    def _store(self) -> Any:
        import tensorstore  # comes with Orbax, which few commands need

        base = kvstore(self._path / "state")
        store = {"driver": "ocdbt", "base": base, "path": f"{self._name}/"}
        spec = {"driver": "zarr3", "kvstore": store}
        try:
            return tensorstore.open(spec, read=True, open=True).result()
        except Exception as error:
            raise DamagedCheckpointError(gist(error)) from None

    def _values(self, index: Any) -> np.ndarray:
        try:
            return self._store[index].read().result()
        except Exception as error:
            raise DamagedCheckpointError(gist(error)) from None

    @property
    def _saved(self) -> dict[str, Any]:
        return self._record.leaves[self._name]

    def _check(self, found: Fingerprint) -> None:
        leaf = self._saved | found._asdict()
        check_leaf(self._record, self._name, leaf, self._allow_non_finite)
