"""Mistral (Jiang et al. 2023, https://arxiv.org/abs/2310.06825).

Numbers are those of the config.json of mistralai/Mistral-7B-v0.1, -v0.3 and
Mistral-Nemo-Base-2407 on Hugging Face.
"""

from collections.abc import Mapping
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
    window_of,
)
from maxfdl.ops.activation import Activation


def mistral(
    *,
    features: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    mlp: int,
    vocab_size: int,
    window: int | None,
    rope: fdl.Config,
    norm_epsilon: float = 1e-5,
    tied: bool = False,
    activation: Activation = "silu",
) -> fdl.Partial:
    """Llama whose layers all see a window of tokens, or everything with None."""
    layer = layers.pre_norm_layer(
        norm=layers.rms_norm(norm_epsilon),
        attention=layers.attention(
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            rope=rope,
            mask=layers.causal_within(window),
        ),
        mlp=layers.gated_mlp(mlp, activation),
    )
    return layers.transformer(
        embedding=layers.embedding(),
        decoder=layers.decoder([layer] * num_layers),
        final_norm=layers.rms_norm(norm_epsilon),
        head=layers.tied_head() if tied else layers.head(),
        features=features,
        vocab_size=vocab_size,
    )


def mistral_7b() -> fdl.Partial:
    """7,241,732,096 parameters: v0.1."""
    return mistral(
        features=4096,  # hidden_size
        num_layers=32,  # num_hidden_layers
        num_heads=32,  # num_attention_heads
        num_kv_heads=8,  # num_key_value_heads
        head_dim=128,  # hidden_size / num_attention_heads
        mlp=14336,  # intermediate_size
        vocab_size=32000,  # vocab_size
        window=4096,  # sliding_window
        rope=layers.rope(10_000.0),  # rope_theta
    )


def mistral_7b_v0_3() -> fdl.Partial:
    """7,248,023,552 parameters."""
    return mistral(
        features=4096,  # hidden_size
        num_layers=32,  # num_hidden_layers
        num_heads=32,  # num_attention_heads
        num_kv_heads=8,  # num_key_value_heads
        head_dim=128,  # hidden_size / num_attention_heads
        mlp=14336,  # intermediate_size
        vocab_size=32768,  # vocab_size
        window=None,  # sliding_window
        rope=layers.rope(1_000_000.0),  # rope_theta
    )


def mistral_nemo_12b() -> fdl.Partial:
    """12,247,782,400 parameters."""
    return mistral(
        features=5120,  # hidden_size
        num_layers=40,  # num_hidden_layers
        num_heads=32,  # num_attention_heads
        num_kv_heads=8,  # num_key_value_heads
        head_dim=128,  # head_dim
        mlp=14336,  # intermediate_size
        vocab_size=131072,  # vocab_size
        window=None,  # sliding_window
        rope=layers.rope(1_000_000.0),  # rope_theta
    )


def from_hf(config: Mapping[str, Any]) -> fdl.Partial:
    """Returns the graph of a normalised config.json."""
    return mistral(
        **widths_from_hf(config),
        num_layers=config["num_hidden_layers"],
        window=config["sliding_window"],
        rope=ropes.from_hf(
            config["rope_parameters"], config["max_position_embeddings"]
        ),
        norm_epsilon=config["rms_norm_eps"],
        activation=activation_from_hf(config["hidden_act"]),
    )


def to_hf(model: fdl.Partial) -> dict[str, Any]:
    """Returns the config.json that `from_hf` reads as `model`, if it is a Mistral."""
    layer = layers_of(model)[0]
    return {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        **widths_to_hf(model),
        "sliding_window": window_of(layer),
        "rope_parameters": ropes.to_hf(layer.attention.rope),
        "rms_norm_eps": model.final_norm.epsilon,
        "hidden_act": activation_to_hf(layer.mlp.glu.activation),
    }
