"""The root of a toy graph, and what a graph must never reach."""

import dataclasses
import os  # noqa: F401 (a saved graph tries to reach it through here)
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    model: Callable[..., Any]
    optimizer: Callable[..., Any] | None = None
    rules: dict[str, str | None] = dataclasses.field(default_factory=dict)
    name: str = "toy"
    steps: int = 10
    seed: int = 0


def sgd(*, learning_rate: float, momentum: float | None = None) -> tuple:
    return (learning_rate, momentum)
