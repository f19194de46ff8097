"""When a run has learnt enough."""

from collections.abc import Mapping


class Goal:
    """Whether an evaluation found a loss of at most `loss`; None is never reached."""

    def __init__(self, loss: float | None):
        self._loss = loss
        self.reached = False

    @property
    def wanted(self) -> bool:
        return self._loss is not None

    def look_at(self, evaluation: Mapping[str, float]) -> None:
        if self._loss is not None:
            self.reached = evaluation["eval_loss"] <= self._loss
