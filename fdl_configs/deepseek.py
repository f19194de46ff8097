"""What the families of DeepSeek-V2 share: latent attention, and dense layers first.

DeepSeek-AI 2024, https://arxiv.org/abs/2405.04434.
"""

import math
from collections.abc import Mapping
from typing import Any

import fiddle as fdl

from fdl_configs import layers
from fdl_configs import moe as mixtures
from fdl_configs import rope as ropes
from fdl_configs.hf_parts import (
    activation_from_hf,
    activation_to_hf,
    is_tied,
    layers_of,
)
from maxfdl.errors import UserError
from maxfdl.layers import nnx
from maxfdl.ops.activation import Activation
from maxfdl.ops.attention import DotProductAttention
from maxfdl.ops.glu import Glu
from maxfdl.ops.rope import YarnRope, yarn_magnitude

_LATENT_EPSILON = 1e-6  # of the norms inside attention, whatever rms_norm_eps says


def deepseek(
    *,
    features: int,
    num_layers: int,
    num_dense: int,
    num_heads: int,
    query_rank: int | None,
    latent_dim: int,
    nope_dim: int,
    rope_dim: int,
    value_dim: int,
    mlp: int,
    vocab_size: int,
    num_experts: int,
    num_shared: int,
    expert_mlp: int,
    router: fdl.Partial,
    rope: fdl.Config,
    query_scale: float | None = None,
    norm_epsilon: float = 1e-6,
    tied: bool = False,
    activation: Activation = "silu",
    attention_bias: bool = False,
    mlp_bias: bool = False,
) -> fdl.Partial:
    """`num_dense` layers with an MLP of width `mlp`, the others with experts.

    `num_shared` experts see all tokens; they are one MLP of their joint width.
    """
    attention = _attention(
        num_heads=num_heads,
        query_rank=query_rank,
        latent_dim=latent_dim,
        nope_dim=nope_dim,
        rope_dim=rope_dim,
        value_dim=value_dim,
        rope=rope,
        scale=query_scale,
        bias=attention_bias,
    )
    mixture = mixtures.moe(
        num_experts=num_experts,
        router=router,
        experts=mixtures.experts(
            expert_mlp, glu=fdl.Config(Glu, activation=activation)
        ),
        shared=layers.gated_mlp(num_shared * expert_mlp, activation, mlp_bias),
    )
    dense, sparse = (
        layers.pre_norm_layer(
            norm=layers.rms_norm(norm_epsilon), attention=attention, mlp=each
        )
        for each in (layers.gated_mlp(mlp, activation, mlp_bias), mixture)
    )
    return layers.transformer(
        embedding=layers.embedding(),
        decoder=layers.decoder(
            [dense if number < num_dense else sparse for number in range(num_layers)]
        ),
        final_norm=layers.rms_norm(norm_epsilon),
        head=layers.tied_head() if tied else layers.head(),
        features=features,
        vocab_size=vocab_size,
    )


def _attention(
    *, query_rank: int | None, scale: float | None, bias: bool, **fields: Any
) -> fdl.Partial:
    """Latent attention; `bias` is that of what reads and writes the residual."""
    norm = layers.rms_norm(_LATENT_EPSILON)
    query = layers.linear()
    if query_rank is not None:
        query = fdl.Partial(
            nnx.LowRankLinear,
            down=layers.linear(bias),
            norm=norm,
            up=layers.linear(),
            rank=query_rank,
        )
    op = fdl.Config(DotProductAttention)
    if scale is not None:
        op.scale = scale
    return fdl.Partial(
        nnx.LatentAttention,
        query=query,
        latent=layers.linear(bias),
        latent_norm=norm,
        rope_key=layers.linear(bias),
        key=layers.linear(),
        value=layers.linear(),
        out=layers.linear(bias),
        mask=layers.causal(),
        attention=op,
        **fields,
    )


def yarn(
    *,
    theta: float,
    factor: float,
    original_length: int,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
) -> fdl.Config:
    """YaRN whose growth is all in the scale of the scores: see `stretched_scale`."""
    return fdl.Config(
        YarnRope,
        theta=theta,
        factor=factor,
        original_length=original_length,
        beta_fast=beta_fast,
        beta_slow=beta_slow,
        truncate=True,
        attention_factor=1.0,
        layout="pairs",
    )


def stretched_scale(head_dim: int, factor: float, coefficient: float) -> float:
    """Returns the scale of scores of `head_dim` features, grown as YaRN has it."""
    return head_dim**-0.5 * yarn_magnitude(factor, coefficient) ** 2


def parts_from_hf(config: Mapping[str, Any], layout: str) -> dict[str, Any]:
    """Returns the arguments of `deepseek` besides `router`; `layout` is the RoPE's."""
    _check(config)
    parameters = config["rope_parameters"]
    rope = ropes.from_hf(parameters, config["max_position_embeddings"], layout=layout)
    return {
        "features": config["hidden_size"],
        "num_layers": config["num_hidden_layers"],
        "num_dense": config["first_k_dense_replace"],
        "num_heads": config["num_attention_heads"],
        "query_rank": config["q_lora_rank"],
        "latent_dim": config["kv_lora_rank"],
        "nope_dim": config["qk_nope_head_dim"],
        "rope_dim": config["qk_rope_head_dim"],
        "value_dim": config["v_head_dim"],
        "mlp": config["intermediate_size"],
        "vocab_size": config["vocab_size"],
        "num_experts": config["n_routed_experts"],
        "num_shared": mixtures.shared_from_hf(config),
        "expert_mlp": config["moe_intermediate_size"],
        "rope": rope,
        "query_scale": _scale_from_hf(config, rope),
        "norm_epsilon": config["rms_norm_eps"],
        "tied": config["tie_word_embeddings"],
        "activation": activation_from_hf(config["hidden_act"]),
        "attention_bias": config["attention_bias"],
    }


def _check(config: Mapping[str, Any]) -> None:
    """Refuses what Hugging Face's classes do not compute either."""
    if config["num_key_value_heads"] != config["num_attention_heads"]:
        raise UserError(
            f"num_key_value_heads ({config['num_key_value_heads']}) must be"
            f" num_attention_heads ({config['num_attention_heads']}): latent attention"
            " has a key and a value for each head."
        )
    if config.get("moe_layer_freq", 1) != 1:
        raise UserError(
            f"moe_layer_freq ({config['moe_layer_freq']}) must be 1: every layer from"
            " first_k_dense_replace on has experts."
        )


def only(config: Mapping[str, Any], **known: str) -> None:
    """Refuses a key, if config.json has it, of another value than the one known."""
    for key, value in known.items():
        if config.get(key, value) != value:
            raise UserError(f"{key} ({config[key]}) must be {value}.")


def _scale_from_hf(config: Mapping[str, Any], rope: fdl.Config) -> float | None:
    parameters = config["rope_parameters"]
    coefficient = parameters.get("mscale_all_dim")
    if not coefficient or parameters["rope_type"] == "default":
        return None
    if not hasattr(rope, "factor"):
        raise UserError(
            f"mscale_all_dim ({coefficient}) must be 0 with rope_type"
            f" {parameters['rope_type']}, which has no factor."
        )
    if rope.factor <= 1:
        return None
    return stretched_scale(config["qk_head_dim"], rope.factor, coefficient)


def parts_to_hf(model: fdl.Partial) -> dict[str, Any]:
    """Returns what `parts_from_hf` reads.

    Where no layer has an MLP, or none has experts, their keys are left out.
    """
    found = layers_of(model)
    attention = found[0].attention
    low_rank = fdl.get_callable(attention.query) is nnx.LowRankLinear
    written = {
        "hidden_size": model.features,
        "num_hidden_layers": len(found),
        "first_k_dense_replace": sum(not mixtures.is_moe(each) for each in found),
        "num_attention_heads": attention.num_heads,
        "num_key_value_heads": attention.num_heads,
        "q_lora_rank": attention.query.rank if low_rank else None,
        "kv_lora_rank": attention.latent_dim,
        "qk_nope_head_dim": attention.nope_dim,
        "qk_rope_head_dim": attention.rope_dim,
        "v_head_dim": attention.value_dim,
        "vocab_size": model.vocab_size,
        "rope_parameters": _rope_to_hf(attention),
        "rms_norm_eps": model.final_norm.epsilon,
        "tie_word_embeddings": is_tied(model),
        "hidden_act": activation_to_hf(mixtures.glu_of(found[0]).activation),
        "attention_bias": attention.latent.use_bias,
    }
    dense, sparse = mixtures.kinds_of(model)
    if dense is not None:
        written["intermediate_size"] = dense.mlp.hidden
    if sparse is not None:
        width = sparse.mlp.experts.hidden
        written |= {
            "n_routed_experts": sparse.mlp.num_experts,
            "n_shared_experts": sparse.mlp.shared.hidden // width,
            "num_experts_per_tok": sparse.mlp.router.routing.k,
            "routed_scaling_factor": sparse.mlp.router.routing.scale,
            "moe_intermediate_size": width,
        }
    return written


def _rope_to_hf(attention: fdl.Partial) -> dict[str, Any]:
    written = ropes.to_hf(attention.rope)
    scale = attention.attention.scale
    if scale is None:
        return written
    width, factor = attention.nope_dim + attention.rope_dim, attention.rope.factor
    coefficient = _coefficient(scale, width, factor)
    if written.get("attention_factor") == 1.0:
        # Says the same to programs that do not read attention_factor.
        written["mscale"] = coefficient
    return {**written, "mscale_all_dim": coefficient}


def _coefficient(scale: float, head_dim: int, factor: float) -> float:
    """Returns the coefficient that `stretched_scale` makes `scale` of, a short one."""
    growth = math.sqrt(scale * math.sqrt(head_dim))
    near = (growth - 1) / (0.1 * math.log(factor))
    around = [round(near, digits) for digits in range(1, 16)] + [near]
    for end in (-math.inf, math.inf):
        beside = near
        for _ in range(16):
            beside = math.nextafter(beside, end)
            around.append(beside)
    made = (x for x in around if stretched_scale(head_dim, factor, x) == scale)
    return next(made, near)
