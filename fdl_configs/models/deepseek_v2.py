"""DeepSeek-V2 (DeepSeek-AI 2024, https://arxiv.org/abs/2405.04434).

Numbers are those of the config.json of deepseek-ai/DeepSeek-V2 and -V2-Lite on Hugging
Face.
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
from maxfdl.errors import UserError


def router(
    *,
    k: int,
    scale: float,
    groups: int | None = None,
    kept: int | None = None,
) -> fdl.Partial:
    """Softmax scores, which are weights as they are.

    Experts lie in `groups`, and a token goes to those of the best `kept`; a group
    counts what its best expert scores.
    """
    routing = moe.routing(k, scale=scale, limit=moe.group_limit(groups, kept, best=1))
    return moe.router(routing)


def deepseek_v2_236b() -> fdl.Partial:
    """235,741,434,880 parameters."""
    return deepseek(
        features=5120,  # hidden_size
        num_layers=60,  # num_hidden_layers
        num_dense=1,  # first_k_dense_replace
        num_heads=128,  # num_attention_heads
        query_rank=1536,  # q_lora_rank
        latent_dim=512,  # kv_lora_rank
        nope_dim=128,  # qk_nope_head_dim
        rope_dim=64,  # qk_rope_head_dim
        value_dim=128,  # v_head_dim
        mlp=12288,  # intermediate_size
        vocab_size=102400,  # vocab_size
        num_experts=160,  # n_routed_experts
        num_shared=2,  # n_shared_experts
        expert_mlp=1536,  # moe_intermediate_size
        router=router(
            k=6,  # num_experts_per_tok
            groups=8,  # n_group
            kept=3,  # topk_group
            scale=16.0,  # routed_scaling_factor
        ),
        **_stretched(),
    )


def deepseek_v2_lite_16b() -> fdl.Partial:
    """15,706,484,224 parameters."""
    return deepseek(
        features=2048,  # hidden_size
        num_layers=27,  # num_hidden_layers
        num_dense=1,  # first_k_dense_replace
        num_heads=16,  # num_attention_heads
        query_rank=None,  # q_lora_rank
        latent_dim=512,  # kv_lora_rank
        nope_dim=128,  # qk_nope_head_dim
        rope_dim=64,  # qk_rope_head_dim
        value_dim=128,  # v_head_dim
        mlp=10944,  # intermediate_size
        vocab_size=102400,  # vocab_size
        num_experts=64,  # n_routed_experts
        num_shared=2,  # n_shared_experts
        expert_mlp=1408,  # moe_intermediate_size
        router=router(
            k=6,  # num_experts_per_tok; topk_method is greedy
            scale=1.0,  # routed_scaling_factor
        ),
        **_stretched(),
    )


def _stretched() -> dict[str, Any]:
    """What rope_theta and rope_scaling say in both."""
    rope = yarn(
        theta=10_000.0,  # rope_theta
        factor=40.0,  # rope_scaling.factor
        original_length=4096,  # rope_scaling.original_max_position_embeddings
    )
    # qk_nope_head_dim + qk_rope_head_dim, rope_scaling.factor and .mscale_all_dim
    return {"rope": rope, "query_scale": stretched_scale(192, 40.0, 0.707)}


def from_hf(config: Mapping[str, Any]) -> fdl.Partial:
    """Returns the graph of a normalised config.json."""
    only(config, scoring_func="softmax")
    return deepseek(
        **parts_from_hf(config, "pairs"),
        mlp_bias=config["mlp_bias"],
        # norm_topk_prob is in Hugging Face's config, and its router ignores it.
        router=router(
            k=config["num_experts_per_tok"],
            scale=config["routed_scaling_factor"],
            **_groups(config),
        ),
    )


def _groups(config: Mapping[str, Any]) -> dict[str, int]:
    method = config["topk_method"]
    if method == "greedy":
        return {}
    if method == "group_limited_greedy":
        return moe.groups_from_hf(config)
    raise UserError(f"topk_method ({method}) must be greedy or group_limited_greedy.")


def to_hf(model: fdl.Partial) -> dict[str, Any]:
    """Returns the config.json that `from_hf` reads as `model`, if it is a V2."""
    first = layers_of(model)[0]
    written = {
        "architectures": ["DeepseekV2ForCausalLM"],
        "model_type": "deepseek_v2",
        **parts_to_hf(model),
        "mlp_bias": (
            first.mlp.shared if moe.is_moe(first) else first.mlp
        ).gate.use_bias,
    }
    _, sparse = moe.kinds_of(model)
    if sparse is not None and sparse.mlp.router.routing.limit is not None:
        limit = sparse.mlp.router.routing.limit
        written |= {
            "topk_method": "group_limited_greedy",
            "n_group": limit.groups,
            "topk_group": limit.kept,
        }
    return written
