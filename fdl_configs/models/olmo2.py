"""OLMo 2 (Team OLMo 2025, https://arxiv.org/abs/2501.00656).

Numbers are those of the config.json of allenai/OLMo-2-0425-1B, -1124-7B, -1124-13B and
-0325-32B on Hugging Face.
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
)
from maxfdl.ops.activation import Activation


def olmo2(
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
    tied: bool = False,
    activation: Activation = "silu",
    attention_bias: bool = False,
) -> fdl.Partial:
    """A post-norm decoder; queries are normed over all heads, and keys."""
    heads_norm = layers.across_heads(layers.rms_norm(norm_epsilon))
    layer = layers.post_norm_layer(
        norm=layers.rms_norm(norm_epsilon),
        attention=layers.attention(
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            rope=rope or layers.rope(500_000.0),
            bias=attention_bias,
            out_bias=attention_bias,
            query_norm=heads_norm,
            key_norm=heads_norm,
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


def olmo2_1b() -> fdl.Partial:
    """1,484,916,736 parameters."""
    return olmo2(
        features=2048,  # hidden_size
        num_layers=16,  # num_hidden_layers
        num_heads=16,  # num_attention_heads
        num_kv_heads=16,  # num_key_value_heads
        head_dim=128,  # hidden_size / num_attention_heads
        mlp=8192,  # intermediate_size
        vocab_size=100352,  # vocab_size
    )


def olmo2_7b() -> fdl.Partial:
    """7,298,617,344 parameters."""
    return olmo2(
        features=4096,  # hidden_size
        num_layers=32,  # num_hidden_layers
        num_heads=32,  # num_attention_heads
        num_kv_heads=32,  # num_key_value_heads
        head_dim=128,  # hidden_size / num_attention_heads
        mlp=11008,  # intermediate_size
        vocab_size=100352,  # vocab_size
    )


def olmo2_13b() -> fdl.Partial:
    """13,716,198,400 parameters."""
    return olmo2(
        features=5120,  # hidden_size
        num_layers=40,  # num_hidden_layers
        num_heads=40,  # num_attention_heads
        num_kv_heads=40,  # num_key_value_heads
        head_dim=128,  # hidden_size / num_attention_heads
        mlp=13824,  # intermediate_size
        vocab_size=100352,  # vocab_size
    )


def olmo2_32b() -> fdl.Partial:
    """32,234,279,936 parameters."""
    return olmo2(
        features=5120,  # hidden_size
        num_layers=64,  # num_hidden_layers
        num_heads=40,  # num_attention_heads
        num_kv_heads=8,  # num_key_value_heads
        head_dim=128,  # hidden_size / num_attention_heads
        mlp=27648,  # intermediate_size
        vocab_size=100352,  # vocab_size
    )


def from_hf(config: Mapping[str, Any]) -> fdl.Partial:
    """Returns the graph of a normalised config.json."""
    return olmo2(
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
    """Returns the config.json that `from_hf` reads as `model`, if it is an OLMo 2."""
    layer = layers_of(model)[0]
    return {
        "architectures": ["Olmo2ForCausalLM"],
        "model_type": "olmo2",
        **widths_to_hf(model),
        "rms_norm_eps": model.final_norm.epsilon,
        "rope_parameters": ropes.to_hf(layer.attention.rope),
        "hidden_act": activation_to_hf(layer.mlp.glu.activation),
        "attention_bias": layer.attention.query.use_bias,
    }
