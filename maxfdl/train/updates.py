"""What a step does besides the optimizer's update: one object for each."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax

Variables = dict[str, Any]


class Step(NamedTuple):
    """What an update may look at.

    Fields: `sinks`, what layers left during the step, of the whole batch; `parameters`,
    declarations, a tree like `params`; `accepted`, whether the step counts.
    """

    sinks: Mapping[str, Any]
    parameters: dict
    accepted: jax.Array


@dataclasses.dataclass(frozen=True)
class Update:
    """Changes the variables once per step, after the optimizer; may remember things.

    `name` is where the state of training keeps what it remembers; `averages` says that
    `evaluated` makes other weights of it than those that are trained.
    """

    name: ClassVar[str]
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

        What it gets is what it returns if the step does not count, and what lies on the
        host returns there.

        Args:
          variables: `params` as the optimizer left them, and `state` of the layers.
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
    """Returns what all `updates` make of the variables, in order, and remember."""
    kept = {}
    for update in updates:
        variables, kept[update.name] = update(variables, memories[update.name], step)
    return variables, kept
