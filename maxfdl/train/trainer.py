"""One training step, and where its state lives.

The training state is a plain nested dict: `step` (int32), `guard` (counts of rejected
steps), `params`, `masters` (float32 copies of narrow ones, see `Masters`), `param_norm`
(L2 norm of those that are trained), `state` (of layers), `optimizer` and `updates`
(their own state).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from maxfdl.batch import MODEL_INPUTS, Fields
from maxfdl.layers.frozen import frozen, joined, trained
from maxfdl.layers.parameter import path_hash
from maxfdl.layers.sinks import Sinks
from maxfdl.markers import FromParent, Operational
from maxfdl.model import Model, Output
from maxfdl.ops.state import States
from maxfdl.optim.optimizer import Optimizer
from maxfdl.sharding.memory import on_device
from maxfdl.sharding.sharding import Sharding
from maxfdl.train import observed
from maxfdl.train.goal import LossGoal
from maxfdl.train.gradients import Gradients, Parts
from maxfdl.train.guard import Guard, Proposal
from maxfdl.train.loss import STUDENT, Batch, Loss, Term, total
from maxfdl.train.masters import Masters
from maxfdl.train.placement import Placement
from maxfdl.train.replicas import Shares, on_replicas
from maxfdl.train.updates import Step, Update, updated

State = dict[str, Any]
Metrics = dict[str, jax.Array]
Shapes = Mapping[str, tuple[tuple[int, ...], str]]
"""Shape and type of each leaf of a saved state, by its path."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Trainer:
    """Synchronous data-parallel training.

    Args:
      log_every: Steps between lines of progress and of metrics.
      eval_every: Steps between evaluations; 0 evaluates at the end only.
      eval_batches: Held-out batches of one evaluation; 0 never evaluates.
      goal: Ends the run at a target loss; None goes on to the last step.
      sample_tokens: Length of the continuation that is shown at the end; 0 for none.
      gradients: Computes the gradients of a batch: at once, or accumulated.
      guard: Accepts or rejects each step.
      placement: Where the training state lies.
      masters: Keeps float32 copies of narrow parameters; None changes these themselves.
      updates: Changes of parameters and of the layers' state after the optimizer.
      model, loss, optimizer, sharding, seed: The parts, from the experiment.
    """

    log_every: Annotated[int, Operational] = 10
    eval_every: Annotated[int, Operational] = 0
    eval_batches: Annotated[int, Operational] = 8
    goal: Annotated[LossGoal | None, Operational] = None
    sample_tokens: Annotated[int, Operational] = 0
    gradients: Annotated[Gradients, Operational("adds_up")]
    guard: Guard
    placement: Annotated[Placement, Operational]
    masters: Masters | None = None
    updates: Sequence[Update] = ()
    model: Annotated[Model, FromParent]
    loss: Annotated[Loss, FromParent]
    optimizer: Annotated[Optimizer, FromParent]
    sharding: Annotated[Sharding, FromParent]
    seed: Annotated[int, FromParent]

    def __post_init__(self):
        for update in self.updates:
            update.check(self.model.parameters())

    @staticmethod
    def check_config(node):
        if node.log_every < 1:
            yield f"Trainer log_every ({node.log_every}) must be at least 1."
        for field in ("eval_every", "eval_batches", "sample_tokens"):
            if getattr(node, field) < 0:
                yield f"Trainer {field} ({getattr(node, field)}) must not be negative."
        names = [update.made.name for update in node.updates]
        if len(set(names)) < len(names):
            yield f"Trainer updates ({', '.join(names)}) must each come once."
        if node.goal is not None and not node.eval_batches:
            yield "Trainer goal needs evaluations; eval_batches (0) must be positive."

    @classmethod
    def check_in(cls, node, root):
        yield from cls.check_masters(node, root)
        if root.mesh.replica != 1:
            yield (
                f"{cls.__name__} trains one model, and mesh.replica"
                f" ({root.mesh.replica}) lays out several side by side: apply"
                " use_diloco, or give these devices to mesh(data=...)."
            )

    @staticmethod
    def check_masters(node, root):
        rounding = getattr(root.optimizer, "rounding", None)
        if node.masters is not None and rounding is not None:
            yield (
                "Experiment trainer.masters and optimizer.rounding are two ways to keep"
                " small updates of narrow parameters: apply master_weights or"
                " stochastic_rounding, which set one and drop the other."
            )

    def init(self) -> State:
        """Returns the state before the first step, with fresh weights."""
        params_key = jax.random.fold_in(jax.random.key(self.seed), path_hash("params"))
        return self.start_from(self.model.init(params_key))

    def start_from(self, variables: Mapping[str, Any]) -> State:
        """Returns the state before the first step, with these weights.

        `masters` among the variables are those of narrow parameters; without them, they
        are these parameters in float32.
        """
        params = variables["params"]
        changing = self._trained(params)
        masters = variables.get("masters")
        if masters is None:
            masters = self.masters.init(changing) if self.masters else {}
        # Fused with the norm, fresh weights would not be the same on every mesh.
        apart = jax.lax.optimization_barrier(changing)
        return {
            "step": jnp.zeros((), jnp.int32),
            "guard": self.guard.init(),
            "params": params,
            "masters": masters,
            "param_norm": observed.norm(apart, self._trained()),
            "state": variables["state"],
            "optimizer": self.optimizer.init(changing),
            "updates": {each.name: each.init(changing) for each in self.updates},
        }

    def _trained(self, tree: Any = None) -> dict[str, Any]:
        """Returns the part of a tree like the parameters that is trained."""
        return trained(self.model.parameters(), tree)

    def _frozen(self, params: Any) -> dict[str, Any]:
        return frozen(self.model.parameters(), params)

    def step(self, state: State, batch: Batch) -> tuple[State, Metrics]:
        """Forward, loss, gradients, update: the whole of training.

        A step that the guard rejects changes nothing but the counts. Norms are those of
        what is trained.
        """
        step, parameters = state["step"], self._trained()
        params = state["masters"] or self._trained(state["params"])
        weights = self.weights(batch)
        grads, (sums, layer_state, sinks) = self.gradients_of(state, batch)
        grad_norms = observed.norms("grad_norm", grads, parameters)
        loss = total(sums, weights)
        grad_norm, param_norm = grad_norms["grad_norm"], state["param_norm"]
        reach = self.optimizer.reach(step, grad_norm, param_norm)
        accepted, guard = self.guard(
            state["guard"], Proposal(loss, grad_norm, param_norm, reach)
        )

        rate = self.optimizer.learning_rate(step)
        params, optimizer = self.optimizer.update(
            grads, state["optimizer"], params, step, accepted
        )
        layer_state = jax.tree.map(
            lambda new, old: jnp.where(accepted, new, old), layer_state, state["state"]
        )
        variables, memories = updated(
            self.updates,
            {"params": params, "state": layer_state},
            state["updates"],
            Step(sinks, self.model.parameters(), accepted, rate),
        )
        param_norms = observed.norms("param_norm", variables["params"], parameters)
        kept = {
            **self._stored(variables["params"], state),
            "param_norm": param_norms["param_norm"],
            "state": variables["state"],
            "optimizer": optimizer,
            "updates": memories,
        }
        metrics = {
            "loss": loss,
            **{name: Term(sums[name], weights[name]).mean for name in sums},
            "learning_rate": rate,
            **grad_norms,
            **param_norms,
            **observed.packing(batch),
            **observed.of_sinks(sinks),
            **self.guard.metrics(guard),
        }
        return {"step": step + 1, "guard": guard, **kept}, metrics

    def _stored(self, params: Any, state: State) -> State:
        """Returns `params` and `masters` of the state after a step.

        Args:
          params: Trained parameters, or their masters, as the step leaves them.
          state: As it was before the step.
        """
        fixed = self._frozen(state["params"])
        if self.masters is None or not state["masters"]:
            return {"params": joined(params, fixed), "masters": {}}
        old = self._trained(state["params"])
        narrow = self.masters.narrowed(params, old, self._trained())
        return {"params": joined(narrow, fixed), "masters": params}

    def gradients_of(self, state: State, batch: Batch) -> tuple[Any, Parts]:
        """Returns the gradients of the trained parameters, and the parts of the
        objective.

        Weights of the terms come from the whole batch, so gradients of microbatches and
        replicas add up to those of the batch.
        """
        seed_key = jax.random.fold_in(jax.random.key(self.seed), path_hash("steps"))
        key = jax.random.fold_in(seed_key, state["step"])
        rows = numbered(batch)
        whole = on_replicas(
            self._gradients_of_rows,
            self.sharding,
            self._shares(),
            States(self.model.state()),
        )
        weights = self.guard.scaled(state["guard"], self.weights(batch))
        grads, parts = whole(state["params"], state["state"], rows, weights, key)
        return self.guard.unscaled(state["guard"], grads), parts

    def _shares(self) -> Shares:
        """Returns which part of parameters and gradients a shard of the rows has."""
        params = self.placement.shares(self.model.parameters(), self.sharding)
        gradients = self.placement.shares_of_moments(self._trained(), self.sharding)
        return Shares(params, self._trained(params), gradients)

    def reported(self, step: int, metrics: Mapping[str, Any]) -> dict[str, float]:
        """Returns what is logged of the metrics of `step`, from the host's memory."""
        return {name: float(value) for name, value in metrics.items()}

    @property
    def batch_fields(self) -> Fields:
        """What model and loss read of a batch."""
        return {**MODEL_INPUTS, **self.loss.fields}

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        """Returns the weight by which each term of the objective is divided."""
        return self.loss.weights(batch, self.model.network.later_tokens)

    def _gradients_of_rows(
        self, sharding, params, layer_state, rows, weights, key
    ) -> tuple[Any, Parts]:
        """Returns the contribution of some rows to the gradients of the batch."""
        model = self.model.on(self.model.sharding and sharding)
        fixed = self._frozen(params)

        def objective(changing, layer_state, rows):
            variables = {"params": joined(changing, fixed), "state": layer_state}
            output = _forward(model, variables, rows, key=key, rows=rows["rows"])
            sums = self.loss.sums({STUDENT: output}, rows, sharding.psum)
            return total(sums, weights), Parts(sums, output.state, output.sinks)

        changing = self._trained(params)
        return self.gradients(
            objective, changing, layer_state, rows, sharding, States(model.state())
        )

    def evaluate(
        self, variables: Mapping[str, Any], batch: Batch
    ) -> tuple[dict[str, Term], Sinks]:
        """Returns the loss terms of one batch, without dropout, and its sinks."""
        output = _forward(self.model, variables, batch)
        return self.loss({STUDENT: output}, batch), output.sinks

    def evaluated(self, state: State) -> dict[str, Any]:
        """Returns the variables to evaluate, sample and export, which may be averages.
        Of several averages the last is used."""
        state = on_device(state)
        params = self._trained(state["params"])
        if self.optimizer.averages:
            wide = state.get("masters") or params
            average = self.optimizer.evaluated(wide, state["optimizer"])
            params = jax.tree.map(lambda a, p: a.astype(p.dtype), average, params)
        for update in self.updates:
            if update.averages:
                params = update.evaluated(params, state["updates"][update.name])
        params = joined(params, self._frozen(state["params"]))
        return {"params": params, "state": state["state"]}

    @property
    def evaluated_from(self) -> tuple[str, ...]:
        """Names of the parts of the state that `evaluated` reads."""
        averages = {
            "masters": self.optimizer.averages,
            "optimizer": self.optimizer.averages,
            "updates": any(each.averages for each in self.updates),
        }
        return ("params", "state", *(name for name, keeps in averages.items() if keeps))

    def as_saved(self, state: State, saved: Shapes) -> State:
        """Returns abstract state, or some entries of it, as a checkpoint holds it.

        It differs from what is given if the run had another value of an operational
        field when it was saved.
        """
        return state

    def resumed(self, state: State) -> State:
        """Returns the state to go on with, from one that looks like `as_saved`."""
        return state

    def state_shardings(self) -> State:
        """Returns the sharding of each leaf of the training state.

        Raises:
          UserError: If the mesh cannot cut a parameter as the rules say.
        """
        whole, parameters = self.sharding.named(()), self.model.parameters()
        params = self.placement.of_params(parameters, self.sharding)
        moments = self.placement.of_moments(self._trained(), self.sharding)
        abstract = jax.eval_shape(self.init)
        return {
            "step": whole,
            "guard": jax.tree.map(lambda _: whole, abstract["guard"]),
            "params": params,
            "masters": moments if abstract["masters"] else {},
            "param_norm": whole,
            "state": self.placement.of_state(self.model.state(), self.sharding),
            "optimizer": self.optimizer.shardings(
                self._trained(abstract["params"]), moments, whole
            ),
            "updates": {
                each.name: each.shardings(moments, whole) for each in self.updates
            },
        }


def numbered(batch: Batch) -> Batch:
    """Returns the batch with the numbers of its rows, which dropout follows from.

    Rows that are a part of a larger batch have the numbers that they have there.
    """
    return {"rows": jnp.arange(batch["tokens"].shape[0]), **batch}


def _forward(
    model: Model, variables: Mapping[str, Any], batch: Batch, **random
) -> Output:
    return model.apply(
        variables,
        batch["tokens"],
        segment_ids=batch["segment_ids"],
        positions=batch["positions"],
        **random,
    )
