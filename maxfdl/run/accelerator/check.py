"""What a check is, and what it finds."""

import dataclasses
import math
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any, Literal

Status = Literal["passed", "measured", "refused", "skipped", "failed"]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a check found.

    Args:
      status: `passed` and `failed` judge; `measured` gives figures that nothing judges;
        `refused`: what was asked for does not exist here, such as a kernel for this
        mask, and a user who asks for it is told so; `skipped`: not tried.
      text: The finding in one line.
      figures: The same for programs, as JSON takes it.
      name: Of the check.
      seconds: That the check took.
    """

    status: Status
    text: str
    figures: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    name: str = ""
    seconds: float = 0.0


@dataclasses.dataclass
class Bench:
    """What a check is given.

    Times are those of `time.monotonic`, which all processes of a machine share.

    Args:
      make: Builds the experiment that an expression names.
      platform: `cpu`, `gpu` or `tpu`. On a CPU checks take small shapes.
      earlier: Outcomes of the checks before this one, by name.
      last_starts: By section, the time after which no check of it begins.
      end: The time at which a check that still runs is killed.
    """

    make: Callable[[str], Any]
    platform: str
    earlier: dict[str, Outcome] = dataclasses.field(default_factory=dict)
    last_starts: Mapping[str, float] = dataclasses.field(default_factory=dict)
    end: float = math.inf

    @property
    def is_small(self) -> bool:
        return self.platform == "cpu"


@dataclasses.dataclass(frozen=True)
class Check:
    """A named function that can be sent to another process.

    Args:
      name: `section/what`, or the section alone.
      run: Finds the outcome; name and time are added by `guarded`.
      seconds: After which a process that has not finished it is killed.
      is_alone: Whether it needs a process of its own: it reads counters of the process,
        such as peak memory, or has an environment.
      environment: Variables of that process, besides those of this one.
      if_killed: What it means if the process dies.
    """

    name: str
    run: Callable[[Bench], Outcome]
    seconds: float = 90.0
    is_alone: bool = False
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    if_killed: Status = "failed"

    @property
    def section(self) -> str:
        return self.name.partition("/")[0]

    def is_late(self, bench: Bench) -> bool:
        return time.monotonic() > bench.last_starts.get(self.section, math.inf)

    def guarded(self, bench: Bench) -> Outcome:
        """Runs it if there is time. An exception is an outcome too."""
        if self.is_late(bench):
            return self.skipped("the time for it was up before it began")
        started = time.monotonic()
        try:
            outcome = self.run(bench)
        except Exception as error:
            trace = traceback.format_exc().splitlines()
            text = f"{type(error).__name__}: {first_line(error)}"
            outcome = Outcome("failed", text, {"traceback": trace})
        return self.named(outcome, time.monotonic() - started)

    def skipped(self, why: str) -> Outcome:
        return self.named(Outcome("skipped", why))

    def named(self, outcome: Outcome, seconds: float = 0.0) -> Outcome:
        return dataclasses.replace(outcome, name=self.name, seconds=seconds)


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or of those of a group's members.

    Where there is no message, the name of its class.
    """
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(map(first_line, error.exceptions))
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
