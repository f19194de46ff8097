"""GPT-OSS (OpenAI 2025, https://arxiv.org/abs/2508.10925).

Numbers are those of the config.json of openai/gpt-oss-20b and openai/gpt-oss-120b on
Hugging Face.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import fiddle as fdl

from fdl_configs import layers, moe
from fdl_configs import rope as ropes
from fdl_configs.hf_parts import (
    layers_of,
    shape_to_hf,
    widths_from_hf,
    windows_from_hf,
    windows_to_hf,
)
from maxfdl.layers import nnx
from maxfdl.ops.glu import ClampedSwiGlu
from maxfdl.ops.initializers import Normal
from maxfdl.ops.rope import YarnRope, yarn_magnitude


def gpt_oss(
    *,
    features: int,
    windows: Sequence[int | None],
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    mlp: int,
    num_experts: int,
    experts_per_token: int,
    vocab_size: int,
    rope: fdl.Config,
    glu: fdl.Config,
    norm_epsilon: float = 1e-5,
    tied: bool = False,
    attention_bias: bool = True,
) -> fdl.Partial:
    """A decoder with sinks, and experts of width `mlp` with biases.

    `windows` has the window of each layer, None where it sees everything.
    """

    @functools.cache
    def layer(window: int | None) -> fdl.Partial:
        routing = moe.routing(experts_per_token, renormalise=True)
        return layers.pre_norm_layer(
            norm=layers.rms_norm(norm_epsilon),
            attention=layers.attention(
                num_heads=num_heads,
                num_kv_heads=num_kv_heads,
                head_dim=head_dim,
                rope=rope,
                mask=layers.causal_within(window),
                bias=attention_bias,
                out_bias=attention_bias,
                sinks=fdl.Partial(nnx.AttentionSinks, initializer=fdl.Config(Normal)),
            ),
            mlp=moe.moe(
                num_experts=num_experts,
                router=moe.router(routing, use_bias=True),
                experts=moe.experts(mlp, glu=glu, bias=True),
            ),
        )

    return layers.transformer(
        embedding=layers.embedding(),
        decoder=layers.decoder([layer(window) for window in windows]),
        final_norm=layers.rms_norm(norm_epsilon),
        head=layers.tied_head() if tied else layers.head(),
        features=features,
        vocab_size=vocab_size,
    )


def _published(num_layers: int, num_experts: int) -> fdl.Partial:
    """What both sizes have in common."""
    return gpt_oss(
        features=2880,  # hidden_size
        windows=[128, None] * (num_layers // 2),  # sliding_window, layer_types
        num_heads=64,  # num_attention_heads
        num_kv_heads=8,  # num_key_value_heads
        head_dim=64,  # head_dim
        mlp=2880,  # intermediate_size
        num_experts=num_experts,
        experts_per_token=4,  # num_experts_per_tok
        vocab_size=201088,  # vocab_size
        rope=fdl.Config(
            YarnRope,
            theta=150_000.0,  # rope_theta
            factor=32.0,  # rope_scaling.factor
            original_length=4096,  # rope_scaling.original_max_position_embeddings
            beta_fast=32.0,  # rope_scaling.beta_fast
            beta_slow=1.0,  # rope_scaling.beta_slow
            truncate=False,  # rope_scaling.truncate
            attention_factor=yarn_magnitude(32.0),  # of rope_scaling.factor
        ),
        # alpha is transformers' default; limit is swiglu_limit.
        glu=fdl.Config(ClampedSwiGlu, alpha=1.702, limit=7.0),
    )


def gpt_oss_20b() -> fdl.Partial:
    """20,914,757,184 parameters."""
    return _published(
        num_layers=24,  # num_hidden_layers
        num_experts=32,  # num_local_experts
    )


def gpt_oss_120b() -> fdl.Partial:
    """116,829,156,672 parameters."""
    return _published(
        num_layers=36,  # num_hidden_layers
        num_experts=128,  # num_local_experts
    )


def from_hf(config: Mapping[str, Any]) -> fdl.Partial:
    """Returns the graph of a normalised config.json."""
    alpha, limit = config["swiglu_alpha"], config["swiglu_limit"]
    return gpt_oss(
        **widths_from_hf(config),
        windows=windows_from_hf(config),
        num_experts=config["num_local_experts"],
        experts_per_token=config["num_experts_per_tok"],
        rope=ropes.from_hf(
            config["rope_parameters"], config["max_position_embeddings"]
        ),
        glu=fdl.Config(ClampedSwiGlu, alpha=alpha, limit=limit),
        norm_epsilon=config["rms_norm_eps"],
        attention_bias=config["attention_bias"],
    )


def to_hf(model: fdl.Partial) -> dict[str, Any]:
    """Returns the config.json that `from_hf` reads as `model`, if it is a GPT-OSS."""
    layer = layers_of(model)[0]
    experts = layer.mlp.experts
    return {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        **shape_to_hf(model),
        **windows_to_hf(model),
        "intermediate_size": experts.hidden,
        "num_local_experts": layer.mlp.num_experts,
        "num_experts_per_tok": layer.mlp.router.routing.k,
        "swiglu_alpha": experts.glu.alpha,
        "swiglu_limit": experts.glu.limit,
        "rms_norm_eps": model.final_norm.epsilon,
        "rope_parameters": ropes.to_hf(layer.attention.rope),
        "attention_bias": layer.attention.query.use_bias,
    }
