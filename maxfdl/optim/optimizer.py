"""The optimizer: clip, rule, decay and schedule in the order that AdamW fixed."""

from typing import Annotated, Any

import jax
import optax

from maxfdl.markers import FromParent
from maxfdl.optim.schedules import Schedule
from maxfdl.optim.transforms import ClipByGlobalNorm, UpdateRule, WeightDecay


class Optimizer:
    """`params -= lr(step) * (rule(clip(grads)) + decay * params)`.

    Args:
      clip: Bounds the gradients; None leaves them.
      rule: Turns gradients into a direction.
      weight_decay: Adds the decay; None has none.
      schedule: The learning rate.
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
        parameters: Annotated[dict, FromParent],
        steps: Annotated[int, FromParent],
    ):
        self._schedule = schedule
        self._steps = steps
        self._transform = optax.chain(
            optax.identity() if clip is None else clip.transform(),
            rule.transform(parameters),
            optax.identity()
            if weight_decay is None
            else weight_decay.transform(parameters),
        )

    def init(self, params: Any) -> Any:
        return self._transform.init(params)

    def learning_rate(self, step: jax.Array) -> jax.Array:
        return self._schedule(step, self._steps)

    def update(
        self, grads: Any, state: Any, params: Any, step: jax.Array
    ) -> tuple[Any, Any]:
        """Returns the new parameters and the new state of the optimizer."""
        directions, state = self._transform.update(grads, state, params)
        scale = -self.learning_rate(step)
        updates = jax.tree.map(lambda d: (scale * d).astype(d.dtype), directions)
        return optax.apply_updates(params, updates), state

    def shardings(self, params: Any, param_shardings: Any, other: Any) -> Any:
        """Returns the sharding of each leaf of the state: its parameter's, or `other`.

        Args:
          params: Parameters, which may be abstract.
          param_shardings: A tree like them.
          other: Sharding of counters and the like.
        """
        return optax.tree_map_params(
            self._transform,
            lambda _, sharding: sharding,
            jax.eval_shape(self._transform.init, params),
            param_shardings,
            transform_non_params=lambda _: other,
        )
