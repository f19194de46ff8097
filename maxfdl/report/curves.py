"""Metrics of runs as curves: one number over steps, tokens or bytes."""

import dataclasses
import json
from collections.abc import Callable
from typing import Literal

import numpy as np

from maxfdl import outside
from maxfdl.errors import UserError, did_you_mean
from maxfdl.paths import AnyPath
from maxfdl.train.metrics import METRICS

XAxis = Literal["steps", "tokens", "bytes"]


@dataclasses.dataclass(frozen=True)
class Curve:
    """Points of one run, in the order of its steps."""

    label: str
    points: list[tuple[float, float]]


def read_curve(
    folder: AnyPath, metric: str, x: XAxis, of_gradients: Callable[[], int]
) -> Curve:
    """Returns a metric of the run in `folder` over steps, tokens seen or bytes sent.

    Bytes are those that one replica gives to exchanges with the others. A run of the
    standard trainer has no replicas: it counts as if each step gave away the float32
    gradient of every parameter, as synchronous data parallelism does.

    Args:
      folder: The directory of the run.
      metric: Its name in the file of metrics.
      x: Over what.
      of_gradients: Returns the float32 bytes of the gradients of one step.

    Raises:
      UserError: If there is no run, or none with such a metric.
    """
    file = folder / METRICS
    if not file.is_file():
        raise UserError(f"{folder} must be the directory of a run, with its {METRICS}.")
    lines = _lines(file)
    names = sorted({name for line in lines for name in line} - {"step"})
    steps = [line["step"] for line in lines if metric in line]
    if not steps:
        raise UserError(
            f"{folder} has no metric {metric!r}.{did_you_mean(metric, names)} It has"
            f" {', '.join(names) or 'none'}."
        )
    values = [line[metric] for line in lines if metric in line]
    places = _places(folder, lines, np.array(steps), x, of_gradients)
    points = [
        (float(place), value)
        for place, value in zip(places, values, strict=True)
        if np.isfinite(value)
    ]
    return Curve(folder.absolute().name, points)


def _lines(file: AnyPath) -> list[dict[str, float]]:
    """Returns the lines of metrics; the last, if it is still being written, is not one.

    Raises:
      UserError: If another is no line of metrics.
    """
    *whole, _ = outside.read_text(file).split("\n")
    lines = []
    for number, text in enumerate(whole, 1):
        try:
            values = json.loads(text)
            line = {name: float(value) for name, value in values.items()}
            lines.append(line | {"step": line["step"]})  # each has one
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(
                f"{file}:{number} is no line of metrics ({text[:40]!r}); remove it."
            ) from None
    return lines


def _places(
    folder: AnyPath,
    lines: list[dict[str, float]],
    steps: np.ndarray,
    x: XAxis,
    of_gradients: Callable[[], int],
) -> np.ndarray:
    """Returns where steps stand on the x axis."""
    if x == "steps":
        return steps
    name = {"tokens": "tokens_seen", "bytes": "bytes_sent"}[x]
    known = [(line["step"], line[name]) for line in lines if name in line]
    if x == "bytes" and not known:
        return steps * of_gradients()
    if not known:
        raise UserError(f"{folder} has logged no {name}, which --x={x} needs.")
    at, values = np.array([(0, 0), *known], float).T
    if x == "bytes":  # which come all at once
        return values[np.searchsorted(at, steps, side="right") - 1]
    return np.interp(steps, at, values)
