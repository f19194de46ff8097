"""Command R7B and Command A (Cohere 2025, https://arxiv.org/abs/2504.00698).

Numbers are those of the config.json of CohereLabs/c4ai-command-r7b-12-2024 and
c4ai-command-a-03-2025 on Hugging Face, which calls them Cohere 2.
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
from maxfdl.layers import nnx
from maxfdl.ops.activation import Activation
from maxfdl.ops.rope import Rope


def cohere2(
    *,
    features: int,
    windows: Sequence[int | None],
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    mlp: int,
    vocab_size: int,
    rope: fdl.Config,
    logit_scale: float,
    norm_epsilon: float = 1e-5,
    tied: bool = True,
    activation: Activation = "silu",
    attention_bias: bool = False,
) -> fdl.Partial:
    """A decoder whose branches stand side by side, with LayerNorms without bias.

    `windows` has the window of each layer; one with None sees everything and knows no
    positions.
    """

    @functools.cache
    def layer(window: int | None) -> fdl.Partial:
        return fdl.Partial(
            nnx.ParallelDecoderLayer,
            norm=layers.layer_norm(norm_epsilon, use_bias=False),
            attention=layers.attention(
                num_heads=num_heads,
                num_kv_heads=num_kv_heads,
                head_dim=head_dim,
                rope=None if window is None else rope,
                mask=layers.causal_within(window),
                bias=attention_bias,
                out_bias=attention_bias,
            ),
            mlp=layers.gated_mlp(mlp, activation),
            dropout=layers.dropout(),
        )

    head = layers.tied_head if tied else layers.head
    return layers.transformer(
        embedding=layers.embedding(),
        decoder=layers.decoder([layer(window) for window in windows]),
        final_norm=layers.layer_norm(norm_epsilon, use_bias=False),
        head=head(scale=logit_scale),
        features=features,
        vocab_size=vocab_size,
    )


def command_r7b() -> fdl.Partial:
    """8,028,033,024 parameters."""
    return cohere2(
        features=4096,  # hidden_size
        # sliding_window, sliding_window_pattern, num_hidden_layers
        windows=layers.windows(4096, full_every=4, num_layers=32),
        num_heads=32,  # num_attention_heads
        num_kv_heads=8,  # num_key_value_heads
        head_dim=128,  # hidden_size / num_attention_heads
        mlp=14336,  # intermediate_size
        vocab_size=256000,  # vocab_size
        rope=_rope(50_000.0),  # rope_theta
        logit_scale=0.25,  # logit_scale
    )


def command_a() -> fdl.Partial:
    """111,057,580,032 parameters."""
    return cohere2(
        features=12288,  # hidden_size
        # sliding_window, sliding_window_pattern, num_hidden_layers
        windows=layers.windows(4096, full_every=4, num_layers=64),
        num_heads=96,  # num_attention_heads
        num_kv_heads=8,  # num_key_value_heads
        head_dim=128,  # hidden_size / num_attention_heads
        mlp=36864,  # intermediate_size
        vocab_size=256000,  # vocab_size
        rope=_rope(50_000.0),  # rope_theta
        logit_scale=0.25,  # logit_scale
    )


def _rope(theta: float) -> fdl.Config:
    return fdl.Config(Rope, theta=theta, layout="pairs")


def from_hf(config: Mapping[str, Any]) -> fdl.Partial:
    """Returns the graph of a normalised config.json."""
    widths = widths_from_hf(config)
    # Hugging Face's class takes no head_dim.
    widths["head_dim"] = widths["features"] // widths["num_heads"]
    return cohere2(
        **widths,
        windows=windows_from_hf(config),
        rope=ropes.from_hf(
            config["rope_parameters"],
            config["max_position_embeddings"],
            layout="pairs",
        ),
        logit_scale=config["logit_scale"],
        norm_epsilon=config["layer_norm_eps"],
        activation=activation_from_hf(config["hidden_act"]),
        attention_bias=config["attention_bias"],
    )


def to_hf(model: fdl.Partial) -> dict[str, Any]:
    """Returns the config.json that `from_hf` reads as `model`, if it is a Cohere 2."""
    all_layers = layers_of(model)
    layer = all_layers[0]
    rotations = [each.attention.rope for each in all_layers]
    rope = next((each for each in rotations if each is not None), _rope(10_000.0))
    return {
        "architectures": ["Cohere2ForCausalLM"],
        "model_type": "cohere2",
        **widths_to_hf(model),
        **windows_to_hf(model),
        "rope_parameters": ropes.to_hf(rope),
        "logit_scale": model.head.scale,
        "layer_norm_eps": model.final_norm.epsilon,
        "hidden_act": activation_to_hf(layer.mlp.glu.activation),
        "attention_bias": layer.attention.query.use_bias,
    }
