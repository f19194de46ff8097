"""Damages every file of a checkpoint in every way, and restores what is left."""

import itertools
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from maxfdl.checkpoint.checkpointer import Checkpointer, NoData
from maxfdl.checkpoint.load import saved_tree
from maxfdl.checkpoint.on_disk import StepOnDisk
from maxfdl.checkpoint.steps import steps_in
from maxfdl.errors import UserError

FLIPS = 25
"""Bits of a file that are flipped, one at a time."""


def delete(path: pathlib.Path) -> None:
    path.unlink()


def truncate(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: pathlib.Path) -> None:
    path.write_bytes(b"")


def flip_a_bit(path: pathlib.Path, position: int | None = None) -> None:
    content = bytearray(path.read_bytes())
    position = len(content) // 2 if position is None else position
    content[position] ^= 1 << position % 8
    path.write_bytes(content)


def damages(size: int) -> Iterator[tuple[str, Callable[[pathlib.Path], None]]]:
    """Yields what is done to a file of `size` bytes, in words and as a function."""
    yield from (("deleted", delete), ("cut to half", truncate), ("emptied", empty))
    for at in sorted({i * size // FLIPS for i in range(FLIPS)} if size else ()):
        yield f"with byte {at} changed", lambda path, at=at: flip_a_bit(path, at)


class Damaged:
    """The two newest steps of a run, of which the newest is damaged again and again.

    Args:
      checkpoints: Directory of the steps.
      folder: Where the copies go that are damaged.
    """

    def __init__(self, checkpoints: pathlib.Path, folder: pathlib.Path):
        self._checkpoints = checkpoints
        self._folder = folder
        self._older, self._newest = steps_in(checkpoints)[-2:]
        self._expected = {
            step: self._restored(checkpoints, step)
            for step in (self._older, self._newest)
        }

    def matrix(self) -> dict[str, int]:
        """Damages every file in every way.

        Returns:
          How many damages there were of each kind: after `fell back` the older step was
          restored; after `harmless` the newest step was, with every bit. `silently
          wrong` counts restored steps with a wrong bit, and newest steps that differ
          although `maxfdl checkpoint verify` finds them whole.
        """
        step = self._checkpoints / str(self._newest)
        found = {"fell back": 0, "harmless": 0, "silently wrong": 0}
        names = [path.relative_to(step) for path in step.rglob("*") if path.is_file()]
        number = itertools.count()  # tensorstore may remember a file by its path
        for name in sorted(names):
            for how, damage in damages((step / name).stat().st_size):
                copy = self._folder / f"copy{next(number)}"
                for each in (self._older, self._newest):
                    shutil.copytree(self._checkpoints / str(each), copy / str(each))
                damage(copy / str(self._newest) / name)
                outcome = self._outcome(copy)
                if outcome == "silently wrong":
                    print(f"silently wrong: {name} {how}", flush=True)
                found[outcome] += 1
                shutil.rmtree(copy)
        return found

    def _outcome(self, copy: pathlib.Path) -> str:
        state = self._restored(copy, self._newest)
        step = int(state["step"])
        if not _same_bits(state, self._expected[step]):
            return "silently wrong"
        if step == self._newest:
            return "harmless"
        return "silently wrong" if is_whole(copy / str(self._newest)) else "fell back"

    def _restored(self, checkpoints: pathlib.Path, step: int) -> Any:
        described = saved_tree(self._checkpoints / str(step))
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), described
        )
        return Checkpointer(directory=checkpoints).restore(step, abstract, NoData())


def is_whole(step: pathlib.Path) -> bool:
    """Returns what `maxfdl checkpoint verify` finds."""
    try:
        StepOnDisk(step).check()
    except UserError:
        return False
    return True


def _same_bits(a: Any, b: Any) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)
