"""Eager updates of DiLoCo: a replica moves at a sync before it has heard of others.

Letters: R replicas.

Each replica m has its own copy of the outer weights, and of the outer optimizer. At its
sync number t it moves them at once along

    own_m(t) + others_m(t - 1),    where own_m(t) = delta_m(t) / R,

and goes on from there. The exchange of the deltas runs beside the next step, and gives
what the next sync needs:

    others_m(t) = mean(delta(t)) - own_m(t).

So each delta moves a replica once: its own at once, those of others one sync late.
Kale, Douillard & Donchev 2025, https://arxiv.org/abs/2502.12996.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from maxfdl.optim.optimizer import Optimizer
from maxfdl.sharding.memory import beside, on_device
from maxfdl.train.fragments import Fragment

Own = dict[str, Any]
"""What each replica has, [R, ...]: `outer`, its copy of the outer weights, `optimizer`,
the state of the outer optimizer by the name of a fragment, and `others`, in float32."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Eager:
    """Eager updates of a run.

    Args:
      num_replicas: R.
      fragments: Parts of the model that are synced in turns.
      optimizers: Outer optimizers, one of each fragment.
    """

    num_replicas: int
    fragments: Sequence[Fragment]
    optimizers: Sequence[Optimizer]

    def init(self, weights: Any, states: Any) -> Own:
        """Returns what a replica has that begins with these outer weights.

        Args:
          weights: Those of all replicas, or their masters.
          states: Of the outer optimizer that moves these.
        """
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), weights)
        return {"outer": weights, "optimizer": states, "others": zeros}

    def moved(
        self, own: Own, deltas: Any, step: jax.Array, fragment: int, sound: jax.Array
    ) -> tuple[Any, Own]:
        """Returns the weights that replicas go on with, and what they have then.

        Args:
          own: As it is before.
          deltas: Of each replica, [R, ...].
          step: How many steps there were.
          fragment: Its number, which is that of the deltas, too.
          sound: Whether the delta of a replica counts, [R].
        """
        cut, name = self.fragments[fragment], f"fragment_{fragment}"
        others = cut.of_tree(on_device(own["others"]), dim=1)
        directions = jax.tree.map(jnp.add, self._own(deltas, sound), others)
        update = jax.vmap(self.optimizers[fragment].update, in_axes=(0, 0, 0, None))
        outer = cut.of_tree(on_device(own["outer"]), dim=1)
        weights, state = update(directions, own["optimizer"][name], outer, step)
        return weights, {
            **own,
            "outer": _with_part(own["outer"], cut, weights),
            "optimizer": {**own["optimizer"], name: state},
        }

    def heard(
        self, own: Own, deltas: Any, mean: Any, fragment: int, sound: jax.Array
    ) -> Own:
        """Returns what the replicas have after the exchange, which gave `mean`."""
        others = jax.tree.map(jnp.subtract, mean, self._own(deltas, sound))
        cut = self.fragments[fragment]
        return {**own, "others": _with_part(own["others"], cut, others)}

    def _own(self, deltas: Any, sound: jax.Array) -> Any:
        """Returns the part of each delta in the mean, 0 where it does not count."""

        def of(delta: jax.Array) -> jax.Array:
            counts = sound.reshape(-1, *[1] * (delta.ndim - 1))
            return jnp.where(counts, delta / self.num_replicas, 0.0)

        return jax.tree.map(of, deltas)


def _with_part(old: Any, cut: Fragment, part: Any) -> Any:
    """Returns `old` with a fragment replaced, in the types and memory that it has."""
    like = cut.of_tree(old, dim=1)
    part = jax.tree.map(lambda x, o: x.astype(o.dtype), part, like)
    return jax.tree.map(beside, old, cut.put(on_device(old), part, dim=1))
