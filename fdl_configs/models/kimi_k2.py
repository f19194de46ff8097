"""Kimi K2 (Kimi Team 2025, https://arxiv.org/abs/2507.20534), and Moonlight before it.

Both are of DeepSeek-V3's family, which reads and writes their config.json. Numbers are
those of moonshotai/Kimi-K2-Base, Kimi-K2-Instruct-0905 and Moonlight-16B-A3B on Hugging
Face.
"""

import fiddle as fdl

from fdl_configs.deepseek import deepseek, stretched_scale, yarn
from fdl_configs.models.deepseek_v3 import router
from maxfdl.ops.rope import Rope


def kimi_k2_1t() -> fdl.Partial:
    """1,026,408,209,408 parameters."""
    return _kimi_k2(factor=32.0)


def kimi_k2_0905_1t() -> fdl.Partial:
    """1,026,408,209,408 parameters; for documents of twice the length."""
    return _kimi_k2(factor=64.0)


def _kimi_k2(factor: float) -> fdl.Partial:
    """`factor` is that of rope_scaling."""
    return deepseek(
        features=7168,  # hidden_size
        num_layers=61,  # num_hidden_layers
        num_dense=1,  # first_k_dense_replace
        num_heads=64,  # num_attention_heads
        query_rank=1536,  # q_lora_rank
        latent_dim=512,  # kv_lora_rank
        nope_dim=128,  # qk_nope_head_dim
        rope_dim=64,  # qk_rope_head_dim
        value_dim=128,  # v_head_dim
        mlp=18432,  # intermediate_size
        vocab_size=163840,  # vocab_size
        num_experts=384,  # n_routed_experts
        num_shared=1,  # n_shared_experts
        expert_mlp=2048,  # moe_intermediate_size
        router=router(
            k=8,  # num_experts_per_tok; n_group and topk_group are 1
            scale=2.827,  # routed_scaling_factor
        ),
        rope=yarn(
            theta=50_000.0,  # rope_theta
            factor=factor,
            original_length=4096,  # rope_scaling.original_max_position_embeddings
            beta_fast=1.0,  # rope_scaling.beta_fast
        ),
        # qk_nope_head_dim + qk_rope_head_dim, rope_scaling.mscale_all_dim
        query_scale=stretched_scale(192, factor, 1.0),
    )


def moonlight_16b_a3b() -> fdl.Partial:
    """15,960,108,544 parameters."""
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
        mlp=11264,  # intermediate_size
        vocab_size=163840,  # vocab_size
        num_experts=64,  # n_routed_experts
        num_shared=2,  # n_shared_experts
        expert_mlp=1408,  # moe_intermediate_size
        router=router(
            k=6,  # num_experts_per_tok; n_group and topk_group are 1
            scale=2.446,  # routed_scaling_factor
        ),
        rope=fdl.Config(Rope, theta=50_000.0, layout="pairs"),  # rope_theta
        norm_epsilon=1e-5,  # rms_norm_eps
    )
