"""Qwen3-Next (Qwen Team 2025, https://qwenlm.github.io/blog/qwen3_next).

Numbers are those of the config.json of Qwen/Qwen3-Next-80B-A3B-Instruct on Hugging
Face.
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
    is_tied,
    layers_of,
)
from maxfdl.errors import UserError
from maxfdl.layers import nnx
from maxfdl.ops.activation import Activation
from maxfdl.ops.delta_rule import GatedDeltaRule
from maxfdl.ops.glu import Glu
from maxfdl.ops.initializers import FanIn
from maxfdl.ops.rope import Rope


def qwen3_next(
    *,
    features: int,
    full: Sequence[bool],
    sparse: Sequence[bool],
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    num_key_heads: int,
    num_value_heads: int,
    key_dim: int,
    value_dim: int,
    taps: int,
    mlp: int,
    expert_mlp: int,
    shared_mlp: int,
    num_experts: int,
    experts_per_token: int,
    vocab_size: int,
    renormalise: bool = True,
    norm_epsilon: float = 1e-6,
    rope: fdl.Config | None = None,
    tied: bool = False,
    activation: Activation = "silu",
    attention_bias: bool = False,
) -> fdl.Partial:
    """Layers of linear attention, a few of full attention, and experts.

    Args:
      full: Of each layer, whether its attention is full; it is linear otherwise.
      sparse: Of each layer, whether it has experts.
      num_heads, num_kv_heads, head_dim: Of full attention.
      num_key_heads, num_value_heads, key_dim, value_dim: Of linear attention.
      taps: Tokens that its convolutions sum over.
      mlp: Hidden width of a layer without experts.
      expert_mlp, shared_mlp: Hidden width of an expert, and of that for all tokens.
      renormalise: Whether the weights of the chosen experts sum to 1.
    """
    norm = layers.zero_centred_rms_norm(norm_epsilon)
    full_attention = layers.attention(
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        rope=rope or fdl.Config(Rope, theta=10_000_000.0, fraction=0.25),
        bias=attention_bias,
        out_bias=attention_bias,
        query_norm=layers.per_head(norm),
        key_norm=layers.per_head(norm),
        gate=layers.linear(attention_bias),
    )
    linear_attention = fdl.Partial(
        nnx.GatedDeltaNet,
        query=layers.linear(),
        key=layers.linear(),
        value=layers.linear(),
        convolution=fdl.Partial(
            nnx.CausalConvolution, width=taps, initializer=fdl.Config(FanIn)
        ),
        beta=layers.linear(),
        decay=layers.linear(),
        delta_rule=fdl.Config(GatedDeltaRule),
        output_gate=layers.linear(),
        norm=fdl.Partial(nnx.GatedRMSNorm, epsilon=norm_epsilon),
        out=layers.linear(),
        num_key_heads=num_key_heads,
        num_value_heads=num_value_heads,
        key_dim=key_dim,
        value_dim=value_dim,
    )

    @functools.cache
    def layer(full: bool, sparse: bool) -> fdl.Partial:
        if sparse:
            routing = moe.routing(experts_per_token, renormalise=renormalise)
            glu = fdl.Config(Glu, activation=activation)
            feed_forward = moe.moe(
                num_experts=num_experts,
                router=moe.router(routing),
                experts=moe.experts(expert_mlp, glu=glu),
                shared=layers.gated_mlp(shared_mlp, activation),
                gated=True,
            )
        else:
            feed_forward = layers.gated_mlp(mlp, activation)
        return layers.pre_norm_layer(
            norm=norm,
            attention=full_attention if full else linear_attention,
            mlp=feed_forward,
        )

    kinds = zip(full, sparse, strict=True)
    return layers.transformer(
        embedding=layers.embedding(),
        decoder=layers.decoder([layer(*kind) for kind in kinds]),
        final_norm=norm,
        head=layers.tied_head() if tied else layers.head(),
        features=features,
        vocab_size=vocab_size,
    )


def qwen3_next_80b_a3b() -> fdl.Partial:
    """79,674,391,296 parameters, without the module that predicts a token more."""
    return qwen3_next(
        features=2048,  # hidden_size
        # num_hidden_layers, full_attention_interval
        full=[False, False, False, True] * 12,
        sparse=[True] * 48,  # num_hidden_layers, decoder_sparse_step
        num_heads=16,  # num_attention_heads
        num_kv_heads=2,  # num_key_value_heads
        head_dim=256,  # head_dim
        num_key_heads=16,  # linear_num_key_heads
        num_value_heads=32,  # linear_num_value_heads
        key_dim=128,  # linear_key_head_dim
        value_dim=128,  # linear_value_head_dim
        taps=4,  # linear_conv_kernel_dim
        mlp=5120,  # intermediate_size
        expert_mlp=512,  # moe_intermediate_size
        shared_mlp=512,  # shared_expert_intermediate_size
        num_experts=512,  # num_experts
        experts_per_token=10,  # num_experts_per_tok
        vocab_size=151936,  # vocab_size
    )


_KINDS = {"full_attention": True, "linear_attention": False}


def from_hf(config: Mapping[str, Any]) -> fdl.Partial:
    """Returns the graph of a normalised config.json."""
    return qwen3_next(
        features=config["hidden_size"],
        full=_full_from_hf(config),
        sparse=moe.sparse_from_hf(config, config["num_experts"]),
        num_heads=config["num_attention_heads"],
        num_kv_heads=config["num_key_value_heads"],
        head_dim=config["head_dim"],
        num_key_heads=config["linear_num_key_heads"],
        num_value_heads=config["linear_num_value_heads"],
        key_dim=config["linear_key_head_dim"],
        value_dim=config["linear_value_head_dim"],
        taps=config["linear_conv_kernel_dim"],
        mlp=config["intermediate_size"],
        expert_mlp=config["moe_intermediate_size"],
        shared_mlp=config["shared_expert_intermediate_size"],
        num_experts=config["num_experts"],
        experts_per_token=config["num_experts_per_tok"],
        vocab_size=config["vocab_size"],
        renormalise=config["norm_topk_prob"],
        norm_epsilon=config["rms_norm_eps"],
        rope=ropes.from_hf(
            config["rope_parameters"], config["max_position_embeddings"]
        ),
        tied=config["tie_word_embeddings"],
        activation=activation_from_hf(config["hidden_act"]),
        attention_bias=config["attention_bias"],
    )


def _full_from_hf(config: Mapping[str, Any]) -> list[bool]:
    types = config["layer_types"]
    unknown = sorted(set(types) - _KINDS.keys())
    if unknown:
        raise UserError(
            f"layer_types ({', '.join(unknown)}) must be {' or '.join(_KINDS)}."
        )
    if len(types) != config["num_hidden_layers"]:
        raise UserError(
            f"layer_types has {len(types)} entries and num_hidden_layers is"
            f" {config['num_hidden_layers']}; they must agree."
        )
    if (
        "linear_attention" in types
        and activation_from_hf(config["hidden_act"]) != "silu"
    ):
        raise UserError(
            f"hidden_act ({config['hidden_act']}) must be silu, for layer_types has"
            " linear_attention, whose convolutions it follows too."
        )
    return [_KINDS[each] for each in types]


def to_hf(model: fdl.Partial) -> dict[str, Any]:
    """Returns the config.json that `from_hf` reads as `model`, if it is Qwen3-Next.

    Keys of kinds of layers that there are none of are left out.
    """
    found = layers_of(model)
    is_full = [fdl.get_callable(x.attention) is nnx.Attention for x in found]
    names = {full: name for name, full in _KINDS.items()}
    written = {
        "architectures": ["Qwen3NextForCausalLM"],
        "model_type": "qwen3_next",
        "hidden_size": model.features,
        "num_hidden_layers": len(found),
        "layer_types": [names[each] for each in is_full],
        **moe.sparse_to_hf(model),
        "vocab_size": model.vocab_size,
        "rms_norm_eps": model.final_norm.epsilon,
        "tie_word_embeddings": is_tied(model),
        "hidden_act": activation_to_hf(moe.glu_of(found[0]).activation),
    }
    attentions = {full: x.attention for full, x in zip(is_full, found, strict=True)}
    if True in attentions:
        written |= _full_to_hf(attentions[True])
    if False in attentions:
        written |= _linear_to_hf(attentions[False])
    dense, sparse = moe.kinds_of(model)
    if dense is not None:
        written["intermediate_size"] = dense.mlp.hidden
    if sparse is not None:
        routing = sparse.mlp.router.routing
        written |= {
            "num_experts": sparse.mlp.num_experts,
            "num_experts_per_tok": routing.k,
            "norm_topk_prob": routing.renormalise,
            "moe_intermediate_size": sparse.mlp.experts.hidden,
            "shared_expert_intermediate_size": sparse.mlp.shared.hidden,
        }
    return written


def _full_to_hf(attention: fdl.Partial) -> dict[str, Any]:
    # Written even where it is 1, for it is 0.25 where it is left out.
    fraction = {"partial_rotary_factor": attention.rope.fraction}
    return {
        "num_attention_heads": attention.num_heads,
        "num_key_value_heads": attention.num_kv_heads,
        "head_dim": attention.head_dim,
        "rope_parameters": ropes.to_hf(attention.rope) | fraction,
        "attention_bias": attention.query.use_bias,
    }


def _linear_to_hf(attention: fdl.Partial) -> dict[str, Any]:
    return {
        "linear_num_key_heads": attention.num_key_heads,
        "linear_num_value_heads": attention.num_value_heads,
        "linear_key_head_dim": attention.key_dim,
        "linear_value_head_dim": attention.value_dim,
        "linear_conv_kernel_dim": attention.convolution.width,
    }
