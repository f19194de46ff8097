"""Gemma (Gemma Team 2024, https://arxiv.org/abs/2403.08295).

Numbers are those of the config.json of google/gemma-2b and -7b on Hugging Face.
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
    only_causal,
    widths_from_hf,
    widths_to_hf,
)
from maxfdl.ops.activation import Activation


def gemma(
    *,
    features: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    mlp: int,
    vocab_size: int,
    norm_epsilon: float = 1e-6,
    rope: fdl.Config | None = None,
    tied: bool = True,
    activation: Activation = "gelu_tanh",
    attention_bias: bool = False,
) -> fdl.Partial:
    """A pre-norm decoder with scaled embeddings, zero-centred norms and GeGLU."""
    layer = layers.pre_norm_layer(
        norm=layers.zero_centred_rms_norm(norm_epsilon),
        attention=layers.attention(
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            rope=rope or layers.rope(10_000.0),
            bias=attention_bias,
            out_bias=attention_bias,
        ),
        mlp=layers.gated_mlp(mlp, activation),
    )
    return layers.transformer(
        embedding=layers.scaled_embedding(),
        decoder=layers.decoder([layer] * num_layers),
        final_norm=layers.zero_centred_rms_norm(norm_epsilon),
        head=layers.tied_head() if tied else layers.head(),
        features=features,
        vocab_size=vocab_size,
    )


def gemma_2b() -> fdl.Partial:
    """2,506,172,416 parameters."""
    return gemma(
        features=2048,  # hidden_size
        num_layers=18,  # num_hidden_layers
        num_heads=8,  # num_attention_heads
        num_kv_heads=1,  # num_key_value_heads
        head_dim=256,  # head_dim
        mlp=16384,  # intermediate_size
        vocab_size=256000,  # vocab_size
    )


def gemma_7b() -> fdl.Partial:
    """8,537,680,896 parameters."""
    return gemma(
        features=3072,  # hidden_size
        num_layers=28,  # num_hidden_layers
        num_heads=16,  # num_attention_heads
        num_kv_heads=16,  # num_key_value_heads
        head_dim=256,  # head_dim
        mlp=24576,  # intermediate_size
        vocab_size=256000,  # vocab_size
    )


def from_hf(config: Mapping[str, Any]) -> fdl.Partial:
    """Returns the graph of a normalised config.json."""
    only_causal(config)
    return gemma(
        **widths_from_hf(config),
        num_layers=config["num_hidden_layers"],
        norm_epsilon=config["rms_norm_eps"],
        rope=ropes.from_hf(
            config["rope_parameters"], config["max_position_embeddings"]
        ),
        activation=activation_from_hf(config["hidden_act"]),
        attention_bias=config["attention_bias"],
    )


def to_hf(model: fdl.Partial) -> dict[str, Any]:
    """Returns the config.json that `from_hf` reads as `model`, if it is a Gemma."""
    layer = layers_of(model)[0]
    return {
        "architectures": ["GemmaForCausalLM"],
        "model_type": "gemma",
        **widths_to_hf(model),
        "rms_norm_eps": model.final_norm.epsilon,
        "rope_parameters": ropes.to_hf(layer.attention.rope),
        "hidden_act": activation_to_hf(layer.mlp.glu.activation),
        "attention_bias": layer.attention.query.use_bias,
    }
