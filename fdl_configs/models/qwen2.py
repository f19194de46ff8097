"""Qwen 2 and 2.5 (Yang et al. 2024, arXiv:2407.10671 and 2412.15115).

Numbers are those of the config.json of the base models, Qwen/Qwen2-0.5B to -72B and
Qwen/Qwen2.5-0.5B to -72B on Hugging Face; use_sliding_window is false in all.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import fiddle as fdl

from fdl_configs import layers
from fdl_configs import rope as ropes
from fdl_configs.hf_parts import (
    activation_from_hf,
    activation_to_hf,
    layers_of,
    widths_from_hf,
    widths_to_hf,
    windows_from_hf,
    windows_to_hf,
)
from maxfdl.ops.activation import Activation


def qwen2(
    *,
    features: int,
    windows: Sequence[int | None],
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    mlp: int,
    vocab_size: int,
    norm_epsilon: float = 1e-6,
    rope: fdl.Config | None = None,
    tied: bool = False,
    activation: Activation = "silu",
) -> fdl.Partial:
    """Llama with biases on queries, keys and values.

    `windows` has the window of each layer, None where it sees everything.
    """
    rope = rope or layers.rope(1_000_000.0)

    @functools.cache
    def layer(window: int | None) -> fdl.Partial:
        return layers.pre_norm_layer(
            norm=layers.rms_norm(norm_epsilon),
            attention=layers.attention(
                num_heads=num_heads,
                num_kv_heads=num_kv_heads,
                head_dim=head_dim,
                rope=rope,
                mask=layers.causal_within(window),
                bias=True,
            ),
            mlp=layers.gated_mlp(mlp, activation),
        )

    return layers.transformer(
        embedding=layers.embedding(),
        decoder=layers.decoder([layer(window) for window in windows]),
        final_norm=layers.rms_norm(norm_epsilon),
        head=layers.tied_head() if tied else layers.head(),
        features=features,
        vocab_size=vocab_size,
    )


def qwen2_0_5b() -> fdl.Partial:
    """494,032,768 parameters."""
    return qwen2(
        features=896,  # hidden_size
        windows=[None] * 24,  # num_hidden_layers
        num_heads=14,  # num_attention_heads
        num_kv_heads=2,  # num_key_value_heads
        head_dim=64,  # hidden_size / num_attention_heads
        mlp=4864,  # intermediate_size
        vocab_size=151936,  # vocab_size
        tied=True,  # tie_word_embeddings
    )


def qwen2_1_5b() -> fdl.Partial:
    """1,543,714,304 parameters."""
    return qwen2(
        features=1536,  # hidden_size
        windows=[None] * 28,  # num_hidden_layers
        num_heads=12,  # num_attention_heads
        num_kv_heads=2,  # num_key_value_heads
        head_dim=128,  # hidden_size / num_attention_heads
        mlp=8960,  # intermediate_size
        vocab_size=151936,  # vocab_size
        tied=True,  # tie_word_embeddings
    )


def qwen2_7b() -> fdl.Partial:
    """7,615,616,512 parameters."""
    return qwen2(
        features=3584,  # hidden_size
        windows=[None] * 28,  # num_hidden_layers
        num_heads=28,  # num_attention_heads
        num_kv_heads=4,  # num_key_value_heads
        head_dim=128,  # hidden_size / num_attention_heads
        mlp=18944,  # intermediate_size
        vocab_size=152064,  # vocab_size
    )


def qwen2_72b() -> fdl.Partial:
    """72,706,203,648 parameters."""
    return qwen2(
        features=8192,  # hidden_size
        windows=[None] * 80,  # num_hidden_layers
        num_heads=64,  # num_attention_heads
        num_kv_heads=8,  # num_key_value_heads
        head_dim=128,  # hidden_size / num_attention_heads
        mlp=29568,  # intermediate_size
        vocab_size=152064,  # vocab_size
        norm_epsilon=1e-5,  # rms_norm_eps
    )


def qwen2_5_3b() -> fdl.Partial:
    """3,085,938,688 parameters."""
    return qwen2(
        features=2048,  # hidden_size
        windows=[None] * 36,  # num_hidden_layers
        num_heads=16,  # num_attention_heads
        num_kv_heads=2,  # num_key_value_heads
        head_dim=128,  # hidden_size / num_attention_heads
        mlp=11008,  # intermediate_size
        vocab_size=151936,  # vocab_size
        tied=True,  # tie_word_embeddings
    )


def qwen2_5_14b() -> fdl.Partial:
    """14,770,033,664 parameters."""
    return qwen2(
        features=5120,  # hidden_size
        windows=[None] * 48,  # num_hidden_layers
        num_heads=40,  # num_attention_heads
        num_kv_heads=8,  # num_key_value_heads
        head_dim=128,  # hidden_size / num_attention_heads
        mlp=13824,  # intermediate_size
        vocab_size=152064,  # vocab_size
        norm_epsilon=1e-5,  # rms_norm_eps
    )


def qwen2_5_32b() -> fdl.Partial:
    """32,763,876,352 parameters."""
    return qwen2(
        features=5120,  # hidden_size
        windows=[None] * 64,  # num_hidden_layers
        num_heads=40,  # num_attention_heads
        num_kv_heads=8,  # num_key_value_heads
        head_dim=128,  # hidden_size / num_attention_heads
        mlp=27648,  # intermediate_size
        vocab_size=152064,  # vocab_size
        norm_epsilon=1e-5,  # rms_norm_eps
    )


def qwen2_5_0_5b() -> fdl.Partial:
    """494,032,768 parameters, in the shape of Qwen 2's."""
    return qwen2_0_5b()


def qwen2_5_1_5b() -> fdl.Partial:
    """1,543,714,304 parameters, in the shape of Qwen 2's."""
    return qwen2_1_5b()


def qwen2_5_7b() -> fdl.Partial:
    """7,615,616,512 parameters, in the shape of Qwen 2's."""
    return qwen2_7b()


def qwen2_5_72b() -> fdl.Partial:
    """72,706,203,648 parameters, in the shape of Qwen 2's."""
    return qwen2_72b()


def from_hf(config: Mapping[str, Any]) -> fdl.Partial:
    """Returns the graph of a normalised config.json."""
    return qwen2(
        **widths_from_hf(config),
        windows=windows_from_hf(config),
        norm_epsilon=config["rms_norm_eps"],
        rope=ropes.from_hf(
            config["rope_parameters"], config["max_position_embeddings"]
        ),
        activation=activation_from_hf(config["hidden_act"]),
    )


def to_hf(model: fdl.Partial) -> dict[str, Any]:
    """Returns the config.json that `from_hf` reads as `model`, if it is a Qwen 2."""
    layer = layers_of(model)[0]
    windows = windows_to_hf(model)
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        **widths_to_hf(model),
        **windows,
        "use_sliding_window": windows["sliding_window"] is not None,
        "rms_norm_eps": model.final_norm.epsilon,
        "rope_parameters": ropes.to_hf(layer.attention.rope),
        "hidden_act": activation_to_hf(layer.mlp.glu.activation),
    }
