"""All checks in order, within a time budget."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from maxfdl.errors import UserError, did_you_mean
from maxfdl.run.accelerator import (
    attention,
    device,
    fp8,
    losses,
    offload,
    probes,
    speed,
)
from maxfdl.run.accelerator.check import Bench, Check, Outcome
from maxfdl.run.accelerator.processes import Runner


@dataclasses.dataclass(frozen=True)
class Section:
    """Checks that share a part of the time.

    Args:
      name: What stands before the slash in the names of its checks.
      share: Of the whole time; what it leaves goes to the sections after it.
      checks: Of a platform, the most important ones first.
    """

    name: str
    share: float
    checks: Callable[[str], Sequence[Check]]


SECTIONS = (
    Section("attention", 0.25, attention.checks),
    Section("losses", 0.12, lambda platform: losses.checks()),
    Section("offload", 0.10, lambda platform: offload.checks()),
    Section("product", 0.03, lambda platform: speed.product_checks()),
    Section("llama", 0.20, speed.llama_checks),
    Section("fp8", 0.18, fp8.checks),
    Section("flags", 0.12, probes.checks),
)


def run(
    make: Callable[[str], Any],
    runner: Runner,
    *,
    minutes: float,
    only: Sequence[str] = (),
) -> Iterator[Outcome]:
    """Yields the outcome of each check as soon as it is known, the device's first.

    Args:
      make: As in `Bench`.
      runner: Where checks run.
      minutes: Of all checks together.
      only: Names of the sections that run; none: all.

    Raises:
      UserError: If there is no such section.
    """
    sections = _selected(only)
    started = time.monotonic()
    bench = Bench(make, platform="unknown", end=started + 60 * minutes)
    (found,) = runner([device.CHECK], bench)
    yield found
    if found.status != "measured":
        return  # Each of the others would say the same.
    bench.earlier[found.name] = found
    bench.platform = found.figures["platform"]
    shares = itertools.accumulate(section.share for section in sections)
    whole = sum(section.share for section in sections)
    bench.last_starts = {
        section.name: started + 60 * minutes * share / whole
        for section, share in zip(sections, shares, strict=True)
    }
    checks = [check for each in sections for check in each.checks(bench.platform)]
    for outcome in runner(checks, bench):
        bench.earlier[outcome.name] = outcome
        yield outcome


def _selected(only: Sequence[str]) -> list[Section]:
    names = [section.name for section in SECTIONS]
    for name in only:
        if name not in names:
            raise UserError(
                f"--accelerator_only={name} is no section.{did_you_mean(name, names)}"
                f" It must be one of {', '.join(names)}."
            )
    return [section for section in SECTIONS if not only or section.name in only]
