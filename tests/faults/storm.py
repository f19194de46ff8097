"""Kills runs while they start, train and save, and lets them go on."""

import dataclasses
import pathlib
import random
import shutil
import time
from collections.abc import Iterator

from maxfdl.checkpoint.record import read_record
from maxfdl.checkpoint.steps import steps_in
from tests.faults.start import Start, last_step, losses

EVERY = 3
"""Steps from one save to the next."""

ALLOWED = 2 * EVERY
"""Steps that a kill may take back: one interval, and one whose save was under way."""

KINDS = {
    "standard": (),
    "accumulated": ("gradient_accumulation(steps=2)",),
    "offloaded": ("offload_optimizer",),
    "diloco": ("use_diloco(num_replicas=2, sync_period=4)",),
    "fp8": ("enable_fp8(recipe=delayed)",),
}
"""Mutations of the runs that are killed."""


@dataclasses.dataclass
class Storm:
    """What runs of one kind went through.

    Args:
      kills: How often they were killed.
      while_starting: Kills before the first step of a start.
      while_saving: Kills with a step half written.
      unrestorable: Starts that did not go on.
      too_far_back: Kills that took back more than `ALLOWED` steps.
      most_lost: The most steps that a kill took back.
      wrong_losses: Losses that are not, to the last bit, those of the run that nobody
        killed.
      wrong_ends: Runs whose last checkpoint is not, to the last bit, that of the run
        that nobody killed.
    """

    kills: int = 0
    while_starting: int = 0
    while_saving: int = 0
    unrestorable: int = 0
    too_far_back: int = 0
    most_lost: int = 0
    wrong_losses: int = 0
    wrong_ends: int = 0

    @property
    def bad(self) -> int:
        """Everything that must not happen."""
        return sum(
            (self.unrestorable, self.too_far_back, self.wrong_losses, self.wrong_ends)
        )

    def __add__(self, other: "Storm") -> "Storm":
        mine, more = dataclasses.asdict(self), dataclasses.asdict(other)
        total = {name: mine[name] + more[name] for name in mine}
        total["most_lost"] = max(self.most_lost, other.most_lost)
        return Storm(**total)


def begin(kind: str, steps: int, run_dir: pathlib.Path) -> Start:
    """Starts a run of one kind, or goes on with it."""
    words = ["experiments.llama2_smoke", *KINDS[kind], f"steps={steps}"]
    words += [f"checkpoint.every_steps={EVERY}", "trainer.log_every=1"]
    words += ["trainer.sample_tokens=0", "trainer.eval_batches=0"]
    return Start(words, run_dir)


def run_alone(kind: str, steps: int, run_dir: pathlib.Path) -> None:
    """Lets a run that nobody kills come to its end, unless it has already.

    Raises:
      RuntimeError: If it does not end well.
    """
    start = begin(kind, steps, run_dir)
    if start.wait():
        raise RuntimeError(f"{kind}, killed by nobody, failed:\n{start.output}")


def storms(
    kind: str, kills: int, steps: int, alone: pathlib.Path, chance: random.Random
) -> Iterator[Storm]:
    """Kills runs until `kills` are done, and yields what each run went through.

    Args:
      kind: One of `KINDS`.
      kills: How many in all; the last run comes to its end after them.
      steps: Of each run.
      alone: Directory of the run that nobody killed. The others stand beside it.
      chance: Chooses the moments.
    """
    while kills > 0:
        run_dir = alone.parent / f"{kind}_killed"
        shutil.rmtree(run_dir, ignore_errors=True)
        found = _one_run(kind, kills, steps, run_dir, chance)
        if not found.unrestorable:
            found.wrong_losses += _wrong_losses(run_dir, alone)
            found.wrong_ends += _leaves(run_dir, steps) != _leaves(alone, steps)
        kills -= found.kills
        yield found


def _one_run(
    kind: str, kills: int, steps: int, run_dir: pathlib.Path, chance: random.Random
) -> Storm:
    """Kills one run at most `kills` times before it comes to its end."""
    found, reached = Storm(), 0
    while True:
        start = begin(kind, steps, run_dir)
        if found.kills < kills:
            _kill_at_some_moment(start, reached, chance)
        code, began_after = start.wait(), start.began_after
        if began_after is not None:
            lost, reached = reached - began_after, began_after
            found.most_lost = max(found.most_lost, lost)
            found.too_far_back += lost > ALLOWED
        reached = max(reached, last_step(run_dir / "metrics.jsonl"))
        if code >= 0:  # nobody killed it
            if code:
                found.unrestorable += 1
                print(f"{kind}: a start ended with {code}:\n{start.output}", flush=True)
            return found
        found.kills += 1
        if began_after is None or reached == began_after:
            found.while_starting += 1
        else:
            unfinished = run_dir.glob("checkpoints/*.orbax-checkpoint-tmp")
            found.while_saving += any(unfinished)


def _kill_at_some_moment(start: Start, reached: int, chance: random.Random) -> None:
    """Kills a start: one in eight in its first seconds, the others some steps on."""
    if chance.random() < 1 / 8:
        time.sleep(chance.uniform(0, 4))
    else:
        start.wait_for_step(reached + chance.randint(1, 3 * EVERY))
        time.sleep(chance.uniform(0, 0.1))
    if start.code is None:
        start.kill()


def _wrong_losses(run_dir: pathlib.Path, alone: pathlib.Path) -> int:
    ended, expected = (losses(each / "metrics.jsonl") for each in (run_dir, alone))
    return sum(ended.get(step) != loss for step, loss in expected.items())


def _leaves(run_dir: pathlib.Path, step: int) -> dict:
    """Returns shape, type and checksum of each array of the last step of a run."""
    checkpoints = run_dir / "checkpoints"
    assert step == max(steps_in(checkpoints))
    return read_record(checkpoints / str(step)).leaves
