"""A Llama 2 too small to learn much: a whole run in seconds, for tests."""

import fiddle as fdl

from fdl_configs import data, optimizers
from fdl_configs.models.llama import llama
from fdl_configs.runs import pretrain
from maxfdl.experiment import Experiment


def experiment() -> fdl.Config[Experiment]:
    """Trains 20 steps on Python's own sources, logs every one and saves the last."""
    config = pretrain(
        name="llama2_smoke",
        model=llama(
            features=32,
            num_layers=2,
            num_heads=4,
            num_kv_heads=2,
            head_dim=8,
            mlp=64,
            vocab_size=320,  # 256 bytes and 3 marks, up to a multiple of 64
        ),
        data=data.python_source(),
        optimizer=optimizers.adamw(peak=1e-2, warmup_steps=4),
        steps=20,
        batch_size=8,
        sequence_length=64,
    )
    config.trainer.log_every = 1
    config.trainer.eval_batches = 2
    return config
