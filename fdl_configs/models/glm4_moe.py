"""GLM-4.5 with experts (Zeng et al. 2025, https://arxiv.org/abs/2508.06471).

Numbers are those of the config.json of zai-org/GLM-4.5 and zai-org/GLM-4.5-Air on
Hugging Face. What these predict further ahead with, the layer behind the last, is left
out.
"""

import functools
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
)
from maxfdl.errors import UserError
from maxfdl.ops.activation import Activation
from maxfdl.ops.glu import Glu
from maxfdl.ops.rope import Rope


def glm4_moe(
    *,
    features: int,
    num_layers: int,
    dense_layers: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    mlp: int,
    expert_mlp: int,
    shared_experts: int,
    num_experts: int,
    routing: fdl.Config,
    vocab_size: int,
    rope: fdl.Config,
    norm_epsilon: float = 1e-5,
    tied: bool = False,
    activation: Activation = "silu",
    attention_bias: bool = True,
    head_norms: bool = False,
) -> fdl.Partial:
    """A decoder whose later layers have experts, chosen with a bias on sigmoid scores.

    Args:
      dense_layers: How many come first that have no experts.
      mlp: Hidden width of those.
      expert_mlp: Hidden width of an expert.
      shared_experts: Experts that see all tokens, as one layer of that many times
        the width.
      attention_bias: Whether queries, keys and values have biases.
      head_norms: Whether queries and keys are normalised, head by head.
    """

    @functools.cache
    def layer(sparse: bool) -> fdl.Partial:
        if sparse:
            glu = fdl.Config(Glu, activation=activation)
            feed_forward = moe.moe(
                num_experts=num_experts,
                router=moe.router(routing, use_selection_bias=True),
                experts=moe.experts(expert_mlp, glu=glu),
                shared=layers.gated_mlp(expert_mlp * shared_experts, activation),
            )
        else:
            feed_forward = layers.gated_mlp(mlp, activation)
        norms: dict[str, Any] = {}
        if head_norms:
            head_norm = layers.per_head(layers.rms_norm(norm_epsilon))
            norms = {"query_norm": head_norm, "key_norm": head_norm}
        return layers.pre_norm_layer(
            norm=layers.rms_norm(norm_epsilon),
            attention=layers.attention(
                num_heads=num_heads,
                num_kv_heads=num_kv_heads,
                head_dim=head_dim,
                rope=rope,
                bias=attention_bias,
                **norms,
            ),
            mlp=feed_forward,
        )

    return layers.transformer(
        embedding=layers.embedding(),
        decoder=layers.decoder([layer(n >= dense_layers) for n in range(num_layers)]),
        final_norm=layers.rms_norm(norm_epsilon),
        head=layers.tied_head() if tied else layers.head(),
        features=features,
        vocab_size=vocab_size,
    )


def routing(
    k: int, scale: float, renormalise: bool = True, groups: int = 1, kept: int = 1
) -> fdl.Config:
    """Sigmoid scores; a group of experts scores the sum of its best two."""
    return moe.routing(
        k,
        score="sigmoid",
        renormalise=renormalise,
        scale=scale,
        limit=moe.group_limit(groups, kept, best=2),
    )


def glm4_5() -> fdl.Partial:
    """352,797,814,784 parameters.

    Published as 355B, and as 358,337,791,296 numbers: with the layer left out here, and
    the biases of the routers, which are no parameters.
    """
    return glm4_moe(
        features=5120,  # hidden_size
        num_layers=92,  # num_hidden_layers
        dense_layers=3,  # first_k_dense_replace
        num_heads=96,  # num_attention_heads
        num_kv_heads=8,  # num_key_value_heads
        head_dim=128,  # head_dim
        mlp=12288,  # intermediate_size
        expert_mlp=1536,  # moe_intermediate_size
        shared_experts=1,  # n_shared_experts
        num_experts=160,  # n_routed_experts
        # num_experts_per_tok, routed_scaling_factor, norm_topk_prob, n_group
        routing=routing(8, scale=2.5),
        vocab_size=151552,  # vocab_size
        rope=_half_turning(),  # partial_rotary_factor, rope_theta
        head_norms=True,  # use_qk_norm
    )


def glm4_5_air() -> fdl.Partial:
    """106,852,245,504 parameters.

    Published as 106B, and as 110,468,824,832 numbers, counted as in `glm4_5`.
    """
    return glm4_moe(
        features=4096,  # hidden_size
        num_layers=46,  # num_hidden_layers
        dense_layers=1,  # first_k_dense_replace
        num_heads=96,  # num_attention_heads
        num_kv_heads=8,  # num_key_value_heads
        head_dim=128,  # head_dim
        mlp=10944,  # intermediate_size
        expert_mlp=1408,  # moe_intermediate_size
        shared_experts=1,  # n_shared_experts
        num_experts=128,  # n_routed_experts
        # num_experts_per_tok, routed_scaling_factor, norm_topk_prob, n_group
        routing=routing(8, scale=1.0),
        vocab_size=151552,  # vocab_size
        rope=_half_turning(),  # partial_rotary_factor, rope_theta
    )


def _half_turning() -> fdl.Config:
    return fdl.Config(Rope, theta=1_000_000.0, fraction=0.5)


def from_hf(config: Mapping[str, Any]) -> fdl.Partial:
    """Returns the graph of a normalised config.json."""
    return glm4_moe(
        **widths_from_hf(config),
        num_layers=config["num_hidden_layers"],
        dense_layers=config["first_k_dense_replace"],
        expert_mlp=config["moe_intermediate_size"],
        shared_experts=moe.shared_from_hf(config),
        num_experts=config["n_routed_experts"],
        routing=routing(
            config["num_experts_per_tok"],
            scale=float(config["routed_scaling_factor"]),
            renormalise=config["norm_topk_prob"],
            **moe.groups_from_hf(config),
        ),
        rope=ropes.from_hf(
            config["rope_parameters"], config["max_position_embeddings"]
        ),
        norm_epsilon=config["rms_norm_eps"],
        activation=activation_from_hf(config["hidden_act"]),
        attention_bias=config["attention_bias"],
        head_norms=config["use_qk_norm"],
    )


def to_hf(model: fdl.Partial) -> dict[str, Any]:
    """Returns the config.json that `from_hf` reads as `model`, if it is a GLM-4.5."""
    layer = layers_of(model)[0]
    rope = layer.attention.rope
    dense, sparse = moe.kinds_of(model)
    if sparse is None:
        # Llama and Qwen 3 have the same graphs, and are what is meant.
        raise UserError("a GLM-4.5 must have experts in some layer.")
    written = {
        "architectures": ["Glm4MoeForCausalLM"],
        "model_type": "glm4_moe",
        **shape_to_hf(model),
        "first_k_dense_replace": sum(not moe.is_moe(each) for each in layers_of(model)),
        "num_nextn_predict_layers": 0,
        "rms_norm_eps": model.final_norm.epsilon,
        # The fraction is said even if it is 1, for left out it means a half.
        "rope_parameters": {
            **ropes.to_hf(rope),
            "partial_rotary_factor": rope.fraction,
        },
        "hidden_act": activation_to_hf(moe.glu_of(layer).activation),
        "attention_bias": layer.attention.query.use_bias,
        "use_qk_norm": layer.attention.query_norm is not None,
        **_experts_to_hf(sparse.mlp),
    }
    if dense is not None:
        written["intermediate_size"] = dense.mlp.hidden
    return written


def _experts_to_hf(mlp: fdl.Partial) -> dict[str, Any]:
    choice = mlp.router.routing
    groups = choice.limit
    return {
        "n_routed_experts": mlp.num_experts,
        "n_shared_experts": mlp.shared.hidden // mlp.experts.hidden,
        "moe_intermediate_size": mlp.experts.hidden,
        "num_experts_per_tok": choice.k,
        "norm_topk_prob": choice.renormalise,
        "routed_scaling_factor": choice.scale,
        "n_group": 1 if groups is None else groups.groups,
        "topk_group": 1 if groups is None else groups.kept,
    }
