"""DeepSeek-V3 and R1 (DeepSeek-AI 2024, https://arxiv.org/abs/2412.19437).

Numbers are those of the config.json of deepseek-ai/DeepSeek-V3 on Hugging Face.
"""

from collections.abc import Mapping
from typing import Any

import fiddle as fdl

from fdl_configs import moe
from fdl_configs.deepseek import (
    deepseek,
    only,
    parts_from_hf,
    parts_to_hf,
    stretched_scale,
    yarn,
)
from fdl_configs.hf_parts import layers_of


def router(
    *,
    k: int,
    scale: float,
    groups: int | None = None,
    kept: int | None = None,
    renormalise: bool = True,
) -> fdl.Partial:
    """Sigmoid scores, and a bias of each expert that decides the choice alone.

    Experts lie in `groups`, and a token goes to those of the best `kept`; a group
    counts what its two best experts score.
    """
    routing = moe.routing(
        k,
        score="sigmoid",
        renormalise=renormalise,
        scale=scale,
        limit=moe.group_limit(groups, kept, best=2),
    )
    return moe.router(routing, use_selection_bias=True)


def deepseek_v3_671b() -> fdl.Partial:
    """671,026,404,352 parameters, without the module that predicts a token more."""
    return deepseek(
        features=7168,  # hidden_size
        num_layers=61,  # num_hidden_layers
        num_dense=3,  # first_k_dense_replace
        num_heads=128,  # num_attention_heads
        query_rank=1536,  # q_lora_rank
        latent_dim=512,  # kv_lora_rank
        nope_dim=128,  # qk_nope_head_dim
        rope_dim=64,  # qk_rope_head_dim
        value_dim=128,  # v_head_dim
        mlp=18432,  # intermediate_size
        vocab_size=129280,  # vocab_size
        num_experts=256,  # n_routed_experts
        num_shared=1,  # n_shared_experts
        expert_mlp=2048,  # moe_intermediate_size
        router=router(
            k=8,  # num_experts_per_tok
            groups=8,  # n_group
            kept=4,  # topk_group
            scale=2.5,  # routed_scaling_factor
        ),
        rope=yarn(
            theta=10_000.0,  # rope_theta
            factor=40.0,  # rope_scaling.factor
            original_length=4096,  # rope_scaling.original_max_position_embeddings
        ),
        # qk_nope_head_dim + qk_rope_head_dim, rope_scaling.factor and .mscale_all_dim
        query_scale=stretched_scale(192, 40.0, 1.0),
    )


def from_hf(config: Mapping[str, Any]) -> fdl.Partial:
    """Returns the graph of a normalised config.json."""
    only(config, scoring_func="sigmoid", topk_method="noaux_tc")
    return deepseek(
        **parts_from_hf(config, "pairs" if config["rope_interleave"] else "halves"),
        router=router(
            k=config["num_experts_per_tok"],
            **moe.groups_from_hf(config),
            scale=config["routed_scaling_factor"],
            renormalise=config["norm_topk_prob"],
        ),
    )


def to_hf(model: fdl.Partial) -> dict[str, Any]:
    """Returns the config.json that `from_hf` reads as `model`, if it is a V3."""
    written = {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        **parts_to_hf(model),
        "rope_interleave": layers_of(model)[0].attention.rope.layout == "pairs",
        "num_nextn_predict_layers": 0,
    }
    _, sparse = moe.kinds_of(model)
    if sparse is not None:
        routing = sparse.mlp.router.routing
        written |= {
            "n_group": routing.limit.groups if routing.limit else 1,
            "topk_group": routing.limit.kept if routing.limit else 1,
            "norm_topk_prob": routing.renormalise,
        }
    return written
