"""Saves the state of a run every so many steps, and finds it again."""

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from typing import Annotated, Any

from maxfdl.checkpoint.chunks import saving_context
from maxfdl.checkpoint.failure import SaveError, gist, storage_problem
from maxfdl.checkpoint.load import StepReader, check_fits, load_step
from maxfdl.checkpoint.orbax import import_orbax
from maxfdl.checkpoint.processes import say
from maxfdl.checkpoint.record import (
    DamagedCheckpointError,
    Record,
    read_record,
    record_of,
)
from maxfdl.checkpoint.steps import remove_unfinished, set_aside_from, steps_in
from maxfdl.checkpoint.structure import Abstract, listed
from maxfdl.data.places import joined
from maxfdl.errors import UserError
from maxfdl.markers import FromParent, Operational
from maxfdl.paths import AnyPath, as_path


class NoData:
    """The place in its data of a state that has no data."""

    def get_state(self) -> dict[str, Any]:
        return {}

    def set_state(self, place: Any) -> None:
        del place


class Checkpointer:
    """Keeps the newest checkpoints of a run, each in one atomic step directory.

    A step holds the arrays of the state and a sealed record: the step's number, the
    experiment, the place of every process in its data, and a checksum of every array.
    So a step that was damaged on disk, or put together from several, is noticed: a
    restore then continues from the newest older step that is whole, and says so.
    Values that are not finite are neither saved nor read unless that is asked for.

    Orbax is imported when the first step is saved or restored (about 0.5 seconds);
    `orbax.import_orbax` imports it earlier.

    Args:
      every_steps: Steps from one save to the next. Must be positive.
      keep: Number of newest steps that stay on disk. Must be positive; with 1 there is
        nothing to fall back to when that step is damaged.
      directory: Where the step directories go; made when the first is written.

    Raises:
      UserError: If `every_steps` or `keep` is not positive.
    """

    def __init__(
        self,
        every_steps: Annotated[int, Operational] = 500,
        keep: Annotated[int, Operational] = 3,
        *,
        directory: Annotated[str | os.PathLike, FromParent],
    ):
        self.every_steps = every_steps
        self.keep = keep
        self.directory = as_path(directory).absolute()
        for problem in self.check_config(self):
            raise UserError(problem)
        self._writer: Any = None  # ocp.training.Checkpointer, from the first save on
        self._pending: Any = None  # the response of the save that is under way
        self._newest: int | None = None  # the step saved or restored last

    @staticmethod
    def check_config(node: Any) -> Iterable[str]:
        for field in ("every_steps", "keep"):
            if getattr(node, field) < 1:
                yield (
                    f"Checkpointer {field} ({getattr(node, field)}) must be at least 1;"
                    " give a positive number."
                )

    def latest(self) -> int | None:
        """Returns the newest step on disk, or None. It may yet prove damaged."""
        return max(steps_in(self.directory), default=None)

    def wants(self, step: int) -> bool:
        """Returns whether a save is due after `step` steps."""
        return step > 0 and step % self.every_steps == 0

    def save(
        self,
        step: int,
        state: Any,
        data_iterator: Any,
        graph_json: str,
        *,
        allow_non_finite: bool = False,
    ) -> None:
        """Saves `step` in the background; the caller may donate `state` afterwards.

        Blocks until the arrays are copied and an earlier save is done. Saving the step
        that was saved or restored last does nothing. Other steps on disk that are not
        older than `step` belong to a future that this run has left, and are set aside.

        Args:
          step: Number of steps that `state` has seen.
          state: Nested dict of jax arrays, whose keys are names.
          data_iterator: Gives the data position through `get_state`, as JSON values.
          graph_json: The experiment.
          allow_non_finite: Whether values of `state` may be NaN or infinite.

        Raises:
          SaveError: If this step, or the one that was under way, cannot be written, or
            if `state` holds values that are not finite.
        """
        if step == self._newest:
            return
        self.wait()
        record = record_of(step, state, data_iterator, graph_json)
        if record.not_finite and not allow_non_finite:
            raise SaveError(self._refusal(record))
        with self._explain_failure(step):
            self._set_aside_from(step)
            self._pending = self._open_writer().save_checkpointables_async(
                step, {"state": state}, force=True, custom_metadata=record.sealed()
            )
        self._newest = step

    def leave_behind(self, step: int) -> None:
        """Sets steps after `step` aside: they are of a future that the run has left.

        Raises:
          SaveError: If that cannot be done.
        """
        self.wait()
        with self._explain_failure(step):
            self._set_aside_from(step + 1)

    def _set_aside_from(self, step: int) -> None:
        if set_aside_from(self.directory, step) and self._writer is not None:
            self._writer.reload()

    def restore(self, step: int, abstract_state: Abstract, data_iterator: Any) -> Any:
        """Returns the state saved at `step`, and sets `data_iterator` to its place.

        If that step is damaged, takes the newest older one that is not, and says so on
        stderr; the state tells which step it is from.

        Args:
          step: One of the steps on disk.
          abstract_state: Tree of `jax.ShapeDtypeStruct` with shardings, which need not
            be those that were saved, nor on as many devices or processes. If its shapes
            depend on what was saved, a function that returns it.
          data_iterator: An iterator over the same data; its `set_state` gets the place
            of all processes, see `maxfdl.data.places.joined`.

        Raises:
          UserError: If the leaves saved are not those of `abstract_state`, with the
            paths of those that differ, if no step on disk is whole, or if the iterator
            refuses its place, because it is over other data.
        """
        state, record = self._load_newest(step, abstract_state, whole=True)
        set_place(data_iterator, record, self.directory)
        self._newest = record.step
        return state

    def read(
        self, step: int, abstract_part: Abstract, *, allow_non_finite: bool = False
    ) -> Any:
        """Returns top-level entries of the state, for tools: `{"params": ...}`, say.

        Falls back, and fails, as `restore` does: also where values are not finite,
        which may have been allowed when they were saved, unless they are allowed here.
        """
        state, _ = self._load_newest(
            step, abstract_part, whole=False, allow_non_finite=allow_non_finite
        )
        return state

    def reader(self, step: int, abstract_part: Any, **how: bool) -> StepReader:
        """Returns what reads single arrays of a step.

        Args:
          step: One of the steps on disk.
          abstract_part: Top-level entries of the state, as in `read`.
          **how: `allow_non_finite`, as in `read`.

        Raises:
          UserError: If these are not the leaves that were saved; when an array is read,
            if it is damaged, or not finite.
        """

        def refuse(error: DamagedCheckpointError) -> UserError:
            return UserError(
                f"Checkpoint step {step} in {self.directory} is damaged ({error}); take"
                " it away to use the one before, or put back a copy."
            )

        path = self.directory / str(step)
        try:
            record = read_record(path)
        except DamagedCheckpointError as error:
            raise refuse(error) from error
        check_fits(path, record, abstract_part, whole=False)
        return StepReader(path, record, refuse, **how)

    def graph(self, step: int) -> str:
        """Returns the experiment as it was saved with `step`, as JSON."""
        try:
            return json.dumps(read_record(self.directory / str(step)).graph)
        except DamagedCheckpointError as error:
            raise UserError(
                f"The experiment of checkpoint step {step} in {self.directory} cannot"
                f" be read ({error}); read config.json of the run instead."
            ) from error

    def graphs(self) -> dict[int, str]:
        """Returns the experiment of every step whose record is whole, newest first."""
        found = {}
        for step in reversed(steps_in(self.directory)):
            with contextlib.suppress(DamagedCheckpointError):
                record = read_record(self.directory / str(step))
                found[step] = json.dumps(record.graph)
        return found

    def wait(self) -> None:
        """Blocks until the save that is under way, if any, is on disk."""
        pending, self._pending = self._pending, None
        if pending is not None:
            assert self._newest is not None
            with self._explain_failure(self._newest):
                pending.result()

    def close(self) -> None:
        """Waits, and lets go of what Orbax holds."""
        try:
            self.wait()
        finally:
            self._close_writer()

    def _open_writer(self) -> Any:
        if self._writer is None:
            training = import_orbax().training
            self.directory.mkdir(parents=True, exist_ok=True)
            self._writer = training.Checkpointer(
                str(self.directory),
                save_decision_policy=training.save_decision_policies.FixedIntervalPolicy(
                    self.every_steps
                ),
                preservation_policy=training.preservation_policies.LatestN(self.keep),
                cleanup_tmp_directories=True,
                context=saving_context(self.directory),
            )
        return self._writer

    def _close_writer(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            # After a failed save it raises that failure again.
            with contextlib.suppress(Exception):
                writer.close()

    def _load_newest(
        self, step: int, abstract: Abstract, **how: bool
    ) -> tuple[Any, Record]:
        """Returns the newest whole state that is not after `step`, and its record."""
        self.wait()
        steps = steps_in(self.directory)
        if step not in steps:
            raise UserError(
                f"Checkpoint directory {self.directory} has no step {step}; it holds"
                f" {', '.join(map(str, steps)) or 'none'}."
            )
        problems = []
        for candidate in reversed(steps[: steps.index(step) + 1]):
            if problems:
                say(f"checkpoint {problems[-1]}; trying step {candidate}")
            try:
                path = self.directory / str(candidate)
                record = read_record(path)
                wanted = abstract(record.structure) if callable(abstract) else abstract
                return load_step(path, record, wanted, **how), record
            except DamagedCheckpointError as error:
                problems.append(f"step {candidate} is damaged ({error})")
        raise UserError(
            f"No checkpoint in {self.directory} can be restored: {'; '.join(problems)};"
            " put back a copy of one, or start in another directory."
        )

    @contextlib.contextmanager
    def _explain_failure(self, step: int) -> Iterator[None]:
        """Makes one sentence of a failure to write, and removes what was written."""
        try:
            yield
        except Exception as error:
            self._newest = None
            self._close_writer()
            remove_unfinished(self.directory)
            problem = storage_problem(error)
            if problem is None:
                raise
            raise SaveError(
                f"Checkpoint step {step} cannot be written to {self.directory}"
                f" ({problem}); make room there or give another directory with"
                f" --run_dir{self._complete()}."
            ) from error

    def _refusal(self, record: Record) -> str:
        return (
            f"Checkpoint step {record.step} is not saved, for these hold values that"
            f" are not finite: {listed(record.not_finite)}. Look at the data, or go on"
            " in another --run_dir with init_from=<this one> and a lower"
            f" optimizer.schedule.peak{self._complete()}."
        )

    def _complete(self) -> str:
        """Returns a remark on which step is complete, if any is."""
        newest = self.latest()
        return "" if newest is None else f" (step {newest} is complete)"


def set_place(data_iterator: Any, record: Record, directory: AnyPath) -> None:
    """Puts an iterator where it was when a step was saved; see `Checkpointer.restore`.

    Raises:
      UserError: If it refuses its place.
    """
    try:
        data_iterator.set_state(joined(record.places))
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"The data of this experiment cannot take the place that {directory} saved:"
            f" {gist(error)}; restore with the data that was saved, or give another"
            " directory."
        ) from error
