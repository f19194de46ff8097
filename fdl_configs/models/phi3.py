"""Phi 3 (Abdin et al. 2024, https://arxiv.org/abs/2404.14219), and what has its layers.

Numbers are those of the config.json of microsoft/Phi-3-mini-4k-instruct,
Phi-3-medium-4k-instruct, phi-4 and Phi-4-mini-instruct on Hugging Face.
"""

import math
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
from maxfdl.errors import UserError
from maxfdl.ops.activation import Activation
from maxfdl.ops.rope import LongRope


def phi3(
    *,
    features: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    mlp: int,
    vocab_size: int,
    window: int | None,
    rope: fdl.Config | None = None,
    norm_epsilon: float = 1e-5,
    tied: bool = False,
    activation: Activation = "silu",
) -> fdl.Partial:
    """Llama whose layers all see a window of tokens, or everything with None.

    A part of a head may turn, by factors of its own for long documents.
    """
    layer = layers.pre_norm_layer(
        norm=layers.rms_norm(norm_epsilon),
        attention=layers.attention(
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            rope=rope or layers.rope(10_000.0),
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


def phi3_mini() -> fdl.Partial:
    """3,821,079,552 parameters."""
    return phi3(
        features=3072,  # hidden_size
        num_layers=32,  # num_hidden_layers
        num_heads=32,  # num_attention_heads
        num_kv_heads=32,  # num_key_value_heads
        head_dim=96,  # hidden_size / num_attention_heads
        mlp=8192,  # intermediate_size
        vocab_size=32064,  # vocab_size
        window=2047,  # sliding_window
    )


def phi3_medium() -> fdl.Partial:
    """13,960,238,080 parameters."""
    return phi3(
        features=5120,  # hidden_size
        num_layers=40,  # num_hidden_layers
        num_heads=40,  # num_attention_heads
        num_kv_heads=10,  # num_key_value_heads
        head_dim=128,  # hidden_size / num_attention_heads
        mlp=17920,  # intermediate_size
        vocab_size=32064,  # vocab_size
        window=2047,  # sliding_window
    )


def phi4() -> fdl.Partial:
    """14,659,507,200 parameters."""
    return phi3(
        features=5120,  # hidden_size
        num_layers=40,  # num_hidden_layers
        num_heads=40,  # num_attention_heads
        num_kv_heads=10,  # num_key_value_heads
        head_dim=128,  # hidden_size / num_attention_heads
        mlp=17920,  # intermediate_size
        vocab_size=100352,  # vocab_size
        window=None,  # sliding_window
        rope=layers.rope(250_000.0),  # rope_theta
    )


def phi4_mini() -> fdl.Partial:
    """3,836,021,760 parameters."""
    original, longest = 4096, 131072
    rope = fdl.Config(
        LongRope,
        theta=10_000.0,  # rope_theta
        fraction=0.75,  # partial_rotary_factor
        short_factors=(1.0,) * 48,  # rope_scaling.short_factor
        long_factors=_PHI4_MINI_LONG,
        original_length=original,  # original_max_position_embeddings
        # max_position_embeddings: what LongRoPE makes of their ratio.
        attention_factor=math.sqrt(
            1 + math.log(longest / original) / math.log(original)
        ),
    )
    return phi3(
        features=3072,  # hidden_size
        num_layers=32,  # num_hidden_layers
        num_heads=24,  # num_attention_heads
        num_kv_heads=8,  # num_key_value_heads
        head_dim=128,  # hidden_size / num_attention_heads
        mlp=8192,  # intermediate_size
        vocab_size=200064,  # vocab_size
        window=262144,  # sliding_window
        rope=rope,
        tied=True,  # tie_word_embeddings
    )


# rope_scaling.long_factor of Phi-4-mini-instruct.
# fmt: off
_PHI4_MINI_LONG = (
    1.0, 1.118320672, 1.250641126, 1.398617824, 1.564103225, 1.74916897, 1.956131817,
    2.187582649, 2.446418898, 2.735880826, 3.059592084, 3.421605075, 3.826451687,
    4.279200023, 4.785517845, 5.351743533, 5.984965424, 6.693110555, 7.485043894,
    8.370679318, 9.36110372, 10.4687158, 11.70738129, 13.09260651, 14.64173252,
    16.37415215, 18.31155283, 20.47818807, 22.90118105, 25.61086418, 28.64115884,
    32.03, 32.1, 32.13, 32.23, 32.6, 32.61, 32.64, 32.66, 32.7, 32.71, 32.93, 32.97,
    33.28, 33.49, 33.5, 44.16, 47.77,
)
# fmt: on


def from_hf(config: Mapping[str, Any]) -> fdl.Partial:
    """Returns the graph of a normalised config.json."""
    kind = config["rope_parameters"]["rope_type"]
    if kind not in ("default", "longrope"):
        raise UserError(f"rope_type ({kind}) must be default or longrope in a phi3.")
    return phi3(
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
    """Returns the config.json that `from_hf` reads as `model`, if it is a Phi 3."""
    layer = layers_of(model)[0]
    rope = ropes.to_hf(layer.attention.rope)
    key = "original_max_position_embeddings"
    return {
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        **widths_to_hf(model),
        "sliding_window": window_of(layer),
        "rope_parameters": rope,
        # Theirs stands beside the others too, and wins where they differ.
        **({key: rope[key]} if key in rope else {}),
        "rms_norm_eps": model.final_norm.epsilon,
        "hidden_act": activation_to_hf(layer.mlp.glu.activation),
    }
