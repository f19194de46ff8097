"""Mixtral (Jiang et al. 2024, https://arxiv.org/abs/2401.04088).

Numbers are those of the config.json of mistralai/Mixtral-8x7B-v0.1 and
mistralai/Mixtral-8x22B-v0.1 on Hugging Face.
"""

from collections.abc import Mapping
from typing import Any

import fiddle as fdl

from fdl_configs import layers, moe
from fdl_configs import rope as ropes
from fdl_configs.hf_parts import (
    activation_from_hf,
    activation_to_hf,
    layers_of,
    shape_to_hf,
    widths_from_hf,
    window_of,
)
from maxfdl.ops.activation import Activation
from maxfdl.ops.glu import Glu


def mixtral(
    *,
    features: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    mlp: int,
    num_experts: int,
    experts_per_token: int,
    vocab_size: int,
    norm_epsilon: float = 1e-5,
    rope: fdl.Config | None = None,
    window: int | None = None,
    tied: bool = False,
    activation: Activation = "silu",
) -> fdl.Partial:
    """Mistral with experts of width `mlp`, weighted by a softmax over the chosen."""
    layer = layers.pre_norm_layer(
        norm=layers.rms_norm(norm_epsilon),
        attention=layers.attention(
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            rope=rope or layers.rope(1_000_000.0),
            mask=layers.causal_within(window),
        ),
        mlp=moe.moe(
            num_experts=num_experts,
            router=moe.router(moe.routing(experts_per_token, renormalise=True)),
            experts=moe.experts(mlp, glu=fdl.Config(Glu, activation=activation)),
        ),
    )
    return layers.transformer(
        embedding=layers.embedding(),
        decoder=layers.decoder([layer] * num_layers),
        final_norm=layers.rms_norm(norm_epsilon),
        head=layers.tied_head() if tied else layers.head(),
        features=features,
        vocab_size=vocab_size,
    )


def mixtral_8x7b() -> fdl.Partial:
    """46,702,792,704 parameters."""
    return mixtral(
        features=4096,  # hidden_size
        num_layers=32,  # num_hidden_layers
        num_heads=32,  # num_attention_heads
        num_kv_heads=8,  # num_key_value_heads
        head_dim=128,  # hidden_size / num_attention_heads
        mlp=14336,  # intermediate_size
        num_experts=8,  # num_local_experts
        experts_per_token=2,  # num_experts_per_tok
        vocab_size=32000,  # vocab_size
    )


def mixtral_8x22b() -> fdl.Partial:
    """140,620,634,112 parameters."""
    return mixtral(
        features=6144,  # hidden_size
        num_layers=56,  # num_hidden_layers
        num_heads=48,  # num_attention_heads
        num_kv_heads=8,  # num_key_value_heads
        head_dim=128,  # hidden_size / num_attention_heads
        mlp=16384,  # intermediate_size
        num_experts=8,  # num_local_experts
        experts_per_token=2,  # num_experts_per_tok
        vocab_size=32000,  # vocab_size
    )


def from_hf(config: Mapping[str, Any]) -> fdl.Partial:
    """Returns the graph of a normalised config.json."""
    return mixtral(
        **widths_from_hf(config),
        num_layers=config["num_hidden_layers"],
        num_experts=config["num_local_experts"],
        experts_per_token=config["num_experts_per_tok"],
        norm_epsilon=config["rms_norm_eps"],
        rope=ropes.from_hf(
            config["rope_parameters"], config["max_position_embeddings"]
        ),
        window=config["sliding_window"],
        activation=activation_from_hf(config["hidden_act"]),
    )


def to_hf(model: fdl.Partial) -> dict[str, Any]:
    """Returns the config.json that `from_hf` reads as `model`, if it is a Mixtral."""
    layer = layers_of(model)[0]
    return {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        **shape_to_hf(model),
        "intermediate_size": layer.mlp.experts.hidden,
        "num_local_experts": layer.mlp.num_experts,
        "num_experts_per_tok": layer.mlp.router.routing.k,
        "rms_norm_eps": model.final_norm.epsilon,
        "rope_parameters": ropes.to_hf(layer.attention.rope),
        "sliding_window": window_of(layer),
        "hidden_act": activation_to_hf(layer.mlp.experts.glu.activation),
    }
