"""What `from_hf` and `to_hf` of the families share."""

from collections.abc import Mapping
from typing import Any

import fiddle as fdl

from fdl_configs import rope
from maxfdl.errors import UserError
from maxfdl.layers import nnx
from maxfdl.ops.activation import Activation
from maxfdl.ops.mask import SlidingWindow

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    # Other names of the same, which are read and not written.
    "swish": "silu",
    "gelu_new": "gelu_tanh",
}


def activation_from_hf(name: str) -> Activation:
    """Returns our name of what config.json calls `hidden_act`."""
    if name not in _ACTIVATIONS:
        raise UserError(
            f"hidden_act ({name}) must be one of {', '.join(sorted(_ACTIVATIONS))}."
        )
    return _ACTIVATIONS[name]


def activation_to_hf(name: Activation) -> str:
    """Returns the first of their names that `activation_from_hf` reads as `name`."""
    return next(theirs for theirs, ours in _ACTIVATIONS.items() if ours == name)


def widths_from_hf(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments that the functions of most families have in common."""
    return {
        "features": config["hidden_size"],
        "num_heads": config["num_attention_heads"],
        "num_kv_heads": config["num_key_value_heads"],
        "head_dim": config["head_dim"],
        "mlp": config["intermediate_size"],
        "vocab_size": config["vocab_size"],
        "tied": config["tie_word_embeddings"],
    }


def widths_to_hf(model: fdl.Partial) -> dict[str, Any]:
    """Returns what `widths_from_hf` reads, and the number of layers."""
    hidden = layers_of(model)[0].mlp.hidden
    return {**shape_to_hf(model), "intermediate_size": hidden}


def shape_to_hf(model: fdl.Partial) -> dict[str, Any]:
    """Returns the widths of a model of any feed-forward layers, and how many layers."""
    layers = layers_of(model)
    attention = layers[0].attention
    return {
        "hidden_size": model.features,
        "num_hidden_layers": len(layers),
        "num_attention_heads": attention.num_heads,
        "num_key_value_heads": attention.num_kv_heads,
        "head_dim": attention.head_dim,
        "vocab_size": model.vocab_size,
        "tie_word_embeddings": is_tied(model),
    }


def windows_from_hf(config: Mapping[str, Any]) -> list[int | None]:
    """Returns the window of each layer, None where it sees everything before it."""
    kinds = {"full_attention": None, "sliding_attention": config["sliding_window"]}
    types = config["layer_types"]
    unknown = sorted(set(types) - kinds.keys())
    if unknown:
        raise UserError(
            f"layer_types ({', '.join(unknown)}) must be {' or '.join(kinds)}."
        )
    if len(types) != config["num_hidden_layers"]:
        raise UserError(
            f"layer_types has {len(types)} entries and num_hidden_layers is"
            f" {config['num_hidden_layers']}; they must agree."
        )
    if "sliding_attention" in types and config["sliding_window"] is None:
        raise UserError(
            "sliding_window (None) must be a number of tokens, for layer_types has"
            " sliding_attention; where there is use_sliding_window, it must be true."
        )
    return [kinds[each] for each in types]


def windows_to_hf(model: fdl.Partial) -> dict[str, Any]:
    """Returns what `windows_from_hf` reads, besides the number of layers."""
    windows = [window_of(layer) for layer in layers_of(model)]
    return {
        "sliding_window": next((each for each in windows if each is not None), None),
        "layer_types": [
            "full_attention" if each is None else "sliding_attention"
            for each in windows
        ],
    }


def window_of(layer: fdl.Partial) -> int | None:
    """Returns how many tokens a layer sees, None for all."""
    mask = layer.attention.mask
    return mask.window if fdl.get_callable(mask) is SlidingWindow else None


def ropes_to_hf(model: fdl.Partial) -> dict[str, Any]:
    """Returns `rope_parameters` by type of layer; a type without layers has any."""
    layers = layers_of(model)
    ropes = {window_of(layer) is None: layer.attention.rope for layer in layers}
    either = next(iter(ropes.values()))
    return {
        "full_attention": rope.to_hf(ropes.get(True, either)),
        "sliding_attention": rope.to_hf(ropes.get(False, either)),
    }


def scale_to_hf(scale: float) -> int:
    """Returns the whole number whose power -0.5 is `scale`, if there is one."""
    return round(scale**-2)


def only_causal(config: Mapping[str, Any]) -> None:
    """Refuses a model that sees what comes later, as encoders do."""
    if config.get("use_bidirectional_attention"):
        raise UserError(
            "use_bidirectional_attention (True) must be false: there is only causal"
            " attention here."
        )


def layers_of(model: fdl.Partial) -> list[fdl.Partial]:
    """Returns the layers of a Transformer one by one, in order."""
    return [
        layer
        for stack in model.decoder.stacks
        for layer in stack.layers * stack.repeats
    ]


def is_tied(model: fdl.Partial) -> bool:
    return fdl.get_callable(model.head) is nnx.TiedHead
