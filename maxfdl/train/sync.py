"""The syncs of DiLoCo: when they are due, and what they change.

Letters: R replicas, H steps between two syncs of one fragment, P fragments.

A sync has two stages. In the first, the one exchange between replicas gives the mean
delta of a fragment, along which the outer optimizer moves the outer weights. In the
second, the replicas take these over. Both are at the end of one step, or, with an
overlap, some steps apart. With eager updates, replicas move before the first stage, and
take no weights over.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from maxfdl.ops.state import States
from maxfdl.optim.optimizer import Optimizer
from maxfdl.sharding.memory import beside, on_device
from maxfdl.sharding.mesh import REPLICA
from maxfdl.sharding.sharding import DATA, Sharding
from maxfdl.train import observed
from maxfdl.train.eager import Eager
from maxfdl.train.exchange import Exchange
from maxfdl.train.fragments import Fragment, Streaming
from maxfdl.train.outer import Outer, deltas, mean_delta
from maxfdl.train.placement import Placement
from maxfdl.train.side_by_side import pinned

Parts = dict[str, Any]
"""What syncs read and change of the training state: `params` (outer weights that are
trained), `masters`, `state`, `outer`, and `replicas`: of each, `params`, `masters`,
`param_norm`, `state`, `errors`, `eager`, `tokens` and `drift`, the last two [R, P]."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Syncs:
    """The syncs of a run.

    Args:
      num_replicas: R.
      period: H.
      streaming: The fragments, and what is done with them.
      outer: The outer optimizer.
      exchange: How deltas are sent; None sends float32.
      by_tokens: Whether a replica counts by the tokens that it has trained on.
      parameters: Declarations of the parameters that are trained.
      states: Declarations of the layers' state.
      placement, sharding: Where arrays lie.
    """

    num_replicas: int
    period: int
    streaming: Streaming
    outer: Outer
    exchange: Exchange | None
    by_tokens: bool
    parameters: dict
    states: dict
    placement: Placement
    sharding: Sharding

    @functools.cached_property
    def fragments(self) -> list[Fragment]:
        return self.streaming.plan(self.parameters)

    @functools.cached_property
    def _declared(self) -> list[dict]:
        return [each.declared(self.parameters) for each in self.fragments]

    @functools.cached_property
    def _optimizers(self) -> list[Optimizer]:
        return [self.outer.optimizer(declared) for declared in self._declared]

    @functools.cached_property
    def _eager(self) -> Eager:
        return Eager(
            num_replicas=self.num_replicas,
            fragments=self.fragments,
            optimizers=self._optimizers,
        )

    def init(self, weights: Any) -> Any:
        """Returns the first `outer`, for outer weights or their masters."""
        states = {
            _name(i): optimizer.init(fragment.of_tree(weights))
            for i, (fragment, optimizer) in enumerate(
                zip(self.fragments, self._optimizers, strict=True)
            )
        }
        cosine = jnp.zeros(len(self.fragments), jnp.float32)
        return {"optimizer": states, "cosine": cosine}

    def shardings(self, weights: Any) -> Any:
        """Returns the shardings of `outer`, for abstract outer weights."""
        states = self._of_optimizers(weights, self._axis)
        return {"optimizer": states, "cosine": self.sharding.named(())}

    def _of_optimizers(self, weights: Any, axis: str) -> Any:
        """Returns the shardings of the outer optimizers' state by fragment, over `data`
        and `axis` where it is sharded further than parameters."""
        whole, states = self.sharding.named(()), {}
        for i, declared in enumerate(self._declared):
            abstract = jax.eval_shape(self.fragments[i].of_tree, weights)
            places = self.placement.of_moments(declared, self.sharding, axis)
            states[_name(i)] = self._optimizers[i].shardings(abstract, places, whole)
        return states

    def nothing_learnt(self, weights: Any, outer: Any) -> Any:
        """Returns what a replica knows of syncs that begins with these outer weights.

        Args:
          weights: Those of all replicas, or their masters.
          outer: The entry `outer` of the state.
        """
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), weights)
        of_fragments = jnp.zeros(len(self.fragments), jnp.float32)
        is_eager = self.streaming.eager
        return {
            "errors": zeros if self._keeps_errors else {},
            "eager": self._eager.init(weights, outer["optimizer"]) if is_eager else {},
            "tokens": of_fragments,
            "drift": of_fragments,
        }

    def places_of_nothing_learnt(self, weights: Any, places: Any) -> Any:
        """Returns the shardings of `nothing_learnt`.

        Args:
          weights: Abstract outer weights.
          places: Shardings of arrays like them.
        """
        whole, is_eager = self.sharding.named(()), self.streaming.eager
        optimizers = self._of_optimizers(weights, DATA)
        eager = {"outer": places, "optimizer": optimizers, "others": places}
        return {
            "errors": places if self._keeps_errors else {},
            "eager": eager if is_eager else {},
            "tokens": whole,
            "drift": whole,
        }

    @property
    def _axis(self) -> str:
        """The mesh axis that outer state may be sharded over, besides `data`.

        Sharded over replicas, it costs an all-gather of float32 weights, which packed
        deltas are to spare.
        """
        return REPLICA if self.exchange is None else DATA

    @property
    def places_of_moments(self) -> Any:
        """Shardings of the outer optimizer's state with the shape of a parameter."""
        return self.placement.of_moments(self.parameters, self.sharding, self._axis)

    @property
    def _keeps_errors(self) -> bool:
        """Whether replicas keep what they could not send."""
        return self.exchange is not None and self.exchange.error_decay is not None

    def due_after(self, step: jax.Array) -> jax.Array:
        """Returns the number of the fragment whose sync follows `step`; P for none."""
        count = len(self.fragments)
        distance, phase = self.period // count, step % self.period
        is_due = (step > 0) & (phase % distance == 0)
        return jnp.where(is_due, (phase // distance - 1) % count, count)

    def number_up_to(self, step: int, fragment: int) -> int:
        """Returns how many exchanges of a fragment the steps up to `step` have had."""
        step -= 1 if self.streaming.overlap else 0
        first = (fragment + 1) * (self.period // len(self.fragments))
        return max(0, (step - first) // self.period + 1)

    def bytes_up_to(self, step: int) -> int:
        """Returns the bytes that a replica has given to exchanges up to `step`."""
        return sum(
            self.number_up_to(step, i) * size for i, size in enumerate(self.bytes)
        )

    @functools.cached_property
    def bytes(self) -> list[int]:
        """The bytes that a replica gives to an exchange of each fragment."""
        send = self.exchange.bytes if self.exchange else lambda p: 4 * p.size
        return [sum(map(send, jax.tree.leaves(each))) for each in self._declared]

    def in_turns(
        self, which: jax.Array, change: Callable[..., Parts], parts: Any
    ) -> Any:
        """Returns `change(parts, fragment)` for the fragment that is due, if any is.

        The branches stand in a loop of one trip, or of none where nothing is due: XLA
        copies the arrays that a branch only passes on, and a loop leaves them in place.
        """
        branches = [
            functools.partial(change, fragment=i) for i in range(len(self.fragments))
        ]

        def body(_: jax.Array, parts: Parts) -> Parts:
            return jax.lax.switch(which, [*branches, lambda parts: parts], parts)

        trips = (which < len(branches)).astype(jnp.int32)
        return jax.lax.fori_loop(0, trips, body, parts)

    def moved_early(self, parts: Parts, step: jax.Array, fragment: int) -> Parts:
        """Returns the parts with the replicas moved by an eager update of a fragment.

        Arguments as for `averaged`.
        """
        replicas = parts["replicas"]
        weights, own = self._eager.moved(
            replicas["eager"],
            self._deltas(parts, fragment),
            step,
            fragment,
            self._seen(parts, fragment) > 0,
        )
        cut = self.fragments[fragment]
        replicas = {**replicas, "eager": own}
        return {**parts, "replicas": self._with_own(replicas, cut, weights)}

    def averaged(
        self, parts: Parts, step: jax.Array, fragment: int, after: Any = None
    ) -> Parts:
        """Returns the parts with one fragment of the outer weights moved: stage one.

        Args:
          parts: As they are before.
          step: How many steps there were.
          fragment: Its number.
          after: What is ready at the end of a step that runs at the same time. What is
            only reported is computed then: else XLA might join its small all-reduce
            with those of gradients, and the exchange would wait for these, or they for
            it.
        """
        cut, declared = self.fragments[fragment], self._declared[fragment]
        outer = cut.of_tree(on_device(_weights(parts)))
        replicas, errors = parts["replicas"], parts["replicas"]["errors"]
        seen, own = self._seen(parts, fragment), self._deltas(parts, fragment)
        delta = mean_delta(
            self.sharding,
            self.placement.cuts(declared, self.sharding, REPLICA),
            self._split_over_data(own, declared, dims=1) if self._is_split else own,
            seen if self.by_tokens else (seen > 0).astype(jnp.float32),
            self.exchange,
            cut.of_tree(errors, dim=1),
        )
        states, name = parts["outer"]["optimizer"], _name(fragment)
        moved, optimizer = self._optimizers[fragment].update(
            delta.mean, states[name], outer, step, delta.is_any
        )
        if self._is_split:
            moved = self._split_over_data(moved, declared)
        known, _ = jax.lax.optimization_barrier((delta, after))
        drift = replicas["drift"].at[:, fragment].set(known.norms)
        eager = replicas["eager"]
        if self.streaming.eager:
            eager = self._eager.heard(eager, own, delta.mean, fragment, seen > 0)
        cosine = parts["outer"]["cosine"].at[fragment].set(known.cosine())
        return {
            **parts,
            **_with_weights(parts, cut, moved),
            "outer": {"optimizer": {**states, name: optimizer}, "cosine": cosine},
            "replicas": {
                **replicas,
                "errors": cut.put(errors, delta.errors, dim=1),
                "eager": eager,
                "tokens": replicas["tokens"].at[:, fragment].set(0.0),
                "drift": drift,
            },
        }

    def taken_over(self, parts: Parts, fragment: int) -> Parts:
        """Returns the parts with a fragment taken over by the replicas: stage two.

        With the last fragment, the state of the layers becomes one as well. Nothing is
        taken of a replica whose weights are not finite.
        """
        replicas = parts["replicas"]
        is_sound = jnp.isfinite(replicas["param_norm"])
        if not self.streaming.eager:
            cut = self.fragments[fragment]
            outer, inner = (on_device(_weights(x)) for x in (parts, replicas))
            own = jax.tree.map(
                lambda o, i: self._mix(o, i, is_sound),
                cut.of_tree(outer),
                cut.of_tree(inner, dim=1),
            )
            replicas = self._with_own(replicas, cut, own)
        if fragment + 1 < len(self.fragments):
            return {**parts, "replicas": replicas}
        sound = jax.tree.map(
            lambda old, new: _where(is_sound, new, self._for_each(old)),
            parts["state"],
            replicas["state"],
        )
        state = self._merged(parts["state"], sound)
        replicas = {**replicas, "state": jax.tree.map(self._for_each, state)}
        return {**parts, "state": state, "replicas": replicas}

    @property
    def _is_split(self) -> bool:
        """Whether each data-parallel device of a replica exchanges a share of the
        deltas, and what it gives is gathered inside the replica: as ZeRO-1 does it."""
        return self.exchange is None and self.placement.optimizer == "sharded"

    def _split_over_data(self, tree: Any, declared: Any, dims: int = 0) -> Any:
        """Returns a tree like a fragment, sharded over `data` where it can be.

        Args:
          tree: Its arrays.
          declared: Declarations of the fragment.
          dims: 1 if a dim that counts replicas comes first.
        """
        places = self.placement.of_moments(declared, self.sharding, DATA)
        replica = REPLICA if self.sharding.size(REPLICA) > 1 else None

        def place(p: NamedSharding) -> NamedSharding:
            return NamedSharding(p.mesh, PartitionSpec(*[replica][:dims], *p.spec))

        return pinned(tree, jax.tree.map(place, places))

    def _seen(self, parts: Parts, fragment: int) -> jax.Array:
        """Returns the tokens that each replica has learnt from since the last sync, 0
        for one whose weights are not finite."""
        replicas = parts["replicas"]
        is_sound = jnp.isfinite(replicas["param_norm"])
        return jnp.where(is_sound, replicas["tokens"][:, fragment], 0.0)

    def _deltas(self, parts: Parts, fragment: int) -> Any:
        """Returns the delta of each replica, [R, ...], in float32."""
        cut, replicas = self.fragments[fragment], parts["replicas"]
        inner = cut.of_tree(on_device(_weights(replicas)), dim=1)
        if self.streaming.eager:
            outer = cut.of_tree(on_device(replicas["eager"]["outer"]), dim=1)
        else:
            outer = cut.of_tree(on_device(_weights(parts)))
        return deltas(outer, inner)

    def _with_own(self, replicas: Any, cut: Fragment, weights: Any) -> Any:
        """Returns `replicas` with a fragment of their weights replaced."""
        replicas = {**replicas, **_with_weights(replicas, cut, weights, dim=1)}
        norm = functools.partial(observed.norm, parameters=self.parameters)
        replicas["param_norm"] = jax.vmap(norm)(on_device(_weights(replicas)))
        return replicas

    def _for_each(self, x: jax.Array) -> jax.Array:
        return jnp.broadcast_to(x, (self.num_replicas, *x.shape))

    def _mix(self, outer: jax.Array, own: jax.Array, is_sound: jax.Array) -> jax.Array:
        """Returns the weights that each replica goes on with."""
        share, taken = self.streaming.mix, self._for_each(outer)
        if not share:
            return taken
        return _where(is_sound, share * own + (1.0 - share) * taken, taken)

    def _merged(self, before: Any, parts: Any) -> Any:
        """Returns the state of the layers that all replicas go on with.

        What layers only read, an update of the trainer may have written: of that, the
        mean.
        """
        declared = jax.tree.map(
            lambda d: dataclasses.replace(d, merge="mean") if d.merge == "same" else d,
            self.states,
        )
        return States(declared).merged(before, parts)


def _where(is_sound: jax.Array, own: jax.Array, other: jax.Array) -> jax.Array:
    """Returns what is a replica's own, [R, ...], of those that are sound."""
    return jnp.where(is_sound.reshape(-1, *[1] * (own.ndim - 1)), own, other)


def _name(fragment: int) -> str:
    return f"fragment_{fragment}"


def _weights(parts: Parts) -> Any:
    """Returns the masters, or the parameters where these have none."""
    return parts["masters"] or parts["params"]


def _with_weights(parts: Parts, cut: Fragment, new: Any, dim: int = 0) -> Parts:
    """Returns `params` and `masters` with a fragment replaced, in the types and in the
    memory that they have."""

    def replaced(old: Any) -> Any:
        narrow = jax.tree.map(
            lambda x, o: x.astype(o.dtype), new, cut.of_tree(old, dim)
        )
        put = cut.put(on_device(old), narrow, dim)
        return jax.tree.map(beside, old, put)

    kept = ("params", "masters") if parts["masters"] else ("params",)
    return {name: replaced(parts[name]) for name in kept}


def pinned_parts(change: Callable[..., Parts], places: Parts) -> Callable[..., Parts]:
    """Returns `change`, with the arrays that it takes and gives pinned to `places`."""

    def of_pinned(parts: Parts, *arguments: Any, **keywords: Any) -> Parts:
        return pinned(change(pinned(parts, places), *arguments, **keywords), places)

    return of_pinned
