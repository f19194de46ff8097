"""Llama 4, its text part.

Meta 2025, https://ai.meta.com/blog/llama-4-multimodal-intelligence.

Numbers are those of `text_config` in the config.json of
meta-llama/Llama-4-Scout-17B-16E and meta-llama/Llama-4-Maverick-17B-128E on Hugging
Face.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

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
from maxfdl.layers import nnx
from maxfdl.ops.activation import Activation
from maxfdl.ops.glu import Glu
from maxfdl.ops.mask import Chunked
from maxfdl.ops.rope import Llama3Rope
from maxfdl.ops.temperature import LogTemperature


class Kind(NamedTuple):
    """What tells one layer from another.

    Args:
      turns: Whether queries and keys turn by position.
      chunk: Length of the chunks that attention stays within; None: no chunks.
      sparse: Whether there are experts.
    """

    turns: bool
    chunk: int | None
    sparse: bool


def llama4(
    *,
    features: int,
    kinds: Sequence[Kind],
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    mlp: int,
    dense_mlp: int,
    num_experts: int,
    experts_per_token: int = 1,
    vocab_size: int,
    rope: fdl.Config,
    temperature: fdl.Config | None = None,
    head_norms: bool = True,
    norm_epsilon: float = 1e-5,
    tied: bool = False,
    activation: Activation = "silu",
    attention_bias: bool = False,
) -> fdl.Partial:
    """A decoder of several kinds of layers; sigmoid scores weigh what experts see.

    Args:
      kinds: Of each layer.
      mlp: Hidden width of an expert, and of the one that sees all tokens.
      dense_mlp: Hidden width of a layer without experts.
      rope: Rotation, in layers that turn.
      temperature: Scaling of queries by position, in layers that do not.
      head_norms: Whether queries and keys that turn are normalised, head by head.
    """

    @functools.cache
    def layer(kind: Kind) -> fdl.Partial:
        if kind.sparse:
            glu = fdl.Config(Glu, activation=activation)
            feed_forward = moe.moe(
                num_experts=num_experts,
                router=moe.router(moe.routing(experts_per_token, score="sigmoid")),
                experts=moe.experts(mlp, glu=glu, weighted="input"),
                shared=layers.gated_mlp(mlp, activation),
            )
        else:
            feed_forward = layers.gated_mlp(dense_mlp, activation)
        parts = {}
        if kind.turns and head_norms:
            # transformers normalises what has turned; turning keeps the length.
            norm = fdl.Partial(nnx.UnitRMSNorm, epsilon=norm_epsilon)
            parts["query_norm"] = parts["key_norm"] = layers.per_head(norm)
        if not kind.turns and temperature is not None:
            parts["temperature"] = temperature
        return layers.pre_norm_layer(
            norm=layers.rms_norm(norm_epsilon),
            attention=layers.attention(
                num_heads=num_heads,
                num_kv_heads=num_kv_heads,
                head_dim=head_dim,
                rope=rope if kind.turns else None,
                mask=None if kind.chunk is None else layers.chunked(kind.chunk),
                bias=attention_bias,
                out_bias=attention_bias,
                **parts,
            ),
            mlp=feed_forward,
        )

    return layers.transformer(
        embedding=layers.embedding(),
        decoder=layers.decoder([layer(kind) for kind in kinds]),
        final_norm=layers.rms_norm(norm_epsilon),
        head=layers.tied_head() if tied else layers.head(),
        features=features,
        vocab_size=vocab_size,
    )


def llama4_17b_16e() -> fdl.Partial:
    """107,769,861,120 parameters: Scout.

    Published as 108,641,793,536, of which 871,932,416 are of its vision part.
    """
    return _published(
        num_experts=16,  # num_local_experts
        moe_step=1,  # interleave_moe_layer_step
        head_norms=True,  # use_qk_norm
        rope=fdl.Config(
            Llama3Rope,
            theta=500_000.0,  # rope_theta
            factor=16.0,  # rope_scaling.factor
            low=1.0,  # rope_scaling.low_freq_factor
            high=1.0,  # rope_scaling.high_freq_factor
            original_length=8192,  # rope_scaling.original_max_position_embeddings
            layout="pairs",
        ),
    )


def llama4_17b_128e() -> fdl.Partial:
    """400,711,848,960 parameters: Maverick.

    Published as 401,583,781,376, of which 871,932,416 are of its vision part.
    """
    rope = layers.rope(500_000.0)  # rope_theta
    rope.layout = "pairs"
    return _published(
        num_experts=128,  # num_local_experts
        moe_step=2,  # interleave_moe_layer_step
        head_norms=False,  # use_qk_norm
        rope=rope,
    )


def _published(
    num_experts: int, moe_step: int, head_norms: bool, rope: fdl.Config
) -> fdl.Partial:
    """What both sizes have in common."""
    turns = [True, True, True, False] * 12  # no_rope_layers, num_hidden_layers
    chunk = 8192  # attention_chunk_size
    return llama4(
        features=5120,  # hidden_size
        kinds=[
            Kind(turns, chunk if turns else None, number % moe_step == 0)
            for number, turns in enumerate(turns, start=1)
        ],
        num_heads=40,  # num_attention_heads
        num_kv_heads=8,  # num_key_value_heads
        head_dim=128,  # head_dim
        mlp=8192,  # intermediate_size
        dense_mlp=16384,  # intermediate_size_mlp
        num_experts=num_experts,
        experts_per_token=1,  # num_experts_per_tok
        vocab_size=202048,  # vocab_size
        rope=rope,
        # attn_scale, floor_scale
        temperature=fdl.Config(LogTemperature, scale=0.1, floor=8192),
        head_norms=head_norms,
    )


def from_hf(config: Mapping[str, Any]) -> fdl.Partial:
    """Returns the graph of a normalised config.json."""
    rope = ropes.from_hf(
        config["rope_parameters"], config["max_position_embeddings"], layout="pairs"
    )
    if config["use_qk_norm"] and fdl.build(rope).magnitude() != 1.0:
        raise UserError(
            f"rope_type ({config['rope_parameters']['rope_type']}) must be one that"
            " keeps lengths where use_qk_norm is true, such as llama3."
        )
    temperature = None
    if config["attn_temperature_tuning"]:
        scale, floor = config["attn_scale"], config["floor_scale"]
        temperature = fdl.Config(LogTemperature, scale=scale, floor=floor)
    return llama4(
        **widths_from_hf(config),
        kinds=_kinds_from_hf(config),
        dense_mlp=config["intermediate_size_mlp"],
        num_experts=config["num_local_experts"],
        experts_per_token=config["num_experts_per_tok"],
        rope=rope,
        temperature=temperature,
        head_norms=config["use_qk_norm"],
        norm_epsilon=config["rms_norm_eps"],
        activation=activation_from_hf(config["hidden_act"]),
        attention_bias=config["attention_bias"],
    )


def _kinds_from_hf(config: Mapping[str, Any]) -> list[Kind]:
    types, turns = config["layer_types"], config["no_rope_layers"]
    count, chunk = config["num_hidden_layers"], config["attention_chunk_size"]
    chunks = {"full_attention": None, "chunked_attention": chunk}
    if not set(types) <= chunks.keys():
        raise UserError(
            f"layer_types ({', '.join(sorted(set(types)))}) must be"
            f" {' or '.join(chunks)}."
        )
    for name, given in {"no_rope_layers": turns, "layer_types": types}.items():
        if len(given) != count:
            raise UserError(
                f"{name} has {len(given)} entries and num_hidden_layers is {count};"
                " they must agree."
            )
    if chunk is None and "chunked_attention" in types:
        raise UserError(
            "attention_chunk_size (None) must be a number of tokens, for layer_types"
            " has chunked_attention."
        )
    return [
        Kind(bool(turns[layer]), chunks[types[layer]], layer in config["moe_layers"])
        for layer in range(count)
    ]


def to_hf(model: fdl.Partial) -> dict[str, Any]:
    """Returns the config.json that `from_hf` reads as `model`, if it is a Llama 4."""
    all_layers = layers_of(model)
    layer = all_layers[0]
    attentions = [each.attention for each in all_layers]
    dense, sparse = moe.kinds_of(model)
    written = {
        "architectures": ["Llama4ForCausalLM"],
        "model_type": "llama4_text",
        **shape_to_hf(model),
        **_attentions_to_hf(attentions),
        "moe_layers": [i for i, each in enumerate(all_layers) if moe.is_moe(each)],
        "rms_norm_eps": model.final_norm.epsilon,
        "hidden_act": activation_to_hf(moe.glu_of(layer).activation),
        "attention_bias": layer.attention.query.use_bias,
    }
    if dense is not None:
        written["intermediate_size_mlp"] = dense.mlp.hidden
    if sparse is not None:
        written |= {
            "intermediate_size": sparse.mlp.experts.hidden,
            "num_local_experts": sparse.mlp.num_experts,
            "num_experts_per_tok": sparse.mlp.router.routing.k,
        }
    return written


def _attentions_to_hf(attentions: Sequence[fdl.Partial]) -> dict[str, Any]:
    """Returns the keys that say how layers differ in attention."""
    chunks = [
        each.mask.size if fdl.get_callable(each.mask) is Chunked else None
        for each in attentions
    ]
    written = {
        "layer_types": [
            "full_attention" if chunk is None else "chunked_attention"
            for chunk in chunks
        ],
        # A 1 is a layer that turns, for all that the name says.
        "no_rope_layers": [int(each.rope is not None) for each in attentions],
        "use_qk_norm": any(each.query_norm is not None for each in attentions),
    }
    if any(chunks):
        written["attention_chunk_size"] = next(filter(None, chunks))
    ropes_used = [each.rope for each in attentions if each.rope is not None]
    if ropes_used:
        written["rope_parameters"] = ropes.to_hf(ropes_used[0])
    scalings = [each.temperature for each in attentions if each.temperature is not None]
    written["attn_temperature_tuning"] = bool(scalings)
    if scalings:
        written["attn_scale"] = scalings[0].scale
        written["floor_scale"] = scalings[0].floor
    return written
