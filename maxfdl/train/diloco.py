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
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from maxfdl.errors import UserError
from maxfdl.layers.frozen import joined
from maxfdl.layers.parameter import Parameter
from maxfdl.ops.state import States
from maxfdl.optim.optimizer import Optimizer
from maxfdl.sharding.mesh import REPLICA
from maxfdl.sharding.sharding import Sharding
from maxfdl.train import observed
from maxfdl.train.loss import Batch
from maxfdl.train.outer import Outer, mean_delta
from maxfdl.train.side_by_side import each_alone, pinned
from maxfdl.train.trainer import Metrics, State, Trainer, numbered

_ALSO_OF_EACH = ("loss", "grad_norm", "drift", "skipped")
"""Metrics that are logged of each replica, besides their mean."""
_NOT_MEANS = {"skipped": np.sum, "skipped_in_a_row": np.min}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class DiLoCo(Trainer):
    """Distributed low-communication training: one exchange every `sync_period` steps.

    Each replica takes the steps of the standard trainer on its share of every batch,
    the first replica on the first rows, and exchanges nothing with the others. At a
    sync, the outer optimizer moves the outer weights along the mean of what the
    replicas have learnt, and all go on from there, each with its own optimizer state.
    The outer weights are those that are evaluated and saved for use; if the inner
    optimizer or an update keeps an average, the mean of the replicas' averages is.
    Douillard et al. 2023, https://arxiv.org/abs/2311.08105, algorithm 1.

    The inner trainer is made of the other fields, with the guard and the placement: a
    step that a guard rejects is rejected by that replica alone. A replica all of whose
    steps were rejected since the last sync, or whose weights are not finite, is left
    out of the average and goes on from it. State of layers is merged as parts of a
    batch are; that which an update writes, such as a router's bias, becomes the mean.

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
    """

    num_replicas: int
    sync_period: int
    outer: Outer
    average: Literal["equal", "tokens"] = "equal"

    def __post_init__(self):
        super().__post_init__()
        groups = self.sharding.size(REPLICA)
        if self.num_replicas % groups:
            raise UserError(_not_a_multiple(self.num_replicas, groups))

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
        own = {
            **{name: began[name] for name in self._kept},
            "params": trained,
            "tokens": jnp.zeros((), jnp.float32),
            "drift": jnp.zeros((), jnp.float32),
        }
        return {
            "step": began["step"],
            "params": began["params"],
            "masters": began["masters"],
            "state": began["state"],
            "replicas": jax.tree.map(self._for_each, own),
            "outer": {
                "optimizer": self._outer_optimizer.init(began["masters"] or trained),
                "cosine": jnp.zeros((), jnp.float32),
            },
        }

    _kept = ("guard", "masters", "param_norm", "state", "optimizer", "updates")

    @property
    def _outer_optimizer(self) -> Optimizer:
        return self.outer.optimizer(self._trained())

    def _for_each(self, x: jax.Array) -> jax.Array:
        return jnp.broadcast_to(x, (self.num_replicas, *x.shape))

    def step(self, state: State, batch: Batch) -> tuple[State, Metrics]:
        """Takes a step in each replica, and a sync if it is due.

        Metrics are those of the standard trainer, [R], which no replica knows of the
        others; `drift`, [R], how far each was from the outer weights at the last sync;
        and `delta_cosine`, see `Delta.cosine`.
        """
        shared = {"step": state["step"], "frozen": self._frozen(state["params"])}
        places = self._places["replicas"]
        step = each_alone(self._of_replica, self.sharding, self.num_replicas, places)
        replicas, metrics = step(state["replicas"], dict(numbered(batch)), shared)
        state = {**state, "step": state["step"] + 1, "replicas": replicas}
        state = self._synced_if_due(state)
        drift, cosine = state["replicas"]["drift"], state["outer"]["cosine"]
        return state, {**metrics, "drift": drift, "delta_cosine": cosine}

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
            "tokens": own["tokens"] + learnt,
            "drift": own["drift"],
        }, metrics

    def _inner(self, sharding: Sharding) -> Trainer:
        """Returns the standard trainer of one replica."""
        fields = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(Trainer)
        }
        model = self.model.on(self.model.sharding and sharding)
        return Trainer(**{**fields, "model": model, "sharding": sharding})

    def _synced_if_due(self, state: State) -> State:
        """Returns the state after the sync; as it is where none is due."""
        names = ("params", "masters", "param_norm", "state", "tokens", "drift")
        replicas = state["replicas"]
        parts = {
            "params": self._trained(state["params"]),
            "masters": state["masters"],
            "state": state["state"],
            "outer": state["outer"],
            "replicas": {name: replicas[name] for name in names},
        }
        places = {
            **{name: self._places[name] for name in ("masters", "state", "outer")},
            "params": self._trained(self._places["params"]),
            "replicas": {name: self._places["replicas"][name] for name in names},
        }
        step = state["step"]
        parts = jax.lax.cond(
            step % self.sync_period == 0,
            lambda parts: pinned(self._synced(pinned(parts, places), step), places),
            lambda parts: pinned(parts, places),
            parts,
        )
        return {
            **state,
            **parts,
            "params": joined(parts["params"], self._frozen(state["params"])),
            "replicas": replicas | parts["replicas"],
        }

    def _synced(self, parts: State, step: jax.Array) -> State:
        replicas, declared = parts["replicas"], self._trained()
        outer, inner = (each["masters"] or each["params"] for each in (parts, replicas))
        tokens = replicas["tokens"]
        delta = mean_delta(
            self.sharding,
            self.placement.cuts(declared, self.sharding, REPLICA),
            outer,
            inner,
            tokens if self.average == "tokens" else (tokens > 0).astype(jnp.float32),
        )
        moved, optimizer = self._outer_optimizer.update(
            delta.mean, parts["outer"]["optimizer"], outer, step, delta.is_any
        )
        masters = moved if parts["masters"] else {}
        moved = pinned(moved, self._trained(self._places["params"]))
        params = moved
        if self.masters is not None and masters:
            params = self.masters.narrowed(moved, parts["params"], declared)
        state = self._merged(parts["state"], replicas["state"])
        own = {
            "params": params,
            "masters": moved if masters else {},
            "param_norm": observed.norm(moved, declared),
            "state": state,
            "tokens": jnp.zeros((), jnp.float32),
        }
        own = jax.tree.map(self._for_each, own)
        return {
            "params": params,
            "masters": masters,
            "state": state,
            "outer": {"optimizer": optimizer, "cosine": delta.cosine()},
            "replicas": {**own, "drift": delta.norms},
        }

    def _merged(self, before: Any, parts: Any) -> Any:
        """Returns the state of the layers that all replicas go on with.

        What layers only read, an update of the trainer may have written: of that, the
        mean.
        """
        declared = jax.tree.map(
            lambda d: dataclasses.replace(d, merge="mean") if d.merge == "same" else d,
            self.model.state(),
        )
        return States(declared).merged(before, parts)

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
        return found | {"bytes_sent": float(self.bytes_sent(step))}

    def bytes_sent(self, step: int) -> int:
        """Returns the bytes that one replica has given to exchanges up to `step`."""
        parameters: list[Parameter] = jax.tree.leaves(self._trained())
        of_sync = 4 * sum(parameter.size for parameter in parameters)
        return step // self.sync_period * of_sync

    def state_shardings(self) -> State:
        return self._places

    @functools.cached_property
    def _places(self) -> State:
        standard = self._inner(self.sharding).state_shardings()
        whole = self.sharding.named(())
        moments = self.placement.of_moments(self._trained(), self.sharding, REPLICA)
        params = jax.eval_shape(self.init)["params"]
        own = {
            **{name: standard[name] for name in self._kept},
            "params": self._trained(standard["params"]),
            "tokens": whole,
            "drift": whole,
        }
        return {
            "step": whole,
            "params": standard["params"],
            "masters": moments if standard["masters"] else {},
            "state": standard["state"],
            "replicas": jax.tree.map(self._apart, own),
            "outer": {
                "optimizer": self._outer_optimizer.shardings(
                    self._trained(params), moments, whole
                ),
                "cosine": whole,
            },
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
