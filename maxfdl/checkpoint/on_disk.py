"""Steps on disk, one array at a time: for tools that know no experiment."""

import contextlib
import dataclasses
import functools
import math
import pathlib
import shutil
from collections.abc import Callable, Iterator

import jax.numpy as jnp
import numpy as np

from maxfdl.checkpoint.chunks import SavedArray
from maxfdl.checkpoint.load import check_tree
from maxfdl.checkpoint.record import DamagedCheckpointError, Record, read_record
from maxfdl.checkpoint.steps import steps_in
from maxfdl.errors import UserError
from maxfdl.paths import AnyPath, as_path, files_in

CHECKPOINTS = "checkpoints"
"""Folder of a run that holds its steps."""


class StepOnDisk:
    """One step directory, read array by array.

    Args:
      path: The directory; its name is the step.
    """

    def __init__(self, path: AnyPath):
        self.path = path

    @property
    def step(self) -> int:
        return int(self.path.name)

    @property
    def num_bytes(self) -> int:
        """Bytes of all its files."""
        return sum(file.stat().st_size for file in files_in(self.path))

    @property
    def saved_at(self) -> float:
        """When it became whole, in seconds since 1970."""
        if isinstance(self.path, pathlib.Path):
            return self.path.stat().st_mtime
        return max(file.stat().st_mtime for file in self.path.files())

    def remove(self) -> None:
        """Removes it from disk.

        Raises:
          UserError: If it cannot be removed.
        """
        try:
            if isinstance(self.path, pathlib.Path):
                shutil.rmtree(self.path)
            else:
                self.path.rmtree()
        except OSError as error:
            raise UserError(
                f"checkpoint {self.path} cannot be removed ({error.strerror})."
            ) from None

    @functools.cached_property
    def record(self) -> Record:
        """What the step says about itself.

        Raises:
          UserError: If it is damaged, or of another format.
        """
        with self._explained():
            return read_record(self.path)

    def array(self, path: str) -> np.ndarray:
        """Returns one array, as it was saved.

        Raises:
          UserError: If it is damaged.
        """
        with self._explained():
            saved = SavedArray(self.path, self.record, path, allow_non_finite=True)
            return saved.read()

    def check(self) -> None:
        """Reads the whole step, one array at a time.

        Raises:
          UserError: If a bit of it is not as it was written.
        """
        with self._explained():
            check_tree(self.path, self.record)
        for path in self.record.structure:
            self.array(path)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except DamagedCheckpointError as error:
            raise UserError(f"checkpoint {self.path} is damaged: {error}.") from None


def all_steps(folder: str) -> list[StepOnDisk]:
    """Returns the steps of a run, of a directory of steps, or a step itself.

    Raises:
      UserError: If there are none.
    """
    path = as_path(folder).absolute()
    if path.name.isdecimal() and not steps_in(path) and path.is_dir():
        return [StepOnDisk(path)]
    inside = path / CHECKPOINTS
    holder = inside if inside.is_dir() else path
    found = [StepOnDisk(holder / str(step)) for step in steps_in(holder)]
    if not found:
        raise UserError(
            f"{folder} must be the directory of a run that has saved, of its"
            " checkpoints, or of one step."
        )
    return found


def one_step(folder: str, step: int | None = None) -> StepOnDisk:
    """Returns a step of a folder as `all_steps` takes it: the newest, unless told.

    Raises:
      UserError: If there is no such step.
    """
    found = all_steps(folder)
    if step is None:
        return found[-1]
    for each in found:
        if each.step == step:
            return each
    there = ", ".join(str(each.step) for each in found)
    raise UserError(f"{folder} has no step {step}; it holds {there}.")


@dataclasses.dataclass(frozen=True)
class Values:
    """What an array holds.

    Args:
      norm: Root of the sum of squares of its finite elements, in float64; None for
        elements that are no numbers.
      not_finite: How many elements are NaN or infinite.
    """

    norm: float | None
    not_finite: int


def values(array: np.ndarray) -> Values:
    """Returns what is known of an array's elements."""
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        return Values(None, 0)
    numbers = array.astype(np.float64)
    finite = np.isfinite(numbers)
    squares = np.square(np.where(finite, numbers, 0.0))
    return Values(math.sqrt(float(squares.sum())), int(numbers.size - finite.sum()))


def differences(
    old: StepOnDisk,
    new: StepOnDisk,
    atol: float = 0.0,
    each: Callable[[str], object] = lambda path: None,
) -> Iterator[str]:
    """Yields a line for each array that one step lacks or that differs.

    NaN equals NaN. Memory: one array of each.

    Args:
      old: The first step.
      new: The second.
      atol: Largest absolute difference that is none.
      each: Is called with the path of every array that is compared.
    """
    a, b = old.record.structure, new.record.structure
    for path in a:
        if path not in b:
            yield f"- {path} {_kind(a[path])}"
    for path, kind in b.items():
        if path not in a:
            yield f"+ {path} {_kind(kind)}"
        elif a[path] != kind:
            yield f"~ {path}: {_kind(a[path])} -> {_kind(kind)}"
        else:
            each(path)
            if found := _difference(old.array(path), new.array(path), atol=atol):
                yield f"~ {path}: {found}"


def _kind(kind: tuple[tuple[int, ...], str]) -> str:
    shape, dtype = kind
    return f"{dtype}{list(shape)}"


def _difference(a: np.ndarray, b: np.ndarray, atol: float) -> str | None:
    if a.tobytes() == b.tobytes():
        return None
    wide = np.complex128 if np.iscomplexobj(a) else np.float64
    left, right = a.astype(wide), b.astype(wide)
    same = (left == right) | (np.isnan(left) & np.isnan(right))
    with np.errstate(invalid="ignore"):  # the difference of two infinities
        gaps = np.where(same, 0.0, np.abs(left - right))
    beyond = ~(gaps <= atol)
    if not beyond.any():
        return None
    count = int(beyond.sum())
    return f"{count:,} of {a.size:,} elements differ, by {np.max(gaps):.6g} at most"
