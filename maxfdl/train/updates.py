"""What a step does besides the optimizer's update: one object for each."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax

from maxfdl.layers.sinks import Sinks

Variables = dict[str, Any]


class Step(NamedTuple):
    """What an update may look at.

    Fields: `sinks`, side results of layers over the whole batch; `parameters`,
    declarations of all parameters, frozen ones too; `accepted`, False if the step is
    rejected.
    """

    sinks: Sinks
    parameters: dict
    accepted: jax.Array


@dataclasses.dataclass(frozen=True)
class Update:
    """Changes the variables once per step, after the optimizer; may remember things.

    Class attributes: `name`, the key of its memory in the training state; `rank`, when
    it runs: updates run in ascending order, those of the state of layers (0) before
    those of weights (1) and averages of weights (2); `averages`, whether `evaluated`
    returns other weights than those that are trained.
    """

    name: ClassVar[str]
    rank: ClassVar[int]
    averages: ClassVar[bool] = False

    def init(self, params: Any) -> Any:
        """Returns what is remembered before the first step."""
        return {}

    def shardings(self, of_params: Any, other: Any) -> Any:
        """Returns where that lies, a tree like it; `other` is for what is no array of
        parameters."""
        return {}

    def __call__(
        self, variables: Variables, memory: Any, step: Step
    ) -> tuple[Variables, Any]:
        """Returns the variables and the memory after a step.

        If the step is rejected, returns its inputs unchanged. Arrays in host memory
        stay in host memory.

        Args:
          variables: `params` that are trained, as the optimizer left them, and `state`
            of the layers.
          memory: As it was before the step.
        """
        raise NotImplementedError

    def evaluated(self, params: Any, memory: Any) -> Any:
        """Returns the weights to evaluate, sample and export."""
        return params


def updated(
    updates: Sequence[Update],
    variables: Variables,
    memories: Mapping[str, Any],
    step: Step,
) -> tuple[Variables, dict[str, Any]]:
    """Runs `updates` by their rank; returns the variables and each one's memory."""
    kept = {}
    for update in sorted(updates, key=lambda update: update.rank):
        variables, kept[update.name] = update(variables, memories[update.name], step)
    return variables, kept
