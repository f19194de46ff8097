"""Text that a model writes at the end of its run."""

from typing import Any

import jax
import numpy as np

from maxfdl.data import Data
from maxfdl.inference import generate
from maxfdl.run.progress import say
from maxfdl.train.program import Program
from maxfdl.train.trainer import State


def show_sample(program: Program, data: Data, state: State, seed: int) -> None:
    """Prints what the model writes after the beginning of a held-out row.

    Does nothing if the trainer asks for no tokens, or in one of several processes.
    """
    num_tokens = min(program.trainer.sample_tokens, program.sequence_length // 2)
    if not num_tokens or jax.process_count() > 1:
        return
    row: Any = data.evaluation(1)[0]["tokens"][0]
    prompt = row[: program.sequence_length - num_tokens]
    variables = jax.tree.map(
        lambda x: jax.device_put(x, x.sharding.with_memory_kind("device")),
        program.evaluated(state),
    )
    (drawn,) = generate(
        program.trainer.model,
        variables,
        [prompt],
        max_new_tokens=num_tokens,
        temperature=0.8,
        seed=seed,
    )
    decode = data.tokenizer.decode
    shown = decode(np.asarray(prompt)[-num_tokens:])
    say(f"--- held-out text ---\n{shown}\n--- the model goes on ---\n{decode(drawn)}")
