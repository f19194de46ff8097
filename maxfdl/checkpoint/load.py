"""Loading one step, with every check that it is what was saved and what is wanted."""

import contextlib
import gc
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from maxfdl.checkpoint.chunks import SavedArray
from maxfdl.checkpoint.failure import gist
from maxfdl.checkpoint.orbax import import_orbax, orbax_context
from maxfdl.checkpoint.processes import gather
from maxfdl.checkpoint.record import (
    DamagedCheckpointError,
    Record,
    check_arrays,
)
from maxfdl.checkpoint.structure import differences, structure_of
from maxfdl.errors import UserError
from maxfdl.paths import AnyPath


def load_step(
    path: AnyPath,
    record: Record,
    abstract: Any,
    *,
    whole: bool,
    allow_non_finite: bool = False,
) -> Any:
    """Returns the state in the step directory `path`.

    Args:
      path: The directory.
      record: The record in it.
      abstract: What the state looks like.
      whole: Whether to continue the run; else `abstract` may leave out top-level
        entries of the state.
      allow_non_finite: Whether values may be NaN or infinite.

    Raises:
      UserError: If what was saved is not what `abstract` describes.
      DamagedCheckpointError: If it cannot be read, or is not what was written.
    """
    check_fits(path, record, abstract, whole)
    problem = state = None
    try:
        state = _load_arrays(path, abstract, whole)
    except Exception as error:
        problem = gist(error)
    # What one process cannot read is damaged for all.
    problem = next(filter(None, gather(problem)), None)
    if problem is None:
        check_arrays(record, state, allow_non_finite=allow_non_finite)
        return state
    # Frees what was loaded before the older step needs the room.
    del state
    gc.collect()
    raise DamagedCheckpointError(problem)


class StepReader:
    """Reads single arrays of one step, for tools that hold no more in memory.

    There is no falling back to an older step: arrays of two steps belong to no state.

    Args:
      path: The directory of the step.
      record: The record in it.
      refuse: From what is damaged to the error for the user.
      allow_non_finite: Whether values may be NaN or infinite.
    """

    def __init__(
        self,
        path: AnyPath,
        record: Record,
        refuse: Callable[[DamagedCheckpointError], Exception],
        allow_non_finite: bool = False,
    ):
        self._path = path
        self._record = record
        self._refuse = refuse
        self._allow_non_finite = allow_non_finite
        self._arrays: dict[tuple[str, ...], SavedArray] = {}

    def read(self, keys: Sequence[str]) -> np.ndarray:
        """Returns the array under `keys`."""
        with self._refused():
            return self._array(keys).read()

    def is_in_parts(self, keys: Sequence[str]) -> bool:
        """Says whether each index of the first dim of that array can be read alone."""
        with self._refused():
            return self._array(keys).is_in_parts

    def read_part(self, keys: Sequence[str], index: int) -> np.ndarray:
        """Returns what that array holds at an index of its first dim."""
        with self._refused():
            return self._array(keys).read_part(index)

    def _array(self, keys: Sequence[str]) -> SavedArray:
        key, allow = tuple(keys), self._allow_non_finite
        if key not in self._arrays:
            name = ".".join(keys)
            self._arrays[key] = SavedArray(self._path, self._record, name, allow)
        return self._arrays[key]

    @contextlib.contextmanager
    def _refused(self) -> Iterator[None]:
        try:
            yield
        except DamagedCheckpointError as error:
            raise self._refuse(error) from error


def saved_tree(path: AnyPath) -> Any:
    """Returns the tree of a step's state, with a description of each array.

    Raises:
      DamagedCheckpointError: If it cannot be read.
    """
    ocp = import_orbax()
    logging.disable(logging.WARNING)  # of what is damaged, Orbax tells a page
    try:
        with orbax_context(path):
            tree = ocp.checkpointables_metadata(str(path)).metadata["state"]
    except Exception as error:
        raise DamagedCheckpointError(gist(error)) from None
    finally:
        logging.disable(logging.NOTSET)
    if tree is None:
        raise DamagedCheckpointError("the tree of its arrays cannot be read")
    return tree


def check_tree(path: AnyPath, record: Record) -> None:
    """Raises DamagedCheckpointError unless Orbax can restore the tree of the record.

    It reads the smallest array, for which it needs all files but those of the others.
    """
    tree = saved_tree(path)
    if problem := differences(structure_of(tree), record.structure):
        raise DamagedCheckpointError(f"its arrays are not those saved: {problem}")
    smallest = min(jax.tree.leaves(tree), key=lambda leaf: math.prod(leaf.shape))
    part = jax.tree.map(
        lambda leaf: (
            jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if leaf is smallest else None
        ),
        tree,
    )
    try:
        _load_arrays(path, part, whole=False)
    except Exception as error:
        raise DamagedCheckpointError(gist(error)) from None


def check_fits(path: AnyPath, record: Record, abstract: Any, whole: bool) -> None:
    """Raises UserError unless the saved leaves are just those of `abstract`."""
    saved = record.structure
    if not whole:
        saved = {
            key: leaf for key, leaf in saved.items() if key.split(".")[0] in abstract
        }
    if problems := differences(saved, structure_of(abstract)):
        raise UserError(
            f"Checkpoint {path} is of another experiment: {problems}; restore the"
            " experiment that was saved, or give another directory."
        )


def _load_arrays(path: AnyPath, abstract: Any, whole: bool) -> Any:
    ocp = import_orbax()
    context = orbax_context(path)
    context.pytree.loading.partial_load = not whole
    with context:
        return ocp.load_checkpointables(str(path), {"state": _placed(abstract)})[
            "state"
        ]


def _placed(abstract: Any) -> Any:
    """Returns `abstract` with leaves that name no sharding put on one device."""
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=leaf.sharding or device
        ),
        abstract,
    )
