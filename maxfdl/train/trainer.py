"""One training step, and where its state lives.

State is a plain nested dict: `step` and `skipped` (int32), `params`, `state` (of the
layers) and `optimizer`.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax

from maxfdl.layers.parameter import map_parameters, path_hash
from maxfdl.markers import FromParent
from maxfdl.model import Model, Output
from maxfdl.optim.optimizer import Optimizer
from maxfdl.sharding.sharding import Sharding
from maxfdl.train.gradients import Accumulate, Parts, WholeBatch
from maxfdl.train.loss import Batch, NextTokenLoss, Term, total
from maxfdl.train.router import StateUpdate, sink_metrics

State = dict[str, Any]
Metrics = dict[str, jax.Array]


class Trainer:
    """Synchronous training: every device takes each step on its share of the batch.

    Args:
      log_every: Steps between lines of progress and of metrics.
      eval_every: Steps between evaluations; 0 evaluates at the end only.
      eval_batches: Held-out batches of one evaluation; 0 never evaluates.
      sample_tokens: Length of the continuation that is shown at the end; 0 for none.
      gradients: How those of a batch come about.
      state_updates: What a step does to the state of layers, besides what they do.
      model, loss, optimizer, sharding, seed: The parts, from the experiment.
    """

    def __init__(
        self,
        *,
        log_every: int = 10,
        eval_every: int = 0,
        eval_batches: int = 8,
        sample_tokens: int = 0,
        gradients: WholeBatch | Accumulate,
        state_updates: Sequence[StateUpdate] = (),
        model: Annotated[Model, FromParent],
        loss: Annotated[NextTokenLoss, FromParent],
        optimizer: Annotated[Optimizer, FromParent],
        sharding: Annotated[Sharding, FromParent],
        seed: Annotated[int, FromParent],
    ):
        self.log_every = log_every
        self.eval_every = eval_every
        self.eval_batches = eval_batches
        self.sample_tokens = sample_tokens
        self.model = model
        self.sharding = sharding
        self._gradients = gradients
        self._state_updates = state_updates
        self._loss = loss
        self._optimizer = optimizer
        self._seed = seed

    @staticmethod
    def check_config(node):
        if node.log_every < 1:
            yield f"Trainer log_every ({node.log_every}) must be at least 1."

    def init(self) -> State:
        """Returns the state before the first step, with fresh weights."""
        params_key = jax.random.fold_in(jax.random.key(self._seed), path_hash("params"))
        return self.start_from(self.model.init(params_key))

    def start_from(self, variables: Mapping[str, Any]) -> State:
        """Returns the state before the first step, with these weights."""
        return {
            "step": jnp.zeros((), jnp.int32),
            "skipped": jnp.zeros((), jnp.int32),
            "params": variables["params"],
            "state": variables["state"],
            "optimizer": self._optimizer.init(variables["params"]),
        }

    def step(self, state: State, batch: Batch) -> tuple[State, Metrics]:
        """Forward, loss, gradients, update: the whole of training.

        A step whose loss or gradients are not finite changes nothing but the counts.
        """
        step, weights = state["step"], self._loss.weights(batch)
        grads, (sums, layer_state, sinks) = self.gradients(state, batch)
        loss, grad_norm = total(sums, weights), optax.tree.norm(grads)
        params, optimizer = self._optimizer.update(
            grads, state["optimizer"], state["params"], step
        )
        for update in self._state_updates:
            layer_state = update(layer_state, sinks)

        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        new = {"params": params, "state": layer_state, "optimizer": optimizer}
        old = {name: state[name] for name in new}
        kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, old)
        skipped = state["skipped"] + jnp.where(finite, 0, 1)
        metrics = {
            "loss": loss,
            **{name: Term(sums[name], weights[name]).mean for name in sums},
            "grad_norm": grad_norm,
            "learning_rate": self._optimizer.learning_rate(step),
            "skipped": skipped,
            **sink_metrics(sinks),
        }
        return {"step": step + 1, "skipped": skipped, **kept}, metrics

    def gradients(self, state: State, batch: Batch) -> tuple[Any, Parts]:
        """Returns the gradients of the objective, and what its forward pass gave.

        What terms are divided by comes from the whole batch, so it does not matter in
        how many parts the batch is taken.
        """
        weights = self._loss.weights(batch)
        seed_key = jax.random.fold_in(jax.random.key(self._seed), path_hash("steps"))
        key = jax.random.fold_in(seed_key, state["step"])

        def objective(params, layer_state, rows, key):
            variables = {"params": params, "state": layer_state}
            output = self._forward(variables, rows, key)
            sums = self._loss.sums(output, rows)
            return total(sums, weights), Parts(sums, output.state, output.sinks)

        return self._gradients(
            objective, state["params"], state["state"], batch, key, self.sharding
        )

    def evaluate(self, state: State, batch: Batch) -> dict[str, Term]:
        """Returns the loss terms of one batch, without dropout."""
        return self._loss(self._forward(state, batch, key=None), batch)

    def _forward(self, variables: Mapping[str, Any], batch: Batch, key) -> Output:
        return self.model.apply(
            variables,
            batch["tokens"],
            segment_ids=batch["segment_ids"],
            positions=batch["positions"],
            key=key,
        )

    def state_shardings(self) -> State:
        """Returns where each leaf of the state lies on the mesh.

        Raises:
          UserError: If the mesh cannot cut a parameter as the rules say.
        """
        whole = self.sharding.named(())
        params = map_parameters(self._place, self.model.parameters())
        abstract = jax.eval_shape(self.init)
        return {
            "step": whole,
            "skipped": whole,
            "params": params,
            "state": jax.tree.map(lambda _: whole, abstract["state"]),
            "optimizer": self._optimizer.shardings(abstract["params"], params, whole),
        }

    def _place(self, path, parameter):
        self.sharding.check(path, parameter.full_shape, parameter.full_axes)
        return self.sharding.named(parameter.full_axes)
