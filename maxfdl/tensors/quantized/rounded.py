"""Weights that are rounded: kept apart, so that storing them again loses nothing."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Rounded:
    """A weight as the numbers that codes stand for, and the scale of each.

    Args:
      numbers, scales: In float32, of the shape of the weight.
    """

    numbers: np.ndarray
    scales: np.ndarray

    @property
    def values(self) -> np.ndarray:
        return self.numbers * self.scales


def converted(
    convert: Callable[[list[np.ndarray]], list[np.ndarray]], weights: Sequence[Rounded]
) -> list[Rounded]:
    """Returns rounded weights after a change of layout, which changes no values."""
    numbers = convert([weight.numbers for weight in weights])
    scales = convert([weight.scales for weight in weights])
    return [Rounded(*pair) for pair in zip(numbers, scales, strict=True)]
