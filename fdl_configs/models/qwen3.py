"""Qwen 3, dense (Yang et al. 2025, https://arxiv.org/abs/2505.09388).

Numbers are those of the config.json of Qwen/Qwen3-0.6B to -32B on Hugging Face.
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


def qwen3(
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
    attention_bias: bool = False,
) -> fdl.Partial:
    """Llama with norms of queries and keys, head by head.

    `windows` has the window of each layer, None where it sees everything.
    """
    rope = rope or layers.rope(1_000_000.0)

    @functools.cache
    def layer(window: int | None) -> fdl.Partial:
        head_norm = layers.per_head(layers.rms_norm(norm_epsilon))
        return layers.pre_norm_layer(
            norm=layers.rms_norm(norm_epsilon),
            attention=layers.attention(
                num_heads=num_heads,
                num_kv_heads=num_kv_heads,
                head_dim=head_dim,
                rope=rope,
                mask=layers.causal_within(window),
                bias=attention_bias,
                out_bias=attention_bias,
                query_norm=head_norm,
                key_norm=head_norm,
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


def qwen3_0_6b() -> fdl.Partial:
    """596,049,920 parameters."""
    return qwen3(
        features=1024,  # hidden_size
        windows=[None] * 28,  # num_hidden_layers
        num_heads=16,  # num_attention_heads
        num_kv_heads=8,  # num_key_value_heads
        head_dim=128,  # head_dim
        mlp=3072,  # intermediate_size
        vocab_size=151936,  # vocab_size
        tied=True,  # tie_word_embeddings
    )


def qwen3_1_7b() -> fdl.Partial:
    """1,720,574,976 parameters."""
    return qwen3(
        features=2048,  # hidden_size
        windows=[None] * 28,  # num_hidden_layers
        num_heads=16,  # num_attention_heads
        num_kv_heads=8,  # num_key_value_heads
        head_dim=128,  # head_dim
        mlp=6144,  # intermediate_size
        vocab_size=151936,  # vocab_size
        tied=True,  # tie_word_embeddings
    )


def qwen3_4b() -> fdl.Partial:
    """4,022,468,096 parameters."""
    return qwen3(
        features=2560,  # hidden_size
        windows=[None] * 36,  # num_hidden_layers
        num_heads=32,  # num_attention_heads
        num_kv_heads=8,  # num_key_value_heads
        head_dim=128,  # head_dim
        mlp=9728,  # intermediate_size
        vocab_size=151936,  # vocab_size
        tied=True,  # tie_word_embeddings
    )


def qwen3_8b() -> fdl.Partial:
    """8,190,735,360 parameters."""
    return qwen3(
        features=4096,  # hidden_size
        windows=[None] * 36,  # num_hidden_layers
        num_heads=32,  # num_attention_heads
        num_kv_heads=8,  # num_key_value_heads
        head_dim=128,  # head_dim
        mlp=12288,  # intermediate_size
        vocab_size=151936,  # vocab_size
    )


def qwen3_14b() -> fdl.Partial:
    """14,768,307,200 parameters."""
    return qwen3(
        features=5120,  # hidden_size
        windows=[None] * 40,  # num_hidden_layers
        num_heads=40,  # num_attention_heads
        num_kv_heads=8,  # num_key_value_heads
        head_dim=128,  # head_dim
        mlp=17408,  # intermediate_size
        vocab_size=151936,  # vocab_size
    )


def qwen3_32b() -> fdl.Partial:
    """32,762,123,264 parameters."""
    return qwen3(
        features=5120,  # hidden_size
        windows=[None] * 64,  # num_hidden_layers
        num_heads=64,  # num_attention_heads
        num_kv_heads=8,  # num_key_value_heads
        head_dim=128,  # head_dim
        mlp=25600,  # intermediate_size
        vocab_size=151936,  # vocab_size
    )


def from_hf(config: Mapping[str, Any]) -> fdl.Partial:
    """Returns the graph of a normalised config.json."""
    return qwen3(
        **widths_from_hf(config),
        windows=windows_from_hf(config),
        norm_epsilon=config["rms_norm_eps"],
        rope=ropes.from_hf(
            config["rope_parameters"], config["max_position_embeddings"]
        ),
        activation=activation_from_hf(config["hidden_act"]),
        attention_bias=config["attention_bias"],
    )


def to_hf(model: fdl.Partial) -> dict[str, Any]:
    """Returns the config.json that `from_hf` reads as `model`, if it is a Qwen 3."""
    layer = layers_of(model)[0]
    windows = windows_to_hf(model)
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        **widths_to_hf(model),
        **windows,
        "use_sliding_window": windows["sliding_window"] is not None,
        "rms_norm_eps": model.final_norm.epsilon,
        "rope_parameters": ropes.to_hf(layer.attention.rope),
        "hidden_act": activation_to_hf(layer.mlp.glu.activation),
        "attention_bias": layer.attention.query.use_bias,
    }
