"""OLMo 3 (Team OLMo 2025, https://arxiv.org/abs/2512.13961).

Numbers are those of the config.json of allenai/Olmo-3-1025-7B and -1125-32B on Hugging
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
    ropes_to_hf,
    widths_from_hf,
    widths_to_hf,
    windows_from_hf,
    windows_to_hf,
)
from maxfdl.ops.activation import Activation
from maxfdl.ops.rope import YarnRope, yarn_magnitude
from maxfdl.tensors.hugging_face.config import rope_of


def olmo3(
    *,
    features: int,
    windows: Sequence[int | None],
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    mlp: int,
    vocab_size: int,
    rope: fdl.Config,
    local_rope: fdl.Config | None = None,
    norm_epsilon: float = 1e-6,
    tied: bool = False,
    activation: Activation = "silu",
    attention_bias: bool = False,
) -> fdl.Partial:
    """OLMo 2 with windows and rotations by kind of layer.

    `windows` has the window of each layer, None where it sees everything; layers with
    a window turn by `local_rope`.
    """
    local_rope = local_rope or layers.rope(500_000.0)

    @functools.cache
    def layer(window: int | None) -> fdl.Partial:
        heads_norm = layers.across_heads(layers.rms_norm(norm_epsilon))
        return layers.post_norm_layer(
            norm=layers.rms_norm(norm_epsilon),
            attention=layers.attention(
                num_heads=num_heads,
                num_kv_heads=num_kv_heads,
                head_dim=head_dim,
                rope=rope if window is None else local_rope,
                mask=layers.causal_within(window),
                bias=attention_bias,
                out_bias=attention_bias,
                query_norm=heads_norm,
                key_norm=heads_norm,
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


def olmo3_7b() -> fdl.Partial:
    """7,298,011,136 parameters."""
    return olmo3(
        features=4096,  # hidden_size
        # sliding_window, layer_types
        windows=layers.windows(4096, full_every=4, num_layers=32),
        num_heads=32,  # num_attention_heads
        num_kv_heads=32,  # num_key_value_heads
        head_dim=128,  # hidden_size / num_attention_heads
        mlp=11008,  # intermediate_size
        vocab_size=100278,  # vocab_size
        rope=_stretched(),
    )


def olmo3_32b() -> fdl.Partial:
    """32,233,522,176 parameters."""
    return olmo3(
        features=5120,  # hidden_size
        # sliding_window, layer_types
        windows=layers.windows(4096, full_every=4, num_layers=64),
        num_heads=40,  # num_attention_heads
        num_kv_heads=8,  # num_key_value_heads
        head_dim=128,  # hidden_size / num_attention_heads
        mlp=27648,  # intermediate_size
        vocab_size=100278,  # vocab_size
        rope=_stretched(),
    )


def _stretched() -> fdl.Config:
    """The rotation of rope_theta and rope_scaling, on the layers without a window."""
    return fdl.Config(
        YarnRope,
        theta=500_000.0,
        factor=8.0,
        original_length=8192,
        attention_factor=yarn_magnitude(8.0),
    )


def from_hf(config: Mapping[str, Any]) -> fdl.Partial:
    """Returns the graph of a normalised config.json."""
    length = config["max_position_embeddings"]
    return olmo3(
        **widths_from_hf(config),
        windows=windows_from_hf(config),
        rope=ropes.from_hf(rope_of(config, "full_attention"), length),
        local_rope=ropes.from_hf(rope_of(config, "sliding_attention"), length),
        norm_epsilon=config["rms_norm_eps"],
        activation=activation_from_hf(config["hidden_act"]),
        attention_bias=config["attention_bias"],
    )


def to_hf(model: fdl.Partial) -> dict[str, Any]:
    """Returns the config.json that `from_hf` reads as `model`, if it is an OLMo 3."""
    layer = layers_of(model)[0]
    return {
        "architectures": ["Olmo3ForCausalLM"],
        "model_type": "olmo3",
        **widths_to_hf(model),
        **windows_to_hf(model),
        "rope_parameters": ropes_to_hf(model),
        "rms_norm_eps": model.final_norm.epsilon,
        "hidden_act": activation_to_hf(layer.mlp.glu.activation),
        "attention_bias": layer.attention.query.use_bias,
    }
