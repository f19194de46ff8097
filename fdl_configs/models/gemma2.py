"""Gemma 2 (Gemma Team 2024, https://arxiv.org/abs/2408.00118).

Numbers are those of the config.json of google/gemma-2-2b, -9b and -27b on Hugging
Face.
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
    only_causal,
    scale_to_hf,
    widths_from_hf,
    widths_to_hf,
    windows_from_hf,
    windows_to_hf,
)
from maxfdl.ops.activation import Activation


def gemma2(
    *,
    features: int,
    windows: Sequence[int | None],
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    mlp: int,
    vocab_size: int,
    query_scale: float,
    score_cap: float | None = 50.0,
    logit_cap: float | None = 30.0,
    norm_epsilon: float = 1e-6,
    rope: fdl.Config | None = None,
    tied: bool = True,
    activation: Activation = "gelu_tanh",
    attention_bias: bool = False,
) -> fdl.Partial:
    """Gemma with norms on both sides of a branch, windows and soft caps.

    `windows` has the window of each layer, None where it sees everything.
    """
    rope = rope or layers.rope(10_000.0)

    @functools.cache
    def layer(window: int | None) -> fdl.Partial:
        return layers.sandwich_layer(
            norm=layers.zero_centred_rms_norm(norm_epsilon),
            attention=layers.attention(
                num_heads=num_heads,
                num_kv_heads=num_kv_heads,
                head_dim=head_dim,
                rope=rope,
                mask=layers.causal_within(window),
                scale=query_scale,
                soft_cap=score_cap,
                bias=attention_bias,
                out_bias=attention_bias,
            ),
            mlp=layers.gated_mlp(mlp, activation),
        )

    head = layers.tied_head if tied else layers.head
    return layers.transformer(
        embedding=layers.scaled_embedding(),
        decoder=layers.decoder([layer(window) for window in windows]),
        final_norm=layers.zero_centred_rms_norm(norm_epsilon),
        head=head(soft_cap=logit_cap),
        features=features,
        vocab_size=vocab_size,
    )


def gemma2_2b() -> fdl.Partial:
    """2,614,341,888 parameters."""
    return gemma2(
        features=2304,  # hidden_size
        windows=[4096, None] * 13,  # sliding_window, num_hidden_layers
        num_heads=8,  # num_attention_heads
        num_kv_heads=4,  # num_key_value_heads
        head_dim=256,  # head_dim
        mlp=9216,  # intermediate_size
        vocab_size=256000,  # vocab_size
        query_scale=256**-0.5,  # query_pre_attn_scalar
    )


def gemma2_9b() -> fdl.Partial:
    """9,241,705,984 parameters."""
    return gemma2(
        features=3584,  # hidden_size
        windows=[4096, None] * 21,  # sliding_window, num_hidden_layers
        num_heads=16,  # num_attention_heads
        num_kv_heads=8,  # num_key_value_heads
        head_dim=256,  # head_dim
        mlp=14336,  # intermediate_size
        vocab_size=256000,  # vocab_size
        query_scale=256**-0.5,  # query_pre_attn_scalar
    )


def gemma2_27b() -> fdl.Partial:
    """27,227,128,320 parameters."""
    return gemma2(
        features=4608,  # hidden_size
        windows=[4096, None] * 23,  # sliding_window, num_hidden_layers
        num_heads=32,  # num_attention_heads
        num_kv_heads=16,  # num_key_value_heads
        head_dim=128,  # head_dim
        mlp=36864,  # intermediate_size
        vocab_size=256000,  # vocab_size
        query_scale=144**-0.5,  # query_pre_attn_scalar
    )


def from_hf(config: Mapping[str, Any]) -> fdl.Partial:
    """Returns the graph of a normalised config.json."""
    only_causal(config)
    return gemma2(
        **widths_from_hf(config),
        windows=windows_from_hf(config),
        query_scale=config["query_pre_attn_scalar"] ** -0.5,
        score_cap=config["attn_logit_softcapping"],
        logit_cap=config["final_logit_softcapping"],
        norm_epsilon=config["rms_norm_eps"],
        rope=ropes.from_hf(
            config["rope_parameters"], config["max_position_embeddings"]
        ),
        activation=activation_from_hf(config["hidden_activation"]),
        attention_bias=config["attention_bias"],
    )


def to_hf(model: fdl.Partial) -> dict[str, Any]:
    """Returns the config.json that `from_hf` reads as `model`, if it is a Gemma 2."""
    layer = layers_of(model)[0]
    attention = layer.attention
    return {
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        **widths_to_hf(model),
        **windows_to_hf(model),
        "query_pre_attn_scalar": scale_to_hf(attention.attention.scale),
        "attn_logit_softcapping": attention.attention.soft_cap,
        "final_logit_softcapping": model.head.soft_cap,
        "rms_norm_eps": model.final_norm.epsilon,
        "rope_parameters": ropes.to_hf(attention.rope),
        "hidden_activation": activation_to_hf(layer.mlp.glu.activation),
        "attention_bias": attention.query.use_bias,
    }
