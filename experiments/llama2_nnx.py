"""Llama 2 in NNX: `tiny` learns on a laptop, the others are the published sizes."""

from typing import Literal

import fiddle as fdl

from fdl_configs import data, optimizers
from fdl_configs.models.llama import llama, llama2_7b, llama2_13b, llama2_70b
from fdl_configs.runs import pretrain
from maxfdl.experiment import Experiment

Size = Literal["tiny", "7b", "13b", "70b"]
_PUBLISHED = {"7b": llama2_7b, "13b": llama2_13b, "70b": llama2_70b}


def experiment(size: Size = "tiny") -> fdl.Config[Experiment]:
    """Trains on Python's own sources; `tiny` takes two minutes on two CPU cores."""
    if size == "tiny":
        return _tiny()
    # Sequence length, batch of 4M tokens, steps for 2T tokens, peak learning rate and
    # warm-up are those of Touvron et al. 2023, section 2.2 and table 1.
    return pretrain(
        name=f"llama2_{size}",
        model=_PUBLISHED[size](),
        data=data.python_source(),
        optimizer=optimizers.adamw(
            peak=1.5e-4 if size == "70b" else 3e-4, warmup_steps=2000
        ),
        steps=500_000,
        batch_size=1024,
        sequence_length=4096,
    )


def _tiny() -> fdl.Config[Experiment]:
    config = pretrain(
        name="llama2_tiny",
        model=llama(
            features=128,
            num_layers=4,
            num_heads=4,
            num_kv_heads=4,
            head_dim=32,
            mlp=384,
            vocab_size=320,  # 256 bytes and 3 marks, up to a multiple of 64
        ),
        data=data.python_source(),
        optimizer=optimizers.adamw(peak=4e-3, warmup_steps=20),
        steps=400,
        batch_size=8,
        sequence_length=256,
    )
    config.trainer.eval_every = 100
    config.trainer.sample_tokens = 128
    return config
