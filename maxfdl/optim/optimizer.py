"""The optimizer: clipping, rule, weight decay and schedule, in AdamW's order."""

import math
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax

from maxfdl.markers import FromParent
from maxfdl.optim import by_repeat
from maxfdl.optim.keys import keys_of
from maxfdl.optim.moments import Blocks, Moments, stored_as
from maxfdl.optim.owners import Owners
from maxfdl.optim.rounding import StochasticRounding
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

    Computes in float32, whatever type parameters are stored in, and keeps its state so
    unless `moments` says otherwise.

    Args:
      clip: Clips the gradients; None does not.
      rule: Turns gradients into update directions.
      weight_decay: Decoupled weight decay; None has none.
      schedule: Learning rate by step.
      rate_factors: Factors of the learning rate by role; None has one rate for all.
      averaging: Keeps an average of the weights to evaluate; None evaluates those that
        are trained.
      moments: How the averages that the rule keeps are stored; None is in float32.
      rounding: How new parameters are rounded to the type they are stored in; None is
        to nearest.
      parameters: Declarations of the parameters that are trained, a tree like them.
      steps: Length of the run.
      seed: Of the experiment; random numbers of rounding follow from it.
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
        moments: Moments | None = None,
        rounding: StochasticRounding | None = None,
        parameters: Annotated[dict, FromParent],
        steps: Annotated[int, FromParent],
        seed: Annotated[int, FromParent] = 0,
    ):
        self._schedule = schedule
        self._steps = steps
        self._averaging = averaging
        self._parameters = parameters
        self._clip = clip.transform() if clip else optax.identity()
        self._max_norm = clip.max_norm if clip else math.inf
        self._rate_factors = rate_factors
        self._most_rate = rate_factors.largest if rate_factors else 1.0
        self._most_decay = (
            weight_decay.rate * weight_decay.largest if weight_decay else 0.0
        )
        self._rule = rule
        self._moments = moments
        self._rounding = rounding
        self._seed = seed
        self._parts = (weight_decay, rate_factors)

    def _transform(self, parameters: dict) -> optax.GradientTransformationExtraArgs:
        """Returns the transforms after clipping, for parameters declared so."""
        none = optax.identity()
        return optax.chain(
            stored_as(self._moments, self._rule, parameters)
            if self._moments
            else self._rule.transform(parameters),
            *(p.transform(parameters) if p else none for p in self._parts),
            times_minus_rate(),
            self._averaging.transform() if self._averaging else none,
        )

    def init(self, params: Any) -> Any:
        rest: Any = self._transform(self._parameters).init(_wide(params))
        return (self._clip.init(params), *rest)

    def learning_rate(self, step: jax.Array) -> jax.Array:
        return self._schedule(step, self._steps)

    def reach(
        self, step: jax.Array, grad_norm: jax.Array, param_norm: jax.Array
    ) -> jax.Array:
        """Returns an estimate of how far the update of `step` moves a parameter.

        `rate * (1 + |clipped gradients| + (1 + decay) * |parameters|)`, a scalar: rules
        move a parameter by about the rate, or by the rate times its gradient or its
        size. It bounds the rules here within a factor of about 1000.
        """
        rate = self.learning_rate(step) * self._most_rate
        gradient = jnp.minimum(grad_norm, self._max_norm)
        return rate * (1.0 + gradient + (1.0 + self._most_decay) * param_norm)

    def update(
        self,
        grads: Any,
        state: Any,
        params: Any,
        step: jax.Array,
        accepted: jax.Array | bool = True,
    ) -> tuple[Any, Any]:
        """Returns the new parameters and state; the old ones if not accepted.

        Arrays in host memory are updated there, see `maxfdl.optim.by_repeat`.
        """
        rate = self.learning_rate(step)
        clip, *rest = state
        clipped, clip = self._clip.update(self._of_trained(grads), clip)

        def change(declared, old, given):
            (params, state), (grads, keys) = old, given
            transform, wide = self._transform(declared), _wide(params)
            updates, state = transform.update(
                _wide(grads), state, wide, rate=rate, keys=keys
            )
            new = optax.apply_updates(wide, updates)
            if self._rounding:
                new = self._rounding.rounded(new, params, keys)
            return new, state

        def start(declared, params):
            state = self._transform(declared).init(_wide(params))
            return (params, state), (params, self._keys(declared, step))

        old = params, tuple(rest)
        given = clipped, self._keys(self._parameters, step)
        params, rest = by_repeat.changed(
            change, start, self._parameters, old, given, accepted
        )
        return params, (clip, *rest)

    def _keys(self, parameters: dict, step: jax.Array) -> dict:
        """Returns a key for each parameter, or nothing if nothing is drawn."""
        draws = self._moments or self._rounding
        return keys_of(parameters, self._seed, step) if draws else {}

    def _of_trained(self, grads: Any) -> Any:
        """Returns the gradients, 0 for roles whose rate factor is 0."""
        if self._rate_factors is None:
            return grads
        factors = self._rate_factors.of(self._parameters)
        return jax.tree.map(
            lambda grad, factor: grad if factor else jnp.zeros_like(grad),
            grads,
            factors,
        )

    @property
    def averages(self) -> bool:
        """Whether `evaluated` returns other weights than those that are trained."""
        return self._averaging is not None

    def evaluated(self, params: Any, state: Any) -> Any:
        """Returns the weights to evaluate, sample from and export."""
        if self._averaging is None:
            return params
        return self._averaging.average(params, state[-1])

    def shardings(self, params: Any, param_shardings: Any, other: Any) -> Any:
        """Returns the sharding of each leaf of the state.

        An array that belongs to a parameter, see `Owners`, gets that parameter's
        sharding; all others get `other`.

        Args:
          params: Parameters, which may be abstract.
          param_shardings: Shardings of optimizer state, a tree like `params`.
          other: Sharding of counters, factored moments and the like.
        """
        places = dict(jax.tree.leaves_with_path(param_shardings))
        owners = Owners(params)

        def place(path, leaf):
            own = owners(path, leaf)
            if own is None:
                return other
            return leaf.placed(places[own]) if isinstance(leaf, Blocks) else places[own]

        return jax.tree.map_with_path(
            place,
            jax.eval_shape(self.init, params),
            is_leaf=lambda node: isinstance(node, Blocks),
        )


def _wide(tree: Any) -> Any:
    """Returns arrays in float32; wider ones as they are."""
    return jax.tree.map(
        lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), tree
    )
