"""Batch size ramp-up."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class BatchRampUp:
    """Doubles the batch size from `start` sequences up to the experiment's.

    Each smaller size is used for an equal share of the first `steps` steps. McCandlish
    et al. 2018, https://arxiv.org/abs/1812.06162, say why small batches suffice early.

    Args:
      start: Sequences in the first batches.
      steps: Steps before the batch is whole.
    """

    start: int
    steps: int

    @staticmethod
    def check_config(node):
        if node.start < 1:
            yield f"BatchRampUp start ({node.start}) must be at least 1 sequence."

    @staticmethod
    def check_in(node, root):
        if node.start < 1:
            return  # which its own rule says
        factor = root.batch_size // node.start
        if (
            node.start * factor != root.batch_size
            or factor < 2
            or factor & (factor - 1)
        ):
            yield (
                f"BatchRampUp start ({node.start}) must reach batch_size"
                f" ({root.batch_size}) by doubling once or more."
            )
            return
        # A size of 1/k takes k steps to use up a whole batch.
        stages = factor.bit_length() - 1
        if node.steps < 1 or node.steps % (stages * factor):
            yield (
                f"BatchRampUp steps ({node.steps}) must be a multiple of"
                f" {stages * factor}, so that the {stages} smaller sizes take as many"
                " steps each and leave no sequence over."
            )

    def size(self, step: int, batch_size: int) -> int:
        """Returns the sequences in the batch of `step`, counted from 1."""
        doublings = (batch_size // self.start).bit_length() - 1
        stage = min((step - 1) * doublings // self.steps, doublings)
        return self.start << stage


class RampedBatches:
    """Splits full batches into smaller ones of the current size; no row is dropped.

    Of a batch split into k, part j has the rows j, j + k, and so on.

    Args:
      batches: Gives whole batches, with `get_state` and `set_state`.
      parts_at: Returns into how many parts a full batch is split at a step, counted
        from 1.
    """

    def __init__(self, batches: Any, parts_at: Callable[[int], int]):
        self._batches = batches
        self._parts_at = parts_at
        self._whole: Any = None  # the batch that is being cut, and the place before it
        self._before: Any = None
        self._taken = self._step = 0

    def __iter__(self):
        return self

    def __next__(self) -> Batch:
        parts = self._parts_at(self._step + 1)
        if self._whole is None:
            self._before = self._batches.get_state()
            self._whole = next(self._batches)
        whole, first = self._whole, self._taken
        self._taken, self._step = first + 1, self._step + 1
        if self._taken == parts:
            self._whole, self._taken = None, 0
        return {name: rows[first::parts] for name, rows in whole.items()}

    @property
    def skip_bad(self) -> int:
        return self._batches.skip_bad

    @property
    def bad_documents(self) -> list[int]:
        return self._batches.bad_documents

    def get_state(self) -> dict[str, Any]:
        place = self._batches.get_state() if self._whole is None else self._before
        return {"batches": place, "taken": self._taken, "step": self._step}

    def set_state(self, state: dict[str, Any]) -> None:
        self._batches.set_state(state["batches"])
        self._taken, self._step = state["taken"], state["step"]
        self._before, self._whole = state["batches"], None
        if self._taken:
            self._whole = next(self._batches)
