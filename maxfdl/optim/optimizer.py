"""The optimizer: clip, rule, decay and schedule in the order that AdamW fixed."""

from typing import Annotated, Any

import jax
import optax

from maxfdl.markers import FromParent
from maxfdl.optim.schedule_free import ScheduleFree
from maxfdl.optim.schedules import Schedule
from maxfdl.optim.transforms import (
    ClipByGlobalNorm,
    RateFactors,
    UpdateRule,
    WeightDecay,
    times_minus_rate,
)


class Optimizer:
    """`params -= lr(step) * factor * (rule(clip(grads)) + decay * params)`.

    Args:
      clip: Bounds the gradients; None leaves them.
      rule: Turns gradients into a direction.
      weight_decay: Adds the decay; None has none.
      schedule: The learning rate.
      rate_factors: What a role multiplies it with; None has one rate for all.
      averaging: Keeps an average to evaluate; None evaluates the parameters.
      parameters: Declarations of the parameters, a tree like them.
      steps: Length of the run.
    """

    def __init__(
        self,
        *,
        clip: ClipByGlobalNorm | None,
        rule: UpdateRule,
        weight_decay: WeightDecay | None,
        schedule: Schedule,
        rate_factors: RateFactors | None = None,
        averaging: ScheduleFree | None = None,
        parameters: Annotated[dict, FromParent],
        steps: Annotated[int, FromParent],
    ):
        self._schedule = schedule
        self._steps = steps
        self._averaging = averaging
        none = optax.identity()
        self._transform = optax.chain(
            none if clip is None else clip.transform(),
            rule.transform(parameters),
            none if weight_decay is None else weight_decay.transform(parameters),
            none if rate_factors is None else rate_factors.transform(parameters),
            times_minus_rate(),
            none if averaging is None else averaging.transform(),
        )

    def init(self, params: Any) -> Any:
        return self._transform.init(params)

    def learning_rate(self, step: jax.Array) -> jax.Array:
        return self._schedule(step, self._steps)

    def update(
        self, grads: Any, state: Any, params: Any, step: jax.Array
    ) -> tuple[Any, Any]:
        """Returns the new parameters and the new state of the optimizer."""
        rate = self.learning_rate(step)
        updates, state = self._transform.update(grads, state, params, rate=rate)
        return optax.apply_updates(params, updates), state

    @property
    def averages(self) -> bool:
        """Whether `evaluated` gives other weights than those that are trained."""
        return self._averaging is not None

    def evaluated(self, params: Any, state: Any) -> Any:
        """Returns the weights to evaluate, sample from and export."""
        if self._averaging is None:
            return params
        return self._averaging.average(params, state[-1])

    def shardings(self, params: Any, param_shardings: Any, other: Any) -> Any:
        """Returns the sharding of each leaf of the state.

        A leaf that is one of a parameter, at the end of whose path in the state stands
        the parameter's, and that has its shape, lies as the parameter does.

        Args:
          params: Parameters, which may be abstract.
          param_shardings: A tree like them.
          other: Sharding of counters, rows and columns, and the like.
        """
        paths, tree = jax.tree.flatten_with_path(params)
        places = {
            path: (param.shape, sharding)
            for (path, param), sharding in zip(
                paths, tree.flatten_up_to(param_shardings), strict=True
            )
        }

        def place(path, leaf):
            ends = (path[start:] for start in range(len(path)))
            shape, sharding = next(
                (places[e] for e in ends if e in places), (None,) * 2
            )
            return sharding if leaf.shape == shape else other

        return jax.tree.map_with_path(place, jax.eval_shape(self.init, params))
