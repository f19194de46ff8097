"""Mixtures of experts, as graphs of the NNX family."""

from collections.abc import Mapping
from typing import Any

import fiddle as fdl

from fdl_configs.hf_parts import layers_of
from fdl_configs.layers import linear
from maxfdl.errors import UserError
from maxfdl.layers import nnx
from maxfdl.ops.experts import Dropless
from maxfdl.ops.glu import Glu
from maxfdl.ops.grouped_dot import GroupedDot
from maxfdl.ops.initializers import FanIn
from maxfdl.ops.routing import GroupLimit, TopK


def routing(k: int, **fields: Any) -> fdl.Config:
    """The `k` best experts; `fields` are others of `TopK`."""
    return fdl.Config(TopK, k=k, **fields)


def group_limit(groups: int | None, kept: int | None, best: int) -> fdl.Config | None:
    """A limit to some of several groups; None where a token may go to any.

    There is none either where all groups are kept or no number is given.
    """
    if not groups or not kept or kept >= groups:
        return None
    return fdl.Config(GroupLimit, groups=groups, kept=kept, best=best)


def router(routing: fdl.Config, **fields: bool) -> fdl.Partial:
    """`fields` may be `use_bias` and `use_selection_bias`."""
    return fdl.Partial(
        nnx.Router, routing=routing, initializer=fdl.Config(FanIn), **fields
    )


def experts(
    hidden: int, *, glu: fdl.Config | None = None, bias: bool = False, **fields: str
) -> fdl.Partial:
    """Experts that see all tokens meant for them; SwiGLU unless `glu` differs.

    `fields` may be `weighted`.
    """
    return fdl.Partial(
        nnx.Experts,
        gate=_grouped_linear(bias),
        up=_grouped_linear(bias),
        down=_grouped_linear(bias),
        hidden=hidden,
        glu=glu or fdl.Config(Glu),
        dispatch=fdl.Config(Dropless),
        **fields,
    )


def _grouped_linear(use_bias: bool) -> fdl.Partial:
    parts = dict(dot=fdl.Config(GroupedDot), initializer=fdl.Config(FanIn))
    if not use_bias:
        return fdl.Partial(nnx.GroupedLinear, **parts)
    return fdl.Partial(nnx.GroupedLinear, use_bias=True, **parts)


def moe(
    *,
    num_experts: int,
    router: fdl.Partial,
    experts: fdl.Partial,
    shared: fdl.Partial | None = None,
    gated: bool = False,
) -> fdl.Partial:
    """A mixture; with `gated`, a gate of its own scales what `shared` gives."""
    parts = {}
    if shared is not None:
        parts["shared"] = shared
    if gated:
        parts["shared_gate"] = linear()
    return fdl.Partial(
        nnx.MoE, num_experts=num_experts, router=router, experts=experts, **parts
    )


def is_moe(layer: fdl.Partial) -> bool:
    """Says whether a decoder layer has a mixture of experts."""
    return fdl.get_callable(layer.mlp) is nnx.MoE


def glu_of(layer: fdl.Partial) -> fdl.Config:
    """Returns how a layer makes hidden features, with experts or without."""
    return layer.mlp.experts.glu if is_moe(layer) else layer.mlp.glu


def kinds_of(model: fdl.Partial) -> tuple[fdl.Partial | None, fdl.Partial | None]:
    """Returns the first layer without experts and the first with; None: none is."""
    layers = layers_of(model)
    dense = next((layer for layer in layers if not is_moe(layer)), None)
    return dense, next((layer for layer in layers if is_moe(layer)), None)


def groups_from_hf(config: Mapping[str, Any]) -> dict[str, int]:
    """Returns `groups` and `kept` of a router that chooses groups of experts first."""
    groups, kept = config["n_group"], config["topk_group"]
    experts = config["n_routed_experts"]
    if not groups or experts % groups:
        raise UserError(f"n_group ({groups}) must divide n_routed_experts ({experts}).")
    if not kept or kept > groups:
        raise UserError(f"topk_group ({kept}) must be from 1 to n_group ({groups}).")
    return {"groups": groups, "kept": kept}


def shared_from_hf(config: Mapping[str, Any]) -> int:
    """Returns how many experts see all tokens."""
    if not config["n_shared_experts"]:
        raise UserError(
            f"n_shared_experts ({config['n_shared_experts']}) must be at least 1."
        )
    return config["n_shared_experts"]


def sparse_from_hf(config: Mapping[str, Any], num_experts: int) -> list[bool]:
    """Returns which layers have experts, as Qwen's config.json says it."""
    dense, step = config["mlp_only_layers"], config["decoder_sparse_step"]
    return [
        num_experts > 0 and layer not in dense and (layer + 1) % step == 0
        for layer in range(config["num_hidden_layers"])
    ]


def sparse_to_hf(model: fdl.Partial) -> dict[str, Any]:
    """Returns what `sparse_from_hf` reads, besides the number of layers."""
    layers = enumerate(layers_of(model))
    dense = [number for number, layer in layers if not is_moe(layer)]
    return {"mlp_only_layers": dense, "decoder_sparse_step": 1}
