"""The saves of a run: those that are due, and the one after a failure."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax

from maxfdl.checkpoint.checkpointer import Checkpointer, NoData, set_place
from maxfdl.checkpoint.emergency import LocalSteps
from maxfdl.checkpoint.failure import SaveError, gist
from maxfdl.checkpoint.steps import check_room, steps_in
from maxfdl.checkpoint.structure import Abstract
from maxfdl.errors import UserError
from maxfdl.experiment import Experiment
from maxfdl.run.directory import RunDirectory
from maxfdl.run.progress import say
from maxfdl.train.trainer import State


@dataclasses.dataclass
class Progress:
    """How far a run has come: the last complete step, the state after it, and the
    iterator of the batches that come next."""

    step: int
    state: State
    batches: Any


class Saves:
    """Saves a run, if its experiment has a checkpointer or emergency checkpoints.

    Args:
      checkpointer: None saves nothing.
      graph_json: The graph that is saved with the state.
      local: Emergency checkpoints, if there are such.
      directory: Of the run, for errors.
    """

    def __init__(
        self,
        checkpointer: Checkpointer | None,
        graph_json: str,
        local: LocalSteps | None,
        directory: RunDirectory,
    ):
        self._checkpointer = checkpointer
        self._graph_json = graph_json
        self._local = local
        self._directory = directory

    @classmethod
    def of(
        cls, experiment: Experiment, directory: RunDirectory, graph_json: str
    ) -> "Saves":
        """Returns the saves of an experiment into the directory of its run."""
        make = experiment.checkpoint
        checkpointer = make and make(directory=directory.checkpoints)
        emergency = experiment.emergency
        local = emergency and LocalSteps(emergency, directory.path)
        return cls(checkpointer, graph_json, local, directory)

    @property
    def latest(self) -> int | None:
        """The newest step on disk."""
        return self._checkpointer.latest() if self._checkpointer else None

    def newest(self) -> int | None:
        """Returns the newest step to go on from, be it of an emergency checkpoint; all
        processes must call."""
        local = self._local.steps() if self._local else []
        return max([*local, *filter(None, [self.latest])], default=None)

    def check_room(self, abstract_state: State) -> None:
        """Raises UserError if it is clear already that nothing can be saved."""
        if self._checkpointer:
            check_room(self._checkpointer.directory, abstract_state)
        if self._local:
            say(self._local.check_room(abstract_state))

    def restore(
        self, step: int, abstract_state: Abstract, batches: Any
    ) -> State | None:
        """Returns the state of `step`, and puts the batches where they were.

        Emergency checkpoints come first, where they are not older than those of the
        checkpointer. What is damaged is passed over, see `Checkpointer.restore`.
        Returns None where nothing is whole and the checkpointer has nothing.
        """
        latest = self.latest or 0
        if self._local and (found := self._local.newest(latest, step, abstract_state)):
            state, record = found
            set_place(batches, record, self._directory.path)
            return state
        if self._checkpointer is None or not latest:
            return None
        return self._checkpointer.restore(min(step, latest), abstract_state, batches)

    def restore_before(self, step: int, abstract_state: Abstract) -> State | None:
        """Returns the newest state on disk that has seen fewer steps than `step`, or
        None if there is none. The batches stay where they are.

        Later steps are left behind: a start after a kill does not go on from them.
        """
        if self._checkpointer is None:
            return None
        self._checkpointer.wait()
        older = [s for s in steps_in(self._checkpointer.directory) if s < step]
        if not older:
            return None
        state = self._checkpointer.restore(older[-1], abstract_state, NoData())
        if self._local:
            self._local.leave_behind(int(state["step"]))
        self._checkpointer.leave_behind(int(state["step"]))
        return state

    def due(self, step: int) -> bool:
        return self._checkpointer is not None and self._checkpointer.wants(step)

    def save(self, now: Progress) -> None:
        """Saves in the background, unless this step is saved already.

        Emergency checkpoints after this step are of a future that the run has left, and
        are removed: it must not go on from them.
        """
        if self._checkpointer and now.step:
            if self._local:
                self._local.leave_behind(now.step)
            self._checkpointer.save(now.step, now.state, now.batches, self._graph_json)

    def save_locally(self, now: Progress) -> None:
        """Makes an emergency checkpoint, if there are such and one is due."""
        if self._local and self._local.wants(now.step):
            self._local.save(now.step, now.state, now.batches, self._graph_json)

    def wait(self) -> None:
        """Waits until what was saved last is on disk."""
        if self._checkpointer:
            self._checkpointer.wait()

    def close(self) -> None:
        """Waits for the last save, which replaces emergency checkpoints.

        Without a checkpointer these stay, for they are all that is left of the run.
        """
        if self._checkpointer:
            self._checkpointer.close()
        if self._local and self._checkpointer:
            self._local.clear()
        elif self._local:
            self._local.wait()

    def how_to_continue(self, why: str) -> str:
        """Returns what to do after a run was stopped by a signal, or by a flag."""
        without = f" without {why}" if why.startswith("--") else ""
        if self._checkpointer is None and self._local:
            return (
                f"run the same command{without} to continue from the newest emergency"
                " checkpoint, for this experiment has no other"
            )
        if self._checkpointer is None:
            return "nothing was saved, for this experiment has no checkpoint"
        return f"run the same command{without} to continue"

    @contextlib.contextmanager
    def rescuing(
        self, now: Progress, first: int, flush: Callable[[], None]
    ) -> Iterator[None]:
        """Saves the last complete step if anything raises inside, and says so.

        A UserError gets a further sentence, any other exception a note below its
        traceback. A failed attempt to save takes nothing away from the first error.

        Args:
          now: Kept up to date by what runs inside.
          first: The step that this start began after.
          flush: Writes the metrics that are still pending.
        """
        try:
            yield
        except Exception as error:
            with contextlib.suppress(Exception):
                flush()
            outcome = self._rescue(now, first, error)
            if outcome and isinstance(error, UserError):
                raise UserError(f"{error} {outcome}") from error
            if outcome:
                error.add_note(outcome)
            raise

    def _rescue(self, now: Progress, first: int, error: Exception) -> str:
        """Saves what can be saved, and returns a sentence about it."""
        if now.step == first or isinstance(error, SaveError):
            return ""  # nothing to save, or the error tells of it
        if self._checkpointer is None:
            return "Nothing was saved, for this experiment has no checkpoint."
        if jax.process_count() > 1:
            # The others may be in the next step, and saving needs all of them.
            newest = self.latest
            if newest is None:
                return "No checkpoint was saved yet."
            return f"The newest checkpoint is step {newest}."
        where = self._checkpointer.directory
        try:
            self.save(now)
            self.close()
        except Exception as second:
            why = second if isinstance(second, UserError) else gist(second)
            return f"The state after step {now.step} could not be saved: {why}"
        return (
            f"The state after step {now.step} is saved in {where}; the same command"
            " goes on from there."
        )
