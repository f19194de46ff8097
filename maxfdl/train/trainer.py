"""One training step, and where its state lives.

State is a plain nested dict: `step` (int32), `guard` (steps that did not count),
`params`, `param_norm` (their L2 norm), `state` (of the layers), `optimizer` and
`updates` (what these remember).
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from maxfdl.errors import UserError
from maxfdl.layers.parameter import path_hash
from maxfdl.markers import FromParent
from maxfdl.model import Model, Output
from maxfdl.ops.state import States
from maxfdl.optim.optimizer import Optimizer
from maxfdl.sharding.memory import on_device
from maxfdl.sharding.sharding import Sharding
from maxfdl.train import observed
from maxfdl.train.goal import LossGoal
from maxfdl.train.gradients import Accumulate, Parts, WholeBatch
from maxfdl.train.guard import Proposal, SkipNonFinite
from maxfdl.train.loss import Batch, NextTokenLoss, Term, total
from maxfdl.train.placement import Placement
from maxfdl.train.replicas import on_replicas
from maxfdl.train.updates import Step, Update, updated

State = dict[str, Any]
Metrics = dict[str, jax.Array]


class Trainer:
    """Synchronous training: every device takes each step on its share of the batch.

    Args:
      log_every: Steps between lines of progress and of metrics.
      eval_every: Steps between evaluations; 0 evaluates at the end only.
      eval_batches: Held-out batches of one evaluation; 0 never evaluates.
      goal: Ends the run when it has learnt enough; None goes on to the last step.
      sample_tokens: Length of the continuation that is shown at the end; 0 for none.
      gradients: How those of a batch come about.
      guard: Which steps count.
      placement: Where the state lies.
      updates: What a step does to parameters and state of layers after the optimizer.
      model, loss, optimizer, sharding, seed: The parts, from the experiment.
    """

    def __init__(
        self,
        *,
        log_every: int = 10,
        eval_every: int = 0,
        eval_batches: int = 8,
        goal: LossGoal | None = None,
        sample_tokens: int = 0,
        gradients: WholeBatch | Accumulate,
        guard: SkipNonFinite,
        placement: Placement,
        updates: Sequence[Update] = (),
        model: Annotated[Model, FromParent],
        loss: Annotated[NextTokenLoss, FromParent],
        optimizer: Annotated[Optimizer, FromParent],
        sharding: Annotated[Sharding, FromParent],
        seed: Annotated[int, FromParent],
    ):
        names = [update.name for update in updates]
        if len(set(names)) < len(names):
            raise UserError(
                f"Trainer updates ({', '.join(names)}) must each come once."
            )
        self.log_every = log_every
        self.eval_every = eval_every
        self.eval_batches = eval_batches
        self.goal = goal
        self.sample_tokens = sample_tokens
        self.guard = guard
        self.model = model
        self.sharding = sharding
        self._gradients = gradients
        self._placement = placement
        self._updates = updates
        self._loss = loss
        self._optimizer = optimizer
        self._seed = seed

    @staticmethod
    def check_config(node):
        if node.log_every < 1:
            yield f"Trainer log_every ({node.log_every}) must be at least 1."
        for field in ("eval_every", "eval_batches", "sample_tokens"):
            if getattr(node, field) < 0:
                yield f"Trainer {field} ({getattr(node, field)}) must not be negative."
        if node.goal is not None and not node.eval_batches:
            yield "Trainer goal needs evaluations; eval_batches (0) must be positive."

    def init(self) -> State:
        """Returns the state before the first step, with fresh weights."""
        params_key = jax.random.fold_in(jax.random.key(self._seed), path_hash("params"))
        return self.start_from(self.model.init(params_key))

    def start_from(self, variables: Mapping[str, Any]) -> State:
        """Returns the state before the first step, with these weights."""
        params = variables["params"]
        return {
            "step": jnp.zeros((), jnp.int32),
            "guard": self.guard.init(),
            "params": params,
            "param_norm": observed.norm(params, self.model.parameters()),
            "state": variables["state"],
            "optimizer": self._optimizer.init(params),
            "updates": {each.name: each.init(params) for each in self._updates},
        }

    def step(self, state: State, batch: Batch) -> tuple[State, Metrics]:
        """Forward, loss, gradients, update: the whole of training.

        A step that the guard refuses changes nothing but the counts.
        """
        step, parameters = state["step"], self.model.parameters()
        weights = self.weights(batch)
        grads, (sums, layer_state, sinks) = self.gradients(state, batch)
        grad_norms = observed.norms("grad_norm", grads, parameters)
        loss = total(sums, weights)
        grad_norm, param_norm = grad_norms["grad_norm"], state["param_norm"]
        reach = self._optimizer.reach(step, grad_norm, param_norm)
        accepted, guard = self.guard(
            state["guard"], Proposal(loss, grad_norm, param_norm, reach)
        )

        params, optimizer = self._optimizer.update(
            grads, state["optimizer"], state["params"], step, accepted
        )
        layer_state = jax.tree.map(
            lambda new, old: jnp.where(accepted, new, old), layer_state, state["state"]
        )
        variables, memories = updated(
            self._updates,
            {"params": params, "state": layer_state},
            state["updates"],
            Step(sinks, parameters, accepted),
        )
        kept = {**variables, "optimizer": optimizer, "updates": memories}
        param_norms = observed.norms("param_norm", kept["params"], parameters)
        metrics = {
            "loss": loss,
            **{name: Term(sums[name], weights[name]).mean for name in sums},
            "learning_rate": self._optimizer.learning_rate(step),
            **grad_norms,
            **param_norms,
            **observed.packing(batch),
            **observed.of_sinks(sinks),
            **self.guard.metrics(guard),
        }
        kept["param_norm"] = param_norms["param_norm"]
        return {"step": step + 1, "guard": guard, **kept}, metrics

    def gradients(self, state: State, batch: Batch) -> tuple[Any, Parts]:
        """Returns the gradients of the objective, and what its forward pass gave.

        What terms are divided by comes from the whole batch, so it does not matter in
        how many parts the batch is taken.
        """
        seed_key = jax.random.fold_in(jax.random.key(self._seed), path_hash("steps"))
        key = jax.random.fold_in(seed_key, state["step"])
        rows = {**batch, "rows": jnp.arange(batch["tokens"].shape[0])}
        whole = on_replicas(
            self._gradients_of_rows,
            self.sharding,
            self._placement.cuts(self.model.parameters(), self.sharding),
            States(self.model.state()),
        )
        weights = self.guard.scaled(state["guard"], self.weights(batch))
        grads, parts = whole(state["params"], state["state"], rows, weights, key)
        return self.guard.unscaled(state["guard"], grads), parts

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        """Returns what each term of the objective is divided by."""
        return self._loss.weights(batch, self.model.network.later_tokens)

    def _gradients_of_rows(
        self, sharding, params, layer_state, rows, weights, key
    ) -> tuple[Any, Parts]:
        """Returns what rows of the batch add to the gradients of the objective."""
        model = self.model.on(self.model.sharding and sharding)

        def objective(params, layer_state, rows):
            variables = {"params": params, "state": layer_state}
            output = _forward(model, variables, rows, key=key, rows=rows["rows"])
            sums = self._loss.sums(output, rows, sharding.everywhere)
            return total(sums, weights), Parts(sums, output.state, output.sinks)

        return self._gradients(
            objective, params, layer_state, rows, sharding, States(model.state())
        )

    def evaluate(
        self, variables: Mapping[str, Any], batch: Batch
    ) -> tuple[dict[str, Term], dict[str, Any]]:
        """Returns the loss terms of one batch, without dropout, and its sinks."""
        output = _forward(self.model, variables, batch)
        return self._loss(output, batch), output.sinks

    def evaluated(self, state: State) -> dict[str, Any]:
        """Returns the variables to evaluate, sample and export: not always those that
        are trained. Of several averages the last counts."""
        state = on_device(state)
        params = state["params"]
        if self._optimizer.averages:
            params = self._optimizer.evaluated(params, state["optimizer"])
        for update in self._updates:
            if update.averages:
                params = update.evaluated(params, state["updates"][update.name])
        return {"params": params, "state": state["state"]}

    @property
    def evaluated_from(self) -> tuple[str, ...]:
        """Names of the parts of the state that `evaluated` looks at."""
        averages = {
            "optimizer": self._optimizer.averages,
            "updates": any(each.averages for each in self._updates),
        }
        return ("params", "state", *(name for name, keeps in averages.items() if keeps))

    def state_shardings(self) -> State:
        """Returns where each leaf of the state lies on the mesh.

        Raises:
          UserError: If the mesh cannot cut a parameter as the rules say.
        """
        whole, parameters = self.sharding.named(()), self.model.parameters()
        params = self._placement.of_params(parameters, self.sharding)
        moments = self._placement.of_moments(parameters, self.sharding)
        abstract = jax.eval_shape(self.init)
        return {
            "step": whole,
            "guard": jax.tree.map(lambda _: whole, abstract["guard"]),
            "params": params,
            "param_norm": whole,
            "state": self._placement.of_state(self.model.state(), self.sharding),
            "optimizer": self._optimizer.shardings(abstract["params"], moments, whole),
            "updates": {
                each.name: each.shardings(moments, whole) for each in self._updates
            },
        }


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
