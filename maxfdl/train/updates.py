"""Updates: what a step changes after the optimizer."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax

from maxfdl.layers.sinks import Sinks

Variables = dict[str, Any]


class Step(NamedTuple):
    """What an update may read.

    Fields: `sinks`, side results of layers over the whole batch; `parameters`,
    declarations of all parameters, frozen ones too; `accepted`, False if the step is
    rejected; `learning_rate`, of the step.
    """

    sinks: Sinks
    parameters: dict
    accepted: jax.Array
    learning_rate: jax.Array | float = 0.0


@dataclasses.dataclass(frozen=True)
class Update:
    """Base: changes the variables once per step, after the optimizer; may keep memory.

    Class attributes: `name`, the key of its memory in the training state; `rank`, when
    it runs: updates run in ascending order, those of the state of layers (0) before
    those of weights (1) and averages of weights (2); `averages`, whether `evaluated`
    returns other weights than those that are trained.
    """

    name: ClassVar[str]
    rank: ClassVar[int]
    averages: ClassVar[bool] = False

    def check(self, parameters: dict) -> None:
        """Raises UserError if it cannot change parameters with these declarations."""

    def init(self, params: Any) -> Any:
        """Returns the initial memory."""
        return {}

    def shardings(self, of_params: Any, other: Any) -> Any:
        """Returns the shardings of the memory, a tree like it.

        Args:
          of_params: Shardings of optimizer state, a tree like the parameters.
          other: Sharding of anything else, such as counters.
        """
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
