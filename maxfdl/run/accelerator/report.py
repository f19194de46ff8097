"""The outcomes as a person reads them, and as programs do."""

import collections
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from maxfdl.run.accelerator.check import Outcome
from maxfdl.run.progress import duration

_STATUSES = ("passed", "measured", "refused", "skipped", "failed")
_NAME = 30  # as wide as the longest name of a check


def line(outcome: Outcome) -> str:
    return (
        f"{outcome.status:<8}  {outcome.name:<{_NAME}} {outcome.seconds:5.1f} s"
        f"  {outcome.text}"
    )


def summary(outcomes: Sequence[Outcome], seconds: float) -> str:
    """Returns one line, which names what failed."""
    counts = collections.Counter(outcome.status for outcome in outcomes)
    shown = ", ".join(f"{counts[status]} {status}" for status in _STATUSES)
    names = f" ({', '.join(failed(outcomes))})" if failed(outcomes) else ""
    return f"{len(outcomes)} checks in {duration(seconds)}: {shown}{names}"


def failed(outcomes: Sequence[Outcome]) -> list[str]:
    return [outcome.name for outcome in outcomes if outcome.status == "failed"]


def as_json(outcomes: Sequence[Outcome], seconds: float) -> dict[str, Any]:
    device = next((o.figures for o in outcomes if o.name == "device"), {})
    return {
        "device": device,
        "seconds": seconds,
        "failed": failed(outcomes),
        "checks": [_finite(dataclasses.asdict(outcome)) for outcome in outcomes],
    }


def _finite(value: Any) -> Any:
    """Returns figures with a text for what JSON has no number for."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    is_number = not isinstance(value, float) or math.isfinite(value)
    return value if is_number else str(value)
