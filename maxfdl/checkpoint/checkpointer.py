"""Saves the state of a run every so many steps, and finds it again."""

import contextlib
import json
import os
import pathlib
import shutil
import sys
from collections.abc import Iterable, Iterator
from typing import Annotated, Any

import jax

from maxfdl.checkpoint.load import gist, import_orbax, load_step
from maxfdl.checkpoint.record import DamagedCheckpointError, make_record
from maxfdl.checkpoint.sealed_text import SealedText
from maxfdl.errors import UserError
from maxfdl.markers import FromParent

SET_ASIDE = "set_aside"
"""Folder inside the checkpoint directory for steps that the run has left behind."""


class Checkpointer:
    """Keeps the newest checkpoints of a run, each in one atomic step directory.

    A step holds the state, the position in the data, the experiment as JSON, and a
    fingerprint of every leaf, so that a step that was damaged on disk is noticed: a
    restore then continues from the newest older step that is whole, and says so.

    Orbax is imported when the first step is saved or restored (about 0.5 seconds);
    `load.import_orbax` imports it earlier.

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
        every_steps: int = 500,
        keep: int = 3,
        *,
        directory: Annotated[str | os.PathLike, FromParent],
    ):
        self.every_steps = every_steps
        self.keep = keep
        self.directory = pathlib.Path(directory).absolute()
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
        return max(self._steps(), default=None)

    def wants(self, step: int) -> bool:
        """Returns whether a save is due after `step` steps."""
        return step > 0 and step % self.every_steps == 0

    def save(self, step: int, state: Any, data_iterator: Any, graph_json: str) -> None:
        """Saves `step` in the background; the caller may donate `state` afterwards.

        Blocks until the arrays are copied and an earlier save is done. Saving the step
        that was saved or restored last does nothing. Other steps on disk that are not
        older than `step` belong to a future that this run has left, and are set aside.

        Args:
          step: Number of steps that `state` has seen.
          state: Nested dict of jax arrays, whose keys are names.
          data_iterator: Gives the data position through `get_state`, as JSON values.
          graph_json: The experiment.

        Raises:
          UserError: If this step, or the one that was under way, cannot be written.
        """
        if step == self._newest:
            return
        self.wait()
        record = make_record(state)
        items = {
            "state": state,
            "data": SealedText(_data_file(), json.dumps(data_iterator.get_state())),
            "graph": SealedText(
                "experiment.json", graph_json if jax.process_index() == 0 else None
            ),
        }
        with self._explain_failure(step):
            self._set_aside_from(step)
            self._pending = self._open_writer().save_checkpointables_async(
                step, items, force=True, custom_metadata=record
            )
        self._newest = step

    def restore(self, step: int, abstract_state: Any, data_iterator: Any) -> Any:
        """Returns the state saved at `step`, and sets `data_iterator` to its place.

        If that step is damaged, takes the newest older one that is not, and says so on
        stderr; the state tells which step it is from.

        Args:
          step: One of the steps on disk.
          abstract_state: Tree of `jax.ShapeDtypeStruct` with shardings, which need not
            be those that were saved.
          data_iterator: An iterator over the same data; set through `set_state`.

        Raises:
          UserError: If the leaves saved are not those of `abstract_state`, with the
            paths of those that differ, or if no step on disk is whole.
        """
        data = SealedText(_data_file())
        state, found = self._load_newest(step, abstract_state, {"data": data})
        assert data.text is not None
        try:
            data_iterator.set_state(json.loads(data.text))
        except Exception as error:
            raise UserError(
                f"The data of this experiment cannot take the place that"
                f" {self.directory} saved: {gist(error)}; restore with the data"
                " that was saved, or give another directory."
            ) from error
        self._newest = found
        return state

    def read(self, step: int, abstract_part: Any) -> Any:
        """Returns top-level entries of the state, for tools: `{"params": ...}`, say.

        Falls back, and fails, as `restore` does.
        """
        state, _ = self._load_newest(step, abstract_part, {})
        return state

    def graph(self, step: int) -> str:
        """Returns the experiment as it was saved with `step`."""
        text = SealedText("experiment.json")
        try:
            import_orbax().load_checkpointables(
                self.directory / str(step), {"graph": text}
            )
        except Exception as error:
            raise UserError(
                f"The experiment of checkpoint step {step} in {self.directory} cannot"
                f" be read: {gist(error)}; read config.json of the run instead."
            ) from error
        assert text.text is not None
        return text.text

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
            writer, self._writer = self._writer, None
            if writer is not None:
                # After a failed save it raises that failure again.
                with contextlib.suppress(Exception):
                    writer.close()

    def _steps(self) -> list[int]:
        """Returns the steps on disk, oldest first.

        A step is written under another name and renamed when it is whole.
        """
        if not self.directory.is_dir():
            return []
        names = [path.name for path in self.directory.iterdir() if path.is_dir()]
        return sorted(int(name) for name in names if name.isdecimal())

    def _open_writer(self) -> Any:
        if self._writer is None:
            training = import_orbax().training
            self.directory.mkdir(parents=True, exist_ok=True)
            self._writer = training.Checkpointer(
                self.directory,
                save_decision_policy=training.save_decision_policies.FixedIntervalPolicy(
                    self.every_steps
                ),
                preservation_policy=training.preservation_policies.LatestN(self.keep),
                cleanup_tmp_directories=True,
            )
        return self._writer

    def _load_newest(
        self, step: int, abstract: Any, items: dict[str, SealedText]
    ) -> tuple[Any, int]:
        """Returns the newest whole state that is not after `step`, and its step."""
        self.wait()
        steps = self._steps()
        if step not in steps:
            raise UserError(
                f"Checkpoint directory {self.directory} has no step {step}; it holds"
                f" {', '.join(map(str, steps)) or 'none'}."
            )
        problems = []
        for candidate in reversed(steps[: steps.index(step) + 1]):
            if problems:
                _say(f"checkpoint {problems[-1]}; trying step {candidate}")
            try:
                path = self.directory / str(candidate)
                return load_step(path, abstract, items), candidate
            except DamagedCheckpointError as error:
                problems.append(f"step {candidate} is damaged ({error})")
        raise UserError(
            f"No checkpoint in {self.directory} can be restored: {'; '.join(problems)};"
            " put back a copy of one, or start in another directory."
        )

    def _set_aside_from(self, step: int) -> None:
        """Moves steps that are not older than `step` out of the way."""
        left_behind = [found for found in self._steps() if found >= step]
        _sync(f"maxfdl checkpoint {step} listed")
        if jax.process_index() == 0:
            for found in left_behind:
                target = self.directory / SET_ASIDE / str(found)
                target.parent.mkdir(exist_ok=True)
                shutil.rmtree(target, ignore_errors=True)
                (self.directory / str(found)).rename(target)
                _say(f"checkpoint step {found} is moved to {target}")
        _sync(f"maxfdl checkpoint {step} set aside")
        if left_behind and self._writer is not None:
            self._writer.reload()

    @contextlib.contextmanager
    def _explain_failure(self, step: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._newest = None
            steps = self._steps()
            raise UserError(
                f"Checkpoint step {step} cannot be written to {self.directory}:"
                f" {gist(error)}; make room there or give another directory"
                + (f" (step {steps[-1]} is complete)." if steps else ".")
            ) from error


def _data_file() -> str:
    return f"process_{jax.process_index()}-of-{jax.process_count()}.json"


def _sync(name: str) -> None:
    """Waits until every process is here: all have listed before any step moves."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def _say(message: str) -> None:
    if jax.process_index() == 0:
        print(message, file=sys.stderr, flush=True)
