"""Runs on random tokens that `maxfdl.bench --accelerator` measures."""

import fiddle as fdl

from fdl_configs import data, optimizers
from fdl_configs.models.llama import llama, llama3_2_1b, llama3_2_3b
from fdl_configs.runs import pretrain
from maxfdl.experiment import Experiment
from maxfdl.mutations import compute_dtype, vocab_tiling


def llama_1b(batch_size: int = 4) -> fdl.Config[Experiment]:
    """Llama 3.2 1B in bfloat16 on sequences of 4096, with float32 weights and AdamW.

    The loss is tiled: the logits of four sequences would take 8 GB.
    """
    config = _on_random_tokens(
        name="llama_1b",
        model=llama3_2_1b(),
        batch_size=batch_size,
        sequence_length=4096,
    )
    return vocab_tiling(compute_dtype(config), tokens_per_tile=1024)


def llama_3b(batch_size: int = 2) -> fdl.Config[Experiment]:
    """Llama 3.2 3B as `llama_1b`: weights, gradients and moments take 51 GB."""
    config = _on_random_tokens(
        name="llama_3b",
        model=llama3_2_3b(),
        batch_size=batch_size,
        sequence_length=4096,
    )
    return vocab_tiling(compute_dtype(config), tokens_per_tile=1024)


def deep() -> fdl.Config[Experiment]:
    """Equal layers and next to nothing else: 134 million weights in eight of them."""
    model = llama(
        features=1024,
        num_layers=8,
        num_heads=8,
        num_kv_heads=8,
        head_dim=128,
        mlp=4096,
        vocab_size=256,
    )
    return _on_random_tokens(
        name="deep", model=model, batch_size=8, sequence_length=1024
    )


def _on_random_tokens(
    *, name: str, model: fdl.Partial, batch_size: int, sequence_length: int
) -> fdl.Config[Experiment]:
    config = pretrain(
        name=name,
        model=model,
        data=data.synthetic(),
        optimizer=optimizers.adamw(peak=3e-4, warmup_steps=2),
        steps=100,
        batch_size=batch_size,
        sequence_length=sequence_length,
    )
    config.checkpoint = None
    return config
