"""Llama 2 (Touvron et al. 2023, https://arxiv.org/abs/2307.09288).

Widths are those of the `config.json` that Meta publishes with each checkpoint on
Hugging Face (meta-llama/Llama-2-7b-hf, -13b-hf, -70b-hf).
"""

from collections.abc import Mapping
from typing import Any

import fiddle as fdl

from fdl_configs import layers
from fdl_configs import rope as ropes
from fdl_configs.hf_parts import (
    activation_from_hf,
    activation_to_hf,
    is_tied,
    layers_of,
)
from maxfdl.ops.activation import Activation


def llama(
    *,
    features: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    mlp: int,
    vocab_size: int,
    norm_epsilon: float = 1e-5,
    rope: fdl.Config | None = None,
    tied: bool = False,
    activation: Activation = "silu",
    attention_bias: bool = False,
    mlp_bias: bool = False,
) -> fdl.Partial:
    """A pre-norm decoder with RoPE, RMSNorm and SwiGLU."""
    gated_mlp = layers.gated_mlp(mlp, activation)
    if mlp_bias:
        for name in ("gate", "up", "down"):
            setattr(gated_mlp, name, layers.linear(use_bias=True))
    layer = layers.pre_norm_layer(
        norm=layers.rms_norm(norm_epsilon),
        attention=layers.attention(
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            rope=rope or layers.rope(10_000.0),
            bias=attention_bias,
            out_bias=attention_bias,
        ),
        mlp=gated_mlp,
    )
    return layers.transformer(
        embedding=layers.embedding(),
        decoder=layers.decoder([layer] * num_layers),
        final_norm=layers.rms_norm(norm_epsilon),
        head=layers.tied_head() if tied else layers.head(),
        features=features,
        vocab_size=vocab_size,
    )


def llama2_7b() -> fdl.Partial:
    """6,738,415,616 parameters."""
    return llama(
        features=4096,  # hidden_size
        num_layers=32,  # num_hidden_layers
        num_heads=32,  # num_attention_heads
        num_kv_heads=32,  # num_key_value_heads
        head_dim=128,  # hidden_size / num_attention_heads
        mlp=11008,  # intermediate_size
        vocab_size=32000,  # vocab_size
    )


def llama2_13b() -> fdl.Partial:
    """13,015,864,320 parameters."""
    return llama(
        features=5120,  # hidden_size
        num_layers=40,  # num_hidden_layers
        num_heads=40,  # num_attention_heads
        num_kv_heads=40,  # num_key_value_heads
        head_dim=128,  # hidden_size / num_attention_heads
        mlp=13824,  # intermediate_size
        vocab_size=32000,  # vocab_size
    )


def llama2_70b() -> fdl.Partial:
    """68,976,648,192 parameters."""
    return llama(
        features=8192,  # hidden_size
        num_layers=80,  # num_hidden_layers
        num_heads=64,  # num_attention_heads
        num_kv_heads=8,  # num_key_value_heads
        head_dim=128,  # hidden_size / num_attention_heads
        mlp=28672,  # intermediate_size
        vocab_size=32000,  # vocab_size
    )


def from_hf(config: Mapping[str, Any]) -> fdl.Partial:
    """Returns the graph of a normalised config.json."""
    return llama(
        features=config["hidden_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        num_kv_heads=config["num_key_value_heads"],
        head_dim=config["head_dim"],
        mlp=config["intermediate_size"],
        vocab_size=config["vocab_size"],
        norm_epsilon=config["rms_norm_eps"],
        rope=ropes.from_hf(
            config["rope_parameters"], config["max_position_embeddings"]
        ),
        tied=config["tie_word_embeddings"],
        activation=activation_from_hf(config["hidden_act"]),
        attention_bias=config["attention_bias"],
        mlp_bias=config["mlp_bias"],
    )


def to_hf(model: fdl.Partial) -> dict[str, Any]:
    """Returns the config.json that `from_hf` reads as `model`, if it is a Llama."""
    all_layers = layers_of(model)
    layer = all_layers[0]
    attention = layer.attention
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": model.features,
        "num_hidden_layers": len(all_layers),
        "num_attention_heads": attention.num_heads,
        "num_key_value_heads": attention.num_kv_heads,
        "head_dim": attention.head_dim,
        "intermediate_size": layer.mlp.hidden,
        "vocab_size": model.vocab_size,
        "rms_norm_eps": model.final_norm.epsilon,
        "rope_parameters": ropes.to_hf(attention.rope),
        "tie_word_embeddings": is_tied(model),
        "hidden_act": activation_to_hf(layer.mlp.glu.activation),
        "attention_bias": attention.query.use_bias,
        "mlp_bias": layer.mlp.up.use_bias,
    }
