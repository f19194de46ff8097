"""Qwen 3 with experts (Yang et al. 2025, https://arxiv.org/abs/2505.09388).

Numbers are those of the config.json of the Qwen repositories on Hugging Face that
each size names.
"""

import functools
from collections.abc import Mapping, Sequence
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


def qwen3_moe(
    *,
    features: int,
    sparse: Sequence[bool],
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    mlp: int,
    expert_mlp: int,
    num_experts: int,
    experts_per_token: int,
    vocab_size: int,
    renormalise: bool = True,
    norm_epsilon: float = 1e-6,
    rope: fdl.Config | None = None,
    window: int | None = None,
    tied: bool = False,
    activation: Activation = "silu",
    attention_bias: bool = False,
) -> fdl.Partial:
    """Qwen 3, some of whose layers have experts.

    Args:
      sparse: Of each layer, whether it has experts.
      mlp: Hidden width of a layer without.
      expert_mlp: Hidden width of an expert.
      renormalise: Whether the weights of the chosen experts sum to 1.
      window: Tokens that a layer sees; None: all.
    """
    rope = rope or layers.rope(1_000_000.0)

    @functools.cache
    def layer(sparse: bool) -> fdl.Partial:
        head_norm = layers.per_head(layers.rms_norm(norm_epsilon))
        if sparse:
            routing = moe.routing(experts_per_token, renormalise=renormalise)
            glu = fdl.Config(Glu, activation=activation)
            feed_forward = moe.moe(
                num_experts=num_experts,
                router=moe.router(routing),
                experts=moe.experts(expert_mlp, glu=glu),
            )
        else:
            feed_forward = layers.gated_mlp(mlp, activation)
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
                query_norm=head_norm,
                key_norm=head_norm,
            ),
            mlp=feed_forward,
        )

    return layers.transformer(
        embedding=layers.embedding(),
        decoder=layers.decoder([layer(bool(each)) for each in sparse]),
        final_norm=layers.rms_norm(norm_epsilon),
        head=layers.tied_head() if tied else layers.head(),
        features=features,
        vocab_size=vocab_size,
    )


def qwen3_30b_a3b(rope_theta: float = 1_000_000.0) -> fdl.Partial:
    """30,532,122,624 parameters. Qwen/Qwen3-30B-A3B."""
    return qwen3_moe(
        features=2048,  # hidden_size
        sparse=[True] * 48,  # num_hidden_layers, decoder_sparse_step
        num_heads=32,  # num_attention_heads
        num_kv_heads=4,  # num_key_value_heads
        head_dim=128,  # head_dim
        mlp=6144,  # intermediate_size
        expert_mlp=768,  # moe_intermediate_size
        num_experts=128,  # num_experts
        experts_per_token=8,  # num_experts_per_tok
        vocab_size=151936,  # vocab_size
        rope=layers.rope(rope_theta),  # rope_theta
    )


def qwen3_30b_a3b_2507() -> fdl.Partial:
    """30,532,122,624 parameters. Qwen/Qwen3-30B-A3B-Instruct-2507."""
    return qwen3_30b_a3b(rope_theta=10_000_000.0)  # rope_theta


def qwen3_coder_30b_a3b() -> fdl.Partial:
    """30,532,122,624 parameters. Qwen/Qwen3-Coder-30B-A3B-Instruct."""
    return qwen3_30b_a3b(rope_theta=10_000_000.0)  # rope_theta


def qwen3_235b_a22b(rope_theta: float = 1_000_000.0) -> fdl.Partial:
    """235,093,634,560 parameters. Qwen/Qwen3-235B-A22B."""
    return qwen3_moe(
        features=4096,  # hidden_size
        sparse=[True] * 94,  # num_hidden_layers, decoder_sparse_step
        num_heads=64,  # num_attention_heads
        num_kv_heads=4,  # num_key_value_heads
        head_dim=128,  # head_dim
        mlp=12288,  # intermediate_size
        expert_mlp=1536,  # moe_intermediate_size
        num_experts=128,  # num_experts
        experts_per_token=8,  # num_experts_per_tok
        vocab_size=151936,  # vocab_size
        rope=layers.rope(rope_theta),  # rope_theta
    )


def qwen3_235b_a22b_2507() -> fdl.Partial:
    """235,093,634,560 parameters. Qwen/Qwen3-235B-A22B-Instruct-2507."""
    return qwen3_235b_a22b(rope_theta=5_000_000.0)  # rope_theta


def qwen3_coder_480b_a35b() -> fdl.Partial:
    """480,154,875,392 parameters. Qwen/Qwen3-Coder-480B-A35B-Instruct."""
    return qwen3_moe(
        features=6144,  # hidden_size
        sparse=[True] * 62,  # num_hidden_layers, decoder_sparse_step
        num_heads=96,  # num_attention_heads
        num_kv_heads=8,  # num_key_value_heads
        head_dim=128,  # head_dim
        mlp=8192,  # intermediate_size
        expert_mlp=2560,  # moe_intermediate_size
        num_experts=160,  # num_experts
        experts_per_token=8,  # num_experts_per_tok
        vocab_size=151936,  # vocab_size
        rope=layers.rope(10_000_000.0),  # rope_theta
    )


def from_hf(config: Mapping[str, Any]) -> fdl.Partial:
    """Returns the graph of a normalised config.json."""
    return qwen3_moe(
        **widths_from_hf(config),
        sparse=moe.sparse_from_hf(config, config["num_local_experts"]),
        expert_mlp=config["moe_intermediate_size"],
        num_experts=config["num_local_experts"],
        experts_per_token=config["num_experts_per_tok"],
        renormalise=config["norm_topk_prob"],
        norm_epsilon=config["rms_norm_eps"],
        rope=ropes.from_hf(
            config["rope_parameters"], config["max_position_embeddings"]
        ),
        window=config["sliding_window"],
        activation=activation_from_hf(config["hidden_act"]),
        attention_bias=config["attention_bias"],
    )


def to_hf(model: fdl.Partial) -> dict[str, Any]:
    """Returns the config.json that `from_hf` reads as `model`, if it is of Qwen 3."""
    layer = layers_of(model)[0]
    window = window_of(layer)
    dense, sparse = moe.kinds_of(model)
    written = {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        **shape_to_hf(model),
        **moe.sparse_to_hf(model),
        "num_local_experts": 0,
        "rms_norm_eps": model.final_norm.epsilon,
        "rope_parameters": ropes.to_hf(layer.attention.rope),
        "sliding_window": window,
        "use_sliding_window": window is not None,
        "hidden_act": activation_to_hf(moe.glu_of(layer).activation),
        "attention_bias": layer.attention.query.use_bias,
    }
    if dense is not None:
        written["intermediate_size"] = dense.mlp.hidden
    if sparse is not None:
        written |= {
            "num_local_experts": sparse.mlp.num_experts,
            "num_experts_per_tok": sparse.mlp.router.routing.k,
            "norm_topk_prob": sparse.mlp.router.routing.renormalise,
            "moe_intermediate_size": sparse.mlp.experts.hidden,
        }
    return written
