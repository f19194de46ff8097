"""Checkpoints on the disks of the machines that train, with copies at their peers.

They are quick to write and to read, so they can be taken often; they are lost when two
machines are. The steps of the checkpointer stay what a run is kept by.
"""

import concurrent.futures
import dataclasses
import hashlib
import os
import pathlib
import shutil
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any

import jax
import numpy as np

from maxfdl.checkpoint.courier import send
from maxfdl.checkpoint.load import check_fits
from maxfdl.checkpoint.pieces import (
    Piece,
    PieceFile,
    assembled,
    from_bytes,
    held_here,
    pieces_of,
    to_bytes,
    write_pieces,
)
from maxfdl.checkpoint.processes import gather, say, synchronise
from maxfdl.checkpoint.record import (
    DamagedCheckpointError,
    Record,
    check_arrays,
    record_of,
)
from maxfdl.checkpoint.steps import EMERGENCY_ID, size_text
from maxfdl.checkpoint.structure import Abstract
from maxfdl.errors import UserError
from maxfdl.files import on_this_machine, write_atomically
from maxfdl.markers import Operational
from maxfdl.paths import AnyPath

_SUFFIX = ".pieces"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Emergency:
    """Saves on local disks, beside those of the checkpointer.

    Each process writes what its devices hold. Its peer, half of the processes away,
    writes a copy of what it does not hold itself: nothing, where weights are replicated
    over processes; the whole share of a process, where they are sharded over all. That
    share is `state / processes` bytes, which each process sends and receives once per
    save, over the links between devices.

    A run that starts again takes the newest step of which every share is left on some
    disk, unless the newest checkpoint is newer. It must have as many processes and
    the same mesh; otherwise it goes on from the checkpoint. A single process has no
    peer, and reads its own disk.

    Args:
      folder: On a disk, or in memory, of each machine: not one that machines share.
        `~` and `$NAME` stand for what they are on that machine.
      every_steps: Steps from one save to the next. Must be positive.
      keep: Number of newest steps that stay. At least 2: while one is written, that
        before it is needed.
    """

    folder: Annotated[str, Operational]
    every_steps: Annotated[int, Operational] = 10
    keep: Annotated[int, Operational] = 2

    @staticmethod
    def check_config(node: Any) -> Iterable[str]:
        if node.every_steps < 1:
            yield f"Emergency every_steps ({node.every_steps}) must be at least 1."
        if node.keep < 2:
            yield (
                f"Emergency keep ({node.keep}) must be at least 2: while a step is"
                " written, the one before it is needed."
            )
        if "://" in node.folder:
            yield (
                f"Emergency folder ({node.folder}) must be on a disk of each machine;"
                " Experiment.checkpoint saves into buckets."
            )

    def wants(self, step: int) -> bool:
        """Returns whether a save is due after `step` steps."""
        return step > 0 and step % self.every_steps == 0


class LocalSteps:
    """The emergency checkpoints of one run, as this process sees them.

    All processes must call each method, in the same order.

    Args:
      options: Where and how many.
      directory: Of the run. It keeps a random name, under which the steps are found: so
        those of a run that had this directory before are not seen, nor, in a copy of
        the directory, those of the run that was copied.

    Raises:
      UserError: If the folder cannot be made, or names a variable that is not set.
    """

    def __init__(self, options: Emergency, directory: AnyPath):
        self._options = options
        root = _folder(options)
        self._id_file = directory / EMERGENCY_ID
        self._id, folder = _id_and_folder(self._id_file)
        self._run = root / folder
        self._own = self._run / f"process_{jax.process_index()}"
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unusable(error.strerror) from error
        self._writer = concurrent.futures.ThreadPoolExecutor(1)
        self._pending: concurrent.futures.Future | None = None

    def wants(self, step: int) -> bool:
        """Returns whether a save is due after `step` steps."""
        return self._options.wants(step)

    def check_room(self, abstract_state: Any) -> str:
        """Returns a sentence on what each save takes and sends.

        Raises:
          UserError: If there is no room for that, or nothing can be written.
        """
        own = pieces_of(abstract_state, jax.process_index())
        plan = _Exchange(abstract_state, own)
        size, sent = _size(own) + _size(plan.taken), _size(plan.given)
        count = self._options.keep + 1  # one is written before one is removed
        try:
            with tempfile.TemporaryFile(dir=self._run.parent, buffering=0) as probe:
                probe.write(b"probe")
            free = shutil.disk_usage(self._run.parent).free
            # Steps of an earlier start are removed as new ones are written.
            held = [path.stat().st_size for path in self._run.rglob(f"*{_SUFFIX}")]
        except OSError as error:
            raise self._unusable(error.strerror) from error
        if free + sum(held) < count * size:
            raise self._unusable(
                f"{count} checkpoints of {size_text(size)} are to be there at once, and"
                f" {size_text(free)} are free"
            )
        return (
            f"emergency checkpoints every {self._options.every_steps} steps in"
            f" {self._run.parent}: {size_text(size)} for each process, of which"
            f" {size_text(sent)} are sent"
        )

    def _unusable(self, why: str | None) -> UserError:
        return UserError(
            f"Emergency folder {self._run.parent} cannot be used ({why}); give another,"
            " on a disk of each machine."
        )

    def save(self, step: int, state: Any, data_iterator: Any, graph_json: str) -> None:
        """Saves `step`, unless the state holds values that are not finite.

        Copies the state, sends to the peer what it is to keep, and writes both in
        the background. What cannot be written is told on stderr: the run goes on.
        Arguments are as of `record_of`.
        """
        self.wait()
        self.leave_behind(step)
        record = record_of(step, state, data_iterator, graph_json)
        if record.not_finite:
            return
        own = held_here(state)
        theirs = _Exchange(state, own).run(own)
        shares = {f"own{_SUFFIX}": own, f"peer{_SUFFIX}": theirs}
        about = {"record": dataclasses.asdict(record), "processes": jax.process_count()}
        self._pending = self._writer.submit(self._write, step, about, shares)

    def leave_behind(self, step: int) -> None:
        """Removes steps after `step`: they are of a future that the run has left."""
        self._remove(lambda found: found > step)

    def _write(
        self, step: int, about: Any, shares: Mapping[str, dict[Piece, np.ndarray]]
    ) -> None:
        try:
            if jax.process_index() == 0 and not self._id_file.is_file():
                write_atomically(self._id_file, self._id)
            shutil.rmtree(self._own / str(step), ignore_errors=True)
            for name, pieces in shares.items():
                if pieces:
                    write_pieces(self._own / str(step) / name, about, pieces)
            newest = _steps_in(self._own)[-self._options.keep :]
            if len(newest) == self._options.keep:
                self._remove(lambda found: found < newest[0])
        except OSError as error:
            print(
                f"emergency checkpoint of step {step} cannot be written to {self._own}"
                f" ({error.strerror}); the run goes on without it",
                file=sys.stderr,
                flush=True,
            )

    def _remove(self, which: Callable[[int], bool]) -> None:
        """Removes steps from this disk, also those of a process that was here before.

        If others write there too, each has finished the step before that which this
        process saves, and has begun none after it: they meet in each save.
        """
        for folder in self._run.glob("process_*"):
            for step in filter(which, _steps_in(folder)):
                shutil.rmtree(folder / str(step), ignore_errors=True)

    def steps(self) -> list[int]:
        """Returns the steps of which something is left on any disk, oldest first."""
        found = {
            step for folder in self._run.glob("process_*") for step in _steps_in(folder)
        }
        return sorted({step for each in gather(sorted(found)) for step in each})

    def newest(
        self, first: int, last: int, abstract: Abstract
    ) -> tuple[Any, Record] | None:
        """Returns the newest step between two, or None if none of them is whole.

        Args:
          first, last: The steps.
          abstract: What a state looks like.

        Raises:
          UserError: If a step holds the state of another experiment.
        """
        steps = [step for step in self.steps() if first <= step <= last]
        for step in reversed(steps):
            try:
                record = self._record(step)
                wanted = abstract(record.structure) if callable(abstract) else abstract
                check_fits(self._run / str(step), record, wanted, whole=True)
                return self._load(record, wanted), record
            except DamagedCheckpointError as error:
                say(f"emergency checkpoint of step {step} is passed over: {error}")
        return None

    def _record(self, step: int) -> Record:
        """Raises DamagedCheckpointError if no process can read it, or two differ."""
        here = next((file.about for file in self._files(step)), None)
        found = [each for each in gather(here) if each is not None]
        if not found:
            raise DamagedCheckpointError("no disk holds its record")
        if any(each != found[0] for each in found):
            raise DamagedCheckpointError("the disks hold two steps by that number")
        if found[0]["processes"] != jax.process_count():
            raise DamagedCheckpointError(
                f"{found[0]['processes']} processes saved it, and these are"
                f" {jax.process_count()}"
            )
        return Record(**found[0]["record"])

    def _load(self, record: Record, abstract: Any) -> Any:
        """Returns a state, whose shares may come from the disks of other processes.

        Args:
          record: Of the step.
          abstract: The state that is wanted, with shardings.

        Raises:
          DamagedCheckpointError: If a share is left on no disk, or was saved on another
            mesh, or if the state is not what was saved.
        """
        if any(leaf.sharding is None for leaf in jax.tree.leaves(abstract)):
            raise DamagedCheckpointError("another number of replicas saved it")
        files = [*self._files(record.step)]
        wanted = pieces_of(abstract, jax.process_index())
        found = dict(_readable(files, wanted, tell=True))
        missing = gather([i for i, piece in enumerate(wanted) if piece not in found])
        asked = {
            process: [pieces_of(abstract, process)[i] for i in numbers]
            for process, numbers in enumerate(missing)
            if numbers
        }
        given = {
            process: dict(_readable(files, names)) for process, names in asked.items()
        }
        able = gather([p for p, names in asked.items() if len(given[p]) == len(names)])
        for ways in _rounds(asked, able):
            to = next((b for a, b in ways if a == jax.process_index()), None)
            data = b"" if to is None else to_bytes(given[to], asked[to])
            received = send(data, ways)
            if received:
                found |= from_bytes(received, asked[jax.process_index()])
        state = assembled(abstract, found)
        check_arrays(record, state, allow_non_finite=False)
        return state

    def clear(self) -> None:
        """Removes all of this run from this disk: a checkpoint has it all."""
        self.wait()
        synchronise("maxfdl emergency checkpoints are written")  # on a disk they share
        shutil.rmtree(self._run, ignore_errors=True)

    def wait(self) -> None:
        """Blocks until what was saved last is on disk."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _files(self, step: int) -> Iterator[PieceFile]:
        """Yields the files of a step on this disk; tells of those that are damaged."""
        for path in sorted(self._run.glob(f"process_*/{step}/*{_SUFFIX}")):
            try:
                yield PieceFile(path)
            except DamagedCheckpointError as error:
                _tell_damage(error)


def _folder(options: Emergency) -> pathlib.Path:
    """Returns the folder on this machine."""
    expanded = os.path.expandvars(options.folder)
    if "$" in expanded:
        raise UserError(
            f"Emergency folder ({options.folder}) names a variable that is not set on"
            " this machine; set it, or give another folder."
        )
    return on_this_machine(expanded).absolute()


class _Exchange:
    """What each process gives to its peer, half of the processes away.

    Args:
      state: Arrays, or their shapes and shardings.
      own: The pieces of this process.

    Attributes:
      given: Pieces that the peer does not hold itself.
      taken: Pieces that this process gets, to keep them for another.
    """

    def __init__(self, state: Any, own: Iterable[Piece]):
        me, count = jax.process_index(), jax.process_count()
        self._ways = [(i, (i + count // 2) % count) for i in range(count)]
        if count == 1:
            self.given, self.taken = [], []
            return
        mine = dict.fromkeys(own)
        theirs = set(pieces_of(state, dict(self._ways)[me]))
        sender = next(a for a, b in self._ways if b == me)
        self.given = [piece for piece in mine if piece not in theirs]
        self.taken = [x for x in pieces_of(state, sender) if x not in mine]

    def run(self, own: Mapping[Piece, np.ndarray]) -> dict[Piece, np.ndarray]:
        """Sends and receives; all processes must call."""
        if not any(gather(len(self.given))):
            return {}
        return from_bytes(send(to_bytes(own, self.given), self._ways), self.taken)


def _size(pieces: Iterable[Piece]) -> int:
    return sum(piece.num_bytes for piece in pieces)


def _rounds(
    asked: Mapping[int, Any], able: list[list[int]]
) -> Iterator[list[tuple[int, int]]]:
    """Yields who sends to whom, until all have what they ask for.

    Raises:
      DamagedCheckpointError: If a share is left on no disk.
    """
    left = dict.fromkeys(asked)
    lost = [p for p in left if not any(p in each for each in able)]
    if lost:
        raise DamagedCheckpointError(
            f"what process {lost[0]} held is left on no disk as this mesh needs it"
        )
    while left:
        ways: dict[int, int] = {}
        for receiver in [*left]:
            senders = (p for p, each in enumerate(able) if receiver in each)
            free = next((p for p in senders if p not in ways), None)
            if free is not None:
                ways[free] = receiver
                del left[receiver]
        yield [*ways.items()]


def _readable(
    files: list[PieceFile], pieces: Iterable[Piece], tell: bool = False
) -> Iterator[tuple[Piece, np.ndarray]]:
    """Yields those of the pieces that are whole in one of the files."""
    for piece in pieces:
        for file in files:
            if piece in file:
                try:
                    yield piece, file.read(piece)
                    break
                except DamagedCheckpointError as error:
                    if tell:
                        _tell_damage(error)


def _tell_damage(error: DamagedCheckpointError) -> None:
    print(f"emergency checkpoint: {error}", file=sys.stderr, flush=True)


def _steps_in(folder: pathlib.Path) -> list[int]:
    return sorted(int(path.name) for path in folder.glob("[0-9]*"))


def _id_and_folder(file: AnyPath) -> tuple[str, str]:
    """Returns the name that a run has in `file`, or a new one, and that of its folder.

    The folder is named by where the file is, too: in a copy of it, it is another one.
    """
    name = folder = ""
    if jax.process_index() == 0:
        name = file.read_text("utf-8") if file.is_file() else uuid.uuid4().hex
        place = os.path.realpath(file) if isinstance(file, pathlib.Path) else str(file)
        folder = hashlib.sha256(f"{name} {place}".encode()).hexdigest()[:32]
    name, folder = gather([name, folder])[0]
    return name, folder
