"""A Llama on random tokens in the shape that speed is compared to MaxText in."""

from typing import Any

import fiddle as fdl

from fdl_configs import data, optimizers
from fdl_configs.models.llama import llama
from fdl_configs.models.mixtral import mixtral
from fdl_configs.runs import pretrain
from maxfdl.experiment import Experiment


def experiment(num_experts: int = 0) -> fdl.Config[Experiment]:
    """For `maxfdl.bench`: 60 million parameters, 2048 tokens a step, float32.

    With experts each is as wide as the dense layer, and a token goes to two of them.
    """
    sizes: dict[str, Any] = dict(
        features=512,
        num_layers=8,
        num_heads=8,
        num_kv_heads=8,
        head_dim=64,
        mlp=1536,
        vocab_size=32000,
    )
    config = pretrain(
        name="maxtext_shape",
        model=mixtral(num_experts=num_experts, experts_per_token=2, **sizes)
        if num_experts
        else llama(**sizes),
        data=data.synthetic(),
        optimizer=optimizers.adamw(peak=1e-3, warmup_steps=10),
        steps=100,
        batch_size=4,
        sequence_length=512,
    )
    config.checkpoint = None
    return config
