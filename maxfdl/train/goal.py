"""When a run has learnt enough."""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class LossGoal:
    """Ends a run when an evaluation finds a loss of `loss` or less.

    Args:
      loss: Of held-out text, the whole objective.
      every: Steps between the evaluations that look; others of the run count, too.
    """

    loss: float
    every: int = 100

    @staticmethod
    def check_config(node):
        if node.every < 1:
            yield f"LossGoal every ({node.every}) must be at least 1 step."

    def is_reached(self, evaluation: Mapping[str, float]) -> bool:
        return evaluation["eval_loss"] <= self.loss
