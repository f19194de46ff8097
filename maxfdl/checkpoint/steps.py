"""The step directories of a run: which there are, and whether another finds room."""

import pathlib
import shutil
import tempfile
import time
from typing import Any

import jax

from maxfdl.checkpoint.failure import SaveError
from maxfdl.checkpoint.processes import say, synchronise

SET_ASIDE = "set_aside"
"""Folder inside the checkpoint directory for steps that the run has left behind."""

_UNFINISHED = "*.orbax-checkpoint-tmp"


def steps_in(directory: pathlib.Path) -> list[int]:
    """Returns the steps on disk, oldest first.

    A step is written under another name and renamed when it is whole.
    """
    if not directory.is_dir():
        return []
    names = [path.name for path in directory.iterdir() if path.is_dir()]
    return sorted(int(name) for name in names if name.isdecimal())


def check_room(directory: pathlib.Path, abstract_state: Any) -> None:
    """Raises SaveError if it is clear already that no step can be saved.

    Writes and removes a file, and compares the free space with the size of one
    checkpoint, before compression. An older step makes room only when a newer one is
    complete.
    """
    needed = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(abstract_state))
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory, buffering=0) as probe:
            probe.write(b"probe")
        disk = shutil.disk_usage(directory)
    except OSError as error:
        raise SaveError(
            f"Checkpoints cannot be written to {directory} ({error.strerror}); give"
            " another directory with --run_dir, or checkpoint=None to save nothing."
        ) from error
    if disk.total and disk.free < needed:
        raise SaveError(
            f"Checkpoints take {_size(needed)} each, and {directory} has"
            f" {_size(disk.free)} free; make room there, give another directory with"
            " --run_dir, or checkpoint=None to save nothing."
        )


def _size(num_bytes: int) -> str:
    unit, size = next(
        (unit, size)
        for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
        if num_bytes >= size or unit == "kB"
    )
    return f"{num_bytes / size:,.1f} {unit}"


def set_aside_from(directory: pathlib.Path, step: int) -> list[int]:
    """Moves steps that are not older than `step` out of the way, and returns them."""
    left_behind = [found for found in steps_in(directory) if found >= step]
    synchronise(f"maxfdl checkpoint {step} listed")  # before any step moves
    if jax.process_index() == 0:
        for found in left_behind:
            target = directory / SET_ASIDE / str(found)
            target.parent.mkdir(exist_ok=True)
            shutil.rmtree(target, ignore_errors=True)
            (directory / str(found)).rename(target)
            say(f"checkpoint step {found} is moved to {target}")
    synchronise(f"maxfdl checkpoint {step} set aside")
    return left_behind


def remove_unfinished(directory: pathlib.Path) -> None:
    """Removes what a failed save has left, for its room may be needed.

    Other arrays of it may still be on their way to disk, and put files there while
    their folder is removed: so it is tried again until nothing is left, for a second.
    """
    if jax.process_index() != 0:
        return
    for _ in range(20):
        left = [*directory.glob(_UNFINISHED)]
        for path in left:
            shutil.rmtree(path, ignore_errors=True)
        if not left:
            return
        time.sleep(0.05)
