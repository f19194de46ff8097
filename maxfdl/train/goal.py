"""A target loss that ends a run."""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class LossGoal:
    """Ends a run when an evaluation finds a loss of `loss` or less.

    Args:
      loss: The target: the whole objective, on held-out text.
      every: Steps between evaluations that test it. Other evaluations test it too.
    """

    loss: float
    every: int = 100

    @staticmethod
    def check_config(node):
        if node.every < 1:
            yield f"LossGoal every ({node.every}) must be at least 1 step."

    def is_reached(self, evaluation: Mapping[str, float]) -> bool:
        return evaluation["eval_loss"] <= self.loss
