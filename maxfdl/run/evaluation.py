"""The loss on held-out text."""

import functools
from typing import Any

import jax
import numpy as np

from maxfdl.layers.sinks import merged
from maxfdl.train.observed import of_sinks
from maxfdl.train.program import Program
from maxfdl.train.trainer import State


class Evaluation:
    """Runs the loss over the same held-out batches each time.

    The program is compiled when it is first needed.
    """

    def __init__(self, program: Program, data: Any, steps: int):
        self._program = program
        self._data = data
        self._steps = steps

    def read_batches(self) -> None:
        """Reads what evaluations and the sample at the end of the run need.

        Raises:
          UserError: If that cannot be, for a run to end before its first step.
        """
        trainer = self._program.trainer
        if trainer.eval_batches:
            self._host_batches  # noqa: B018 (a cached property that raises)
        elif trainer.sample_tokens:
            self._data.evaluation(1)

    def due(self, step: int) -> bool:
        """Returns whether the trainer wants an evaluation after `step` steps."""
        trainer = self._program.trainer
        if trainer.eval_batches == 0:
            return False
        intervals = [trainer.eval_every, trainer.goal.every if trainer.goal else 0]
        at_interval = any(step % every == 0 for every in intervals if every > 0)
        return at_interval or step == self._steps

    def __call__(self, state: State) -> dict[str, float]:
        """Returns `eval_loss`, its terms, what layers left, and `eval_nats_per_byte`.

        The last divides cross-entropy by the bytes of text that the targets spell, so
        that it compares across tokenizers.
        """
        variables = self._program.evaluated(state)
        found = [
            jax.device_get(self._compiled(variables, batch)) for batch in self._batches
        ]
        terms, sinks = jax.tree.map(lambda *parts: np.stack(parts), *found)
        terms = jax.tree.map(lambda parts: np.sum(parts, dtype=np.float64), terms)
        means = {name: term.mean for name, term in terms.items()}
        metrics = {"loss": sum(means.values())} | means | of_sinks(merged(sinks))
        return {
            **{f"eval_{name}": float(value) for name, value in metrics.items()},
            "eval_nats_per_byte": terms["cross_entropy"].sum / max(self._num_bytes, 1),
        }

    @functools.cached_property
    def _compiled(self):
        return self._program.compile_evaluation()

    @functools.cached_property
    def _host_batches(self) -> list[dict[str, np.ndarray]]:
        return self._data.evaluation(self._program.trainer.eval_batches)

    @functools.cached_property
    def _batches(self) -> list[dict[str, jax.Array]]:
        return [self._program.place(batch) for batch in self._host_batches]

    @functools.cached_property
    def _num_bytes(self) -> int:
        """Bytes of text that the targets of all batches, of all processes, spell."""
        decode = self._data.tokenizer.decode
        size = self._program.batch_size
        rows = self._program.sharding.shares_of_rows().rows(size)
        of_rows = np.zeros(size, np.int32)
        for batch in self._host_batches:
            pairs = zip(batch["targets"], batch["weights"], strict=True)
            of_rows[rows] += [len(decode(t[w > 0]).encode()) for t, w in pairs]
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            # Several processes may have the same rows, which count once.
            of_rows = np.max(multihost_utils.process_allgather(of_rows), axis=0)
        return int(np.sum(of_rows))
