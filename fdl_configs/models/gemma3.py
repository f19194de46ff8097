"""Gemma 3, its text part (Gemma Team 2025, https://arxiv.org/abs/2503.19786).

Numbers are those of the config.json, and of its text_config with the defaults of
Hugging Face's class, of google/gemma-3-270m, -1b-pt, -4b-pt, -12b-pt and -27b-pt.
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
    ropes_to_hf,
    scale_to_hf,
    widths_from_hf,
    widths_to_hf,
    windows_from_hf,
    windows_to_hf,
)
from maxfdl.ops.activation import Activation
from maxfdl.ops.rope import LinearRope
from maxfdl.tensors.hugging_face.config import rope_of


def gemma3(
    *,
    features: int,
    windows: Sequence[int | None],
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    mlp: int,
    vocab_size: int,
    query_scale: float,
    rope: fdl.Config,
    local_rope: fdl.Config | None = None,
    logit_cap: float | None = None,
    norm_epsilon: float = 1e-6,
    tied: bool = True,
    activation: Activation = "gelu_tanh",
    attention_bias: bool = False,
) -> fdl.Partial:
    """Gemma with norms of queries and keys, and rotations by kind of layer.

    `windows` has the window of each layer, None where it sees everything; layers with
    a window turn by `local_rope`.
    """
    local_rope = local_rope or layers.rope(10_000.0)

    @functools.cache
    def layer(window: int | None) -> fdl.Partial:
        head_norm = layers.per_head(layers.zero_centred_rms_norm(norm_epsilon))
        return layers.sandwich_layer(
            norm=layers.zero_centred_rms_norm(norm_epsilon),
            attention=layers.attention(
                num_heads=num_heads,
                num_kv_heads=num_kv_heads,
                head_dim=head_dim,
                rope=rope if window is None else local_rope,
                mask=layers.causal_within(window),
                scale=query_scale,
                bias=attention_bias,
                out_bias=attention_bias,
                query_norm=head_norm,
                key_norm=head_norm,
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


def gemma3_270m() -> fdl.Partial:
    """268,098,176 parameters."""
    return gemma3(
        features=640,  # hidden_size
        # sliding_window, sliding_window_pattern, num_hidden_layers
        windows=layers.windows(512, full_every=6, num_layers=18),
        num_heads=4,  # num_attention_heads
        num_kv_heads=1,  # num_key_value_heads
        head_dim=256,  # head_dim
        mlp=2048,  # intermediate_size
        vocab_size=262144,  # vocab_size
        query_scale=256**-0.5,  # query_pre_attn_scalar
        rope=layers.rope(1_000_000.0),  # rope_theta
    )


def gemma3_1b() -> fdl.Partial:
    """999,885,952 parameters."""
    return gemma3(
        features=1152,  # hidden_size
        # sliding_window, sliding_window_pattern, num_hidden_layers
        windows=layers.windows(512, full_every=6, num_layers=26),
        num_heads=4,  # num_attention_heads
        num_kv_heads=1,  # num_key_value_heads
        head_dim=256,  # head_dim
        mlp=6912,  # intermediate_size
        vocab_size=262144,  # vocab_size
        query_scale=256**-0.5,  # query_pre_attn_scalar
        rope=layers.rope(1_000_000.0),  # rope_theta
    )


def gemma3_4b() -> fdl.Partial:
    """3,880,263,168 parameters."""
    return gemma3(
        features=2560,  # hidden_size
        # sliding_window, sliding_window_pattern, num_hidden_layers
        windows=layers.windows(1024, full_every=6, num_layers=34),
        num_heads=8,  # num_attention_heads
        num_kv_heads=4,  # num_key_value_heads
        head_dim=256,  # head_dim
        mlp=10240,  # intermediate_size
        vocab_size=262208,  # vocab_size
        query_scale=256**-0.5,  # query_pre_attn_scalar
        rope=_stretched(),
    )


def gemma3_12b() -> fdl.Partial:
    """11,766,034,176 parameters."""
    return gemma3(
        features=3840,  # hidden_size
        # sliding_window, sliding_window_pattern, num_hidden_layers
        windows=layers.windows(1024, full_every=6, num_layers=48),
        num_heads=16,  # num_attention_heads
        num_kv_heads=8,  # num_key_value_heads
        head_dim=256,  # head_dim
        mlp=15360,  # intermediate_size
        vocab_size=262208,  # vocab_size
        query_scale=256**-0.5,  # query_pre_attn_scalar
        rope=_stretched(),
    )


def gemma3_27b() -> fdl.Partial:
    """27,009,346,304 parameters."""
    return gemma3(
        features=5376,  # hidden_size
        # sliding_window, sliding_window_pattern, num_hidden_layers
        windows=layers.windows(1024, full_every=6, num_layers=62),
        num_heads=32,  # num_attention_heads
        num_kv_heads=16,  # num_key_value_heads
        head_dim=128,  # head_dim
        mlp=21504,  # intermediate_size
        vocab_size=262208,  # vocab_size
        query_scale=168**-0.5,  # query_pre_attn_scalar
        rope=_stretched(),
    )


def _stretched() -> fdl.Config:
    """The rotation of rope_theta and rope_scaling where a model was lengthened."""
    return fdl.Config(LinearRope, theta=1_000_000.0, factor=8.0)


def from_hf(config: Mapping[str, Any]) -> fdl.Partial:
    """Returns the graph of a normalised config.json."""
    only_causal(config)
    length = config["max_position_embeddings"]
    return gemma3(
        **widths_from_hf(config),
        windows=windows_from_hf(config),
        query_scale=config["query_pre_attn_scalar"] ** -0.5,
        rope=ropes.from_hf(rope_of(config, "full_attention"), length),
        local_rope=ropes.from_hf(rope_of(config, "sliding_attention"), length),
        # attn_logit_softcapping is in Hugging Face's config, and its layers ignore it.
        logit_cap=config["final_logit_softcapping"],
        norm_epsilon=config["rms_norm_eps"],
        activation=activation_from_hf(config["hidden_activation"]),
        attention_bias=config["attention_bias"],
    )


def to_hf(model: fdl.Partial) -> dict[str, Any]:
    """Returns the config.json that `from_hf` reads as `model`, if it is a Gemma 3."""
    layer = layers_of(model)[0]
    attention = layer.attention
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        **widths_to_hf(model),
        **windows_to_hf(model),
        "query_pre_attn_scalar": scale_to_hf(attention.attention.scale),
        "rope_parameters": ropes_to_hf(model),
        "final_logit_softcapping": model.head.soft_cap,
        "rms_norm_eps": model.final_norm.epsilon,
        "hidden_activation": activation_to_hf(layer.mlp.glu.activation),
        "attention_bias": attention.query.use_bias,
    }
