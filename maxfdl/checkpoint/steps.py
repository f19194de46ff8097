"""The step directories of a run: which there are, and whether another finds room."""

import pathlib
import shutil
import tempfile
import time
from typing import Any

import jax

from maxfdl.bucket import BucketPath
from maxfdl.checkpoint.failure import SaveError
from maxfdl.checkpoint.processes import say, synchronise
from maxfdl.paths import AnyPath, move, remove_folder

SET_ASIDE = "set_aside"
"""Folder inside the checkpoint directory for steps that the run has left behind."""

EMERGENCY_ID = "emergency.id"
"""File of a run directory by which its emergency checkpoints are found; it is written
with the first of them."""

_UNFINISHED = "*.orbax-checkpoint-tmp"
_COMMITTED = "commit_success.txt"
"""What Orbax writes last into a step in a bucket, where nothing can be renamed."""


def steps_in(directory: AnyPath) -> list[int]:
    """Returns the steps on disk, oldest first.

    A step is written under another name and renamed when it is whole. In a bucket it
    has its own name from the beginning, and a marker when it is whole.
    """
    if isinstance(directory, BucketPath):
        names = [path.parent.name for path in directory.glob(f"*/{_COMMITTED}")]
    elif directory.is_dir():
        names = [path.name for path in directory.iterdir() if path.is_dir()]
    else:
        return []
    return sorted(int(name) for name in names if name.isdecimal())


def check_room(directory: AnyPath, abstract_state: Any) -> None:
    """Raises SaveError if it is clear already that no step can be saved.

    Writes and removes a file, and compares the free space with the size of one
    checkpoint, before compression. An older step makes room only when a newer one is
    complete. A bucket has room for all.
    """
    needed = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(abstract_state))
    try:
        free = _room_after_a_probe(directory)
    except OSError as error:
        raise SaveError(
            f"Checkpoints cannot be written to {directory} ({error.strerror}); give"
            " another directory with --run_dir, or checkpoint=None to save nothing."
        ) from error
    if free is not None and free < needed:
        raise SaveError(
            f"Checkpoints take {size_text(needed)} each, and {directory} has"
            f" {size_text(free)} free; make room there, give another directory with"
            " --run_dir, or checkpoint=None to save nothing."
        )


def _room_after_a_probe(directory: AnyPath) -> int | None:
    """Returns the bytes that are free where a file could be written, if known."""
    if isinstance(directory, BucketPath):
        probe = directory / f"probe.{jax.process_index()}"
        probe.write_bytes(b"probe")
        probe.unlink()
        return None
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        file.write(b"probe")
    disk = shutil.disk_usage(directory)
    return disk.free if disk.total else None


def size_text(num_bytes: int) -> str:
    """Returns a number of bytes as people read it."""
    unit, size = next(
        (unit, size)
        for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
        if num_bytes >= size or unit == "kB"
    )
    return f"{num_bytes / size:,.1f} {unit}"


def set_aside_from(directory: AnyPath, step: int) -> list[int]:
    """Moves steps that are not older than `step` out of the way, and returns them."""
    left_behind = [found for found in steps_in(directory) if found >= step]
    synchronise(f"maxfdl checkpoint {step} listed")  # before any step moves
    if jax.process_index() == 0:
        for found in left_behind:
            target = directory / SET_ASIDE / str(found)
            target.parent.mkdir(exist_ok=True)
            if isinstance(directory, BucketPath):
                # Orbax removes folders without it when it starts.
                (directory / SET_ASIDE / _COMMITTED).write_bytes(b"")
            remove_folder(target)
            move(directory / str(found), target)
            say(f"checkpoint step {found} is moved to {target}")
    synchronise(f"maxfdl checkpoint {step} set aside")
    return left_behind


def remove_unfinished(directory: AnyPath) -> None:
    """Removes what a failed save has left, for its room may be needed.

    Other arrays of it may still be on their way to disk, and put files there while
    their folder is removed: so it is tried again until nothing is left, for a second.
    """
    if jax.process_index() != 0:
        return
    for _ in range(20):
        left = _unfinished(directory)
        for path in left:
            remove_folder(path)
        if not left:
            return
        time.sleep(0.05)


def _unfinished(directory: AnyPath) -> list[AnyPath]:
    if isinstance(directory, pathlib.Path):
        return [*directory.glob(_UNFINISHED)]
    if not directory.is_dir():
        return []
    whole = steps_in(directory)
    steps = [path for path in directory.iterdir() if path.name.isdecimal()]
    return [path for path in steps if int(path.name) not in whole]
