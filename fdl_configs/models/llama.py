"""Llama 2 (Touvron et al. 2023, https://arxiv.org/abs/2307.09288), and its successors.

Llama 3 to 3.3 (Llama Team 2024, https://arxiv.org/abs/2407.21783), and SmolLM 2 (Allal
et al. 2025, https://arxiv.org/abs/2502.02737), which has the same layers.

Numbers are those of the config.json of meta-llama/Llama-2-7b-hf to -70b-hf,
Meta-Llama-3-8B and -70B, Llama-3.1-8B to -405B, Llama-3.2-1B and -3B,
Llama-3.3-70B-Instruct, and of HuggingFaceTB/SmolLM2-135M to -1.7B on Hugging Face.
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
from maxfdl.ops.rope import Llama3Rope


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
        mlp=layers.gated_mlp(mlp, activation, bias=mlp_bias),
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


def llama3_8b() -> fdl.Partial:
    """8,030,261,248 parameters."""
    return llama(
        features=4096,  # hidden_size
        num_layers=32,  # num_hidden_layers
        num_heads=32,  # num_attention_heads
        num_kv_heads=8,  # num_key_value_heads
        head_dim=128,  # hidden_size / num_attention_heads
        mlp=14336,  # intermediate_size
        vocab_size=128256,  # vocab_size
        rope=layers.rope(500_000.0),  # rope_theta
    )


def llama3_70b() -> fdl.Partial:
    """70,553,706,496 parameters."""
    return llama(
        features=8192,  # hidden_size
        num_layers=80,  # num_hidden_layers
        num_heads=64,  # num_attention_heads
        num_kv_heads=8,  # num_key_value_heads
        head_dim=128,  # hidden_size / num_attention_heads
        mlp=28672,  # intermediate_size
        vocab_size=128256,  # vocab_size
        rope=layers.rope(500_000.0),  # rope_theta
    )


def llama3_1_8b() -> fdl.Partial:
    """8,030,261,248 parameters."""
    return llama(
        features=4096,  # hidden_size
        num_layers=32,  # num_hidden_layers
        num_heads=32,  # num_attention_heads
        num_kv_heads=8,  # num_key_value_heads
        head_dim=128,  # hidden_size / num_attention_heads
        mlp=14336,  # intermediate_size
        vocab_size=128256,  # vocab_size
        rope=_stretched(8.0),  # rope_scaling.factor
    )


def llama3_1_70b() -> fdl.Partial:
    """70,553,706,496 parameters."""
    return llama(
        features=8192,  # hidden_size
        num_layers=80,  # num_hidden_layers
        num_heads=64,  # num_attention_heads
        num_kv_heads=8,  # num_key_value_heads
        head_dim=128,  # hidden_size / num_attention_heads
        mlp=28672,  # intermediate_size
        vocab_size=128256,  # vocab_size
        rope=_stretched(8.0),  # rope_scaling.factor
    )


def llama3_1_405b() -> fdl.Partial:
    """405,853,388,800 parameters."""
    return llama(
        features=16384,  # hidden_size
        num_layers=126,  # num_hidden_layers
        num_heads=128,  # num_attention_heads
        num_kv_heads=8,  # num_key_value_heads
        head_dim=128,  # hidden_size / num_attention_heads
        mlp=53248,  # intermediate_size
        vocab_size=128256,  # vocab_size
        rope=_stretched(8.0),  # rope_scaling.factor
    )


def llama3_2_1b() -> fdl.Partial:
    """1,235,814,400 parameters."""
    return llama(
        features=2048,  # hidden_size
        num_layers=16,  # num_hidden_layers
        num_heads=32,  # num_attention_heads
        num_kv_heads=8,  # num_key_value_heads
        head_dim=64,  # head_dim
        mlp=8192,  # intermediate_size
        vocab_size=128256,  # vocab_size
        rope=_stretched(32.0),  # rope_scaling.factor
        tied=True,  # tie_word_embeddings
    )


def llama3_2_3b() -> fdl.Partial:
    """3,212,749,824 parameters."""
    return llama(
        features=3072,  # hidden_size
        num_layers=28,  # num_hidden_layers
        num_heads=24,  # num_attention_heads
        num_kv_heads=8,  # num_key_value_heads
        head_dim=128,  # head_dim
        mlp=8192,  # intermediate_size
        vocab_size=128256,  # vocab_size
        rope=_stretched(32.0),  # rope_scaling.factor
        tied=True,  # tie_word_embeddings
    )


def llama3_3_70b() -> fdl.Partial:
    """70,553,706,496 parameters, in the shape of Llama 3.1's."""
    return llama3_1_70b()


def _stretched(factor: float) -> fdl.Config:
    """The rotation of rope_theta and rope_scaling since Llama 3.1."""
    return fdl.Config(
        Llama3Rope,
        theta=500_000.0,
        factor=factor,
        low=1.0,
        high=4.0,
        original_length=8192,
    )


def smollm2_135m() -> fdl.Partial:
    """134,515,008 parameters."""
    return llama(
        features=576,  # hidden_size
        num_layers=30,  # num_hidden_layers
        num_heads=9,  # num_attention_heads
        num_kv_heads=3,  # num_key_value_heads
        head_dim=64,  # hidden_size / num_attention_heads
        mlp=1536,  # intermediate_size
        vocab_size=49152,  # vocab_size
        rope=layers.rope(100_000.0),  # rope_theta
        tied=True,  # tie_word_embeddings
    )


def smollm2_360m() -> fdl.Partial:
    """361,821,120 parameters."""
    return llama(
        features=960,  # hidden_size
        num_layers=32,  # num_hidden_layers
        num_heads=15,  # num_attention_heads
        num_kv_heads=5,  # num_key_value_heads
        head_dim=64,  # hidden_size / num_attention_heads
        mlp=2560,  # intermediate_size
        vocab_size=49152,  # vocab_size
        rope=layers.rope(100_000.0),  # rope_theta
        tied=True,  # tie_word_embeddings
    )


def smollm2_1_7b() -> fdl.Partial:
    """1,711,376,384 parameters."""
    return llama(
        features=2048,  # hidden_size
        num_layers=24,  # num_hidden_layers
        num_heads=32,  # num_attention_heads
        num_kv_heads=32,  # num_key_value_heads
        head_dim=64,  # hidden_size / num_attention_heads
        mlp=8192,  # intermediate_size
        vocab_size=49152,  # vocab_size
        rope=layers.rope(130_000.0),  # rope_theta
        tied=True,  # tie_word_embeddings
    )


def from_hf(config: Mapping[str, Any]) -> fdl.Partial:
    """Returns the graph of a normalised config.json."""
    return llama(
        **widths_from_hf(config),
        num_layers=config["num_hidden_layers"],
        norm_epsilon=config["rms_norm_eps"],
        rope=ropes.from_hf(
            config["rope_parameters"], config["max_position_embeddings"]
        ),
        activation=activation_from_hf(config["hidden_act"]),
        attention_bias=config["attention_bias"],
        mlp_bias=config["mlp_bias"],
    )


def to_hf(model: fdl.Partial) -> dict[str, Any]:
    """Returns the config.json that `from_hf` reads as `model`, if it is a Llama."""
    layer = layers_of(model)[0]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **widths_to_hf(model),
        "rms_norm_eps": model.final_norm.epsilon,
        "rope_parameters": ropes.to_hf(layer.attention.rope),
        "hidden_act": activation_to_hf(layer.mlp.glu.activation),
        "attention_bias": layer.attention.query.use_bias,
        "mlp_bias": layer.mlp.up.use_bias,
    }
