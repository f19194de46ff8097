"""DiLoCo: replicas that train apart, and are averaged every so many steps.

Letters: R replicas.

The training state has `step`, `params` (the outer weights), their `masters` and `state`
(of the layers), all but the first as the last sync left them; `replicas`, what each
replica has of its own, with a leading dim R: `params`, those that are trained, and what
else the standard trainer keeps; and `outer`, the state of the outer optimizer and what
is known of the last sync. Frozen parameters stand in `params` alone.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from maxfdl.errors import UserError
from maxfdl.layers.frozen import joined
from maxfdl.markers import Operational
from maxfdl.sharding.mesh import REPLICA
from maxfdl.sharding.sharding import Sharding
from maxfdl.train import observed
from maxfdl.train.elastic import of_number, renumbered
from maxfdl.train.exchange import Exchange
from maxfdl.train.fragments import Streaming
from maxfdl.train.loss import Batch
from maxfdl.train.outer import Outer
from maxfdl.train.side_by_side import each_alone
from maxfdl.train.sync import Parts, Syncs, pinned_parts
from maxfdl.train.trainer import Metrics, Shapes, State, Trainer, numbered

_ALSO_OF_EACH = ("loss", "grad_norm", "drift", "skipped")
"""Metrics that are logged of each replica, besides their mean."""
_NOT_MEANS = {"skipped": np.sum, "skipped_in_a_row": np.min}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class DiLoCo(Trainer):
    """Distributed low-communication training: one exchange every `sync_period` steps.

    Each replica takes the steps of the standard trainer on its share of every batch,
    the first replica on the first rows, and exchanges nothing with the others. At a
    sync, the outer optimizer moves the outer weights along the mean of what the
    replicas have learnt, and all go on from there, each with its own optimizer state: a
    sync leaves that as it is, and so the z of schedule-free learning. The outer weights
    are those that are evaluated and saved for use; if the inner optimizer or an update
    keeps an average, the mean of the replicas' averages is.
    Douillard et al. 2023, https://arxiv.org/abs/2311.08105, algorithm 1.

    The inner trainer is made of the other fields, with the guard and the placement: a
    step that a guard rejects is rejected by that replica alone. A replica all of whose
    steps were rejected since the last sync, or whose weights are not finite, is left
    out of the average and goes on from it. State of layers is merged as parts of a
    batch are; that which an update writes, such as a router's bias, becomes the mean.

    A run may go on with another number of replicas. Those that stay keep what they
    have; a new one begins with the outer weights, as the last sync left them.

    Memory: the state of the standard trainer for each replica, and one more copy of the
    weights and the state of the outer optimizer. That is sharded over the mesh axes
    `data` and `replica` if `placement.optimizer` is `sharded`.

    Args:
      num_replicas: R, a multiple of the mesh axis `replica`. Several on one device take
        turns: the numbers are those of a device for each.
      sync_period: Steps from sync to sync.
      outer: The outer optimizer.
      average: Weights of the mean over replicas: `equal`, or the `tokens` that each has
        trained on since the last sync.
      streaming: Whether parts of the model are synced in turns; by default it is synced
        as a whole.
      exchange: How replicas send what they have learnt; None sends float32.
    """

    num_replicas: Annotated[int, Operational]
    sync_period: int
    outer: Outer
    average: Literal["equal", "tokens"] = "equal"
    streaming: Streaming = Streaming()
    exchange: Exchange | None = None

    def __post_init__(self):
        super().__post_init__()
        groups = self.sharding.size(REPLICA)
        if self.num_replicas % groups:
            raise UserError(_not_a_multiple(self.num_replicas, groups))
        self._syncs.fragments  # noqa: B018 (a cached property that raises)

    @staticmethod
    def check_config(node):
        yield from Trainer.check_config(node)
        for field in ("num_replicas", "sync_period"):
            if getattr(node, field) < 1:
                yield f"DiLoCo {field} ({getattr(node, field)}) must be at least 1."

    @classmethod
    def check_in(cls, node, root):
        yield from cls.check_masters(node, root)
        count, axis = node.num_replicas, root.mesh.replica
        if axis < 1 or count % axis:
            yield _not_a_multiple(count, axis)
        smallest, name = root.batch_size, "batch_size"
        if root.ramp_up is not None:
            smallest, name = root.ramp_up.start, "ramp_up.start"
        if count > 0 and smallest % count:
            yield (
                f"Experiment {name} ({smallest}) must be a multiple of"
                f" trainer.num_replicas ({count}), for each replica has as many rows."
            )

    def start_from(self, variables: Mapping[str, Any]) -> State:
        began = super().start_from(variables)
        trained = self._trained(began["params"])
        weights = began["masters"] or trained
        outer = self._syncs.init(weights)
        own = {
            **{name: began[name] for name in self._kept},
            "params": trained,
            **self._syncs.nothing_learnt(weights, outer),
        }
        return {
            "step": began["step"],
            "params": began["params"],
            "masters": began["masters"],
            "state": began["state"],
            "replicas": jax.tree.map(self._for_each, own),
            "outer": outer,
        }

    _kept = ("guard", "masters", "param_norm", "state", "optimizer", "updates")

    @functools.cached_property
    def _syncs(self) -> Syncs:
        return Syncs(
            num_replicas=self.num_replicas,
            period=self.sync_period,
            streaming=self.streaming,
            outer=self.outer,
            exchange=self.exchange,
            by_tokens=self.average == "tokens",
            parameters=self._trained(),
            states=self.model.state(),
            placement=self.placement,
            sharding=self.sharding,
        )

    def _for_each(self, x: jax.Array) -> jax.Array:
        return jnp.broadcast_to(x, (self.num_replicas, *x.shape))

    def step(self, state: State, batch: Batch) -> tuple[State, Metrics]:
        """Takes a step in each replica, and a sync if it is due.

        Metrics are those of the standard trainer, [R], which no replica knows of the
        others; `drift`, [R], how far each was from the outer weights at its last syncs;
        and `delta_cosine`, see `Delta.cosine`.
        """
        take_over = pinned_parts(self._syncs.taken_over, self._places_of_parts)
        overlap, number = self.streaming.overlap, state["step"]
        if overlap:
            state, metrics = self._step_beside_exchange(state, batch)
        else:
            state, metrics = self._step_of_all(state, batch)

        def synced(parts: Parts, fragment: int) -> Parts:
            if not overlap:
                parts = self._averaged(parts, number + 1, fragment)
            return take_over(parts, fragment)

        which = self._syncs.due_after(number + 1 - overlap)
        parts = self._syncs.in_turns(which, synced, self._parts(state))
        state = self._with_parts(state, parts)
        drift = jnp.linalg.norm(state["replicas"]["drift"], axis=1)
        cosine = jnp.mean(state["outer"]["cosine"])
        return state, {**metrics, "drift": drift, "delta_cosine": cosine}

    def _step_of_all(self, state: State, batch: Batch) -> tuple[State, Metrics]:
        """Takes a step in each replica."""
        shared = {"step": state["step"], "frozen": self._frozen(state["params"])}
        places = self._places["replicas"]
        step = each_alone(self._of_replica, self.sharding, self.num_replicas, places)
        replicas, metrics = step(state["replicas"], dict(numbered(batch)), shared)
        return {**state, "step": state["step"] + 1, "replicas": replicas}, metrics

    def _step_beside_exchange(
        self, state: State, batch: Batch
    ) -> tuple[State, Metrics]:
        """Takes a step in each replica, and stage one of a sync that was due before.

        Both are in one branch, where neither needs what the other gives.
        """

        def with_sync(both: tuple[State, Batch], fragment: int) -> Any:
            state, batch = both
            before, number = self._parts(state), state["step"]
            if self.streaming.eager:
                move = pinned_parts(self._syncs.moved_early, self._places_of_parts)
                state = self._with_parts(state, move(before, number, fragment))
            state, metrics = self._step_of_all(state, batch)
            after = state["replicas"]["param_norm"]
            parts = self._averaged(before, number, fragment, after)
            own, old, new = (x["replicas"] for x in (self._parts(state), before, parts))
            own["tokens"] = own["tokens"] - old["tokens"] + new["tokens"]
            own["drift"], own["errors"] = new["drift"], new["errors"]
            if self.streaming.eager:
                own["eager"] = own["eager"] | {"others": new["eager"]["others"]}
            return self._with_parts(state, {**parts, "replicas": own}), metrics

        which = self._syncs.due_after(state["step"])
        branches = [
            functools.partial(with_sync, fragment=i)
            for i in range(self.streaming.fragments)
        ]
        alone = lambda both: self._step_of_all(*both)  # noqa: E731
        return jax.lax.switch(which, [*branches, alone], (state, batch))

    def _averaged(self, *arguments: Any) -> Parts:
        return pinned_parts(self._syncs.averaged, self._places_of_parts)(*arguments)

    def _of_replica(
        self, sharding: Sharding, own: State, rows: Batch, shared: Any
    ) -> tuple[State, Metrics]:
        """Takes a step of the standard trainer with the state of one replica."""
        before = {
            **{name: own[name] for name in self._kept},
            "step": shared["step"],
            "params": joined(own["params"], shared["frozen"]),
        }
        after, metrics = self._inner(sharding).step(before, rows)
        skipped = [state["guard"]["skipped"] for state in (after, before)]
        tokens = self.weights(rows)["cross_entropy"]
        learnt = jnp.where(skipped[0] > skipped[1], 0.0, tokens)
        return {
            **{name: after[name] for name in self._kept},
            "params": self._trained(after["params"]),
            **{name: own[name] for name in ("errors", "eager", "drift")},
            "tokens": own["tokens"] + learnt,
        }, metrics

    def _inner(self, sharding: Sharding) -> Trainer:
        """Returns the standard trainer of one replica."""
        fields = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(Trainer)
        }
        model = self.model.on(self.model.sharding and sharding)
        return Trainer(**{**fields, "model": model, "sharding": sharding})

    def _parts(self, state: State) -> Parts:
        """Returns what syncs read and change of a state, or of its shardings."""
        replicas = state["replicas"]
        names = ("params", "masters", "param_norm", "state")
        names += ("errors", "eager", "tokens", "drift")
        return {
            **{name: state[name] for name in ("masters", "state", "outer")},
            "params": self._trained(state["params"]),
            "replicas": {name: replicas[name] for name in names},
        }

    def _with_parts(self, state: State, parts: Parts) -> State:
        return {
            **state,
            **parts,
            "params": joined(parts["params"], self._frozen(state["params"])),
            "replicas": state["replicas"] | parts["replicas"],
        }

    @property
    def _places_of_parts(self) -> Parts:
        return self._parts(self._places)

    def evaluated(self, state: State) -> dict[str, Any]:
        if not self._keeps_averages:
            return {"params": state["params"], "state": state["state"]}
        frozen, replicas = self._frozen(state["params"]), state["replicas"]

        def of_one(own: State) -> Any:
            whole = {**own, "params": joined(own["params"], frozen)}
            return self._trained(Trainer.evaluated(self, whole)["params"])

        averages = jax.vmap(of_one)(replicas)
        mean = jax.tree.map(lambda x: jnp.mean(x, axis=0).astype(x.dtype), averages)
        return {"params": joined(mean, frozen), "state": state["state"]}

    @property
    def evaluated_from(self) -> tuple[str, ...]:
        parts = ("params", "state")
        return (*parts, "replicas") if self._keeps_averages else parts

    @property
    def _keeps_averages(self) -> bool:
        return len(super().evaluated_from) > 2

    def reported(self, step: int, metrics: Mapping[str, Any]) -> dict[str, float]:
        """Returns the mean of each metric over replicas, and some of each replica.

        `skipped` is the sum, and `skipped_in_a_row` the least of all replicas.
        `bytes_sent` is what one replica has given to exchanges up to `step`.
        """
        values = {name: np.asarray(value) for name, value in metrics.items()}
        found = {
            name: float(_NOT_MEANS.get(name, np.mean)(value))
            for name, value in values.items()
        }
        for name in _ALSO_OF_EACH:
            for replica, value in enumerate(values[name].tolist()):
                found[f"replica_{replica}/{name}"] = float(value)
        return found | {"bytes_sent": float(self._syncs.bytes_up_to(step))}

    @property
    def bytes_sent_per_step(self) -> float:
        """Mean bytes per step that a replica gives to exchanges."""
        return sum(self._syncs.bytes) / self.sync_period

    def as_saved(self, state: State, saved: Shapes) -> State:
        found = saved.get("replicas.tokens")
        if found is None or "replicas" not in state:
            return state
        ((count, *_), _) = found
        return {**state, "replicas": of_number(count, state["replicas"])}

    def resumed(self, state: State) -> State:
        """Returns a state with any number of replicas with the number that this
        trainer has, see `renumbered`. The outer weights and the state of the outer
        optimizer stay as they are."""
        weights = state["masters"] or self._trained(state["params"])
        fresh = {
            "params": self._trained(state["params"]),
            "masters": state["masters"],
            "param_norm": observed.norm(weights, self._trained()),
            "state": state["state"],
            **self._syncs.nothing_learnt(weights, state["outer"]),
        }
        own = renumbered(state["replicas"], self.num_replicas, fresh)
        return {**state, "replicas": own}

    def state_shardings(self) -> State:
        return self._places

    @functools.cached_property
    def _places(self) -> State:
        standard = self._inner(self.sharding).state_shardings()
        whole = self.sharding.named(())
        moments = self._syncs.places_of_moments
        weights = self._trained(jax.eval_shape(self.init)["params"])
        trained = self._trained(standard["params"])
        own = {
            **{name: standard[name] for name in self._kept},
            "params": trained,
            **self._syncs.places_of_nothing_learnt(weights, trained),
        }
        return {
            "step": whole,
            "params": standard["params"],
            "masters": moments if standard["masters"] else {},
            "state": standard["state"],
            "replicas": jax.tree.map(self._apart, own),
            "outer": self._syncs.shardings(weights),
        }

    def _apart(self, place: NamedSharding) -> NamedSharding:
        """Returns the sharding of what each replica has one of."""
        axis = REPLICA if self.sharding.size(REPLICA) > 1 else None
        spec = PartitionSpec(axis, *place.spec)
        return NamedSharding(place.mesh, spec, memory_kind=place.memory_kind)


def _not_a_multiple(num_replicas: int, axis: int) -> str:
    return (
        f"DiLoCo num_replicas ({num_replicas}) must be a multiple of mesh.replica"
        f" ({axis}), which must be at least 1."
    )
