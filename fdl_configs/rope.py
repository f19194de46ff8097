"""Rotary embeddings as `rope_parameters` of a Hugging Face config.json names them."""

import math
from collections.abc import Mapping
from typing import Any

import fiddle as fdl

from maxfdl.errors import UserError
from maxfdl.ops.rope import (
    LinearRope,
    Llama3Rope,
    LongRope,
    Rope,
    YarnRope,
    yarn_magnitude,
)


def from_hf(
    parameters: Mapping[str, Any], max_length: int, **fields: Any
) -> fdl.Config[Rope]:
    """Returns the rotation that `parameters` describe.

    Args:
      parameters: `rope_parameters`, of one kind of layer where a model has several.
      max_length: `max_position_embeddings`, which some kinds fall back on.
      fields: Fields that the model fixes, such as `layout="pairs"`.
    """
    kind = parameters["rope_type"]
    if kind not in _READ:
        raise UserError(
            f"rope_type ({kind}) must be one of {', '.join(sorted(_READ))}."
        )
    for key in _NEEDED.get(kind, ()):
        if parameters.get(key) is None:
            raise UserError(f"{key} is missing, which rope_type ({kind}) needs.")
    fields["theta"] = float(parameters["rope_theta"])
    if parameters.get("partial_rotary_factor", 1.0) != 1.0:
        fields["fraction"] = parameters["partial_rotary_factor"]
    return _READ[kind](parameters, max_length, fields)


def _default(parameters, max_length, fields):
    return fdl.Config(Rope, **fields)


def _linear(parameters, max_length, fields):
    return fdl.Config(LinearRope, factor=float(parameters["factor"]), **fields)


def _llama3(parameters, max_length, fields):
    return fdl.Config(
        Llama3Rope,
        factor=float(parameters["factor"]),
        low=float(parameters["low_freq_factor"]),
        high=float(parameters["high_freq_factor"]),
        original_length=parameters["original_max_position_embeddings"],
        **fields,
    )


def _yarn(parameters, max_length, fields):
    factor = float(parameters["factor"])
    magnitude = parameters.get("attention_factor")
    both = parameters.get("mscale"), parameters.get("mscale_all_dim")
    if magnitude is None and all(both):
        magnitude = yarn_magnitude(factor, both[0]) / yarn_magnitude(factor, both[1])
    if magnitude is None:
        magnitude = yarn_magnitude(factor)
    return fdl.Config(
        YarnRope,
        factor=factor,
        original_length=parameters.get("original_max_position_embeddings", max_length),
        beta_fast=float(parameters.get("beta_fast") or 32.0),
        beta_slow=float(parameters.get("beta_slow") or 1.0),
        truncate=parameters.get("truncate", True),
        attention_factor=magnitude,
        **fields,
    )


def _longrope(parameters, max_length, fields):
    original = parameters["original_max_position_embeddings"]
    factor = parameters.get("factor") or max_length / original
    magnitude = parameters.get("attention_factor")
    if magnitude is None:
        growth = math.log(factor) / math.log(original) if factor > 1 else 0.0
        magnitude = math.sqrt(1 + growth)
    return fdl.Config(
        LongRope,
        short_factors=tuple(map(float, parameters["short_factor"])),
        long_factors=tuple(map(float, parameters["long_factor"])),
        original_length=original,
        attention_factor=magnitude,
        **fields,
    )


_READ = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}
_NEEDED = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor"),
}


def to_hf(rope: fdl.Config[Rope]) -> dict[str, Any]:
    """Returns the `rope_parameters` that `from_hf` reads as `rope`."""
    kind = _KIND[fdl.get_callable(rope)]
    built = fdl.build(rope)
    written: dict[str, Any] = {"rope_type": kind, "rope_theta": built.theta}
    if built.fraction != 1.0:
        written["partial_rotary_factor"] = built.fraction
    for field, name in _NAMES.items():
        if hasattr(built, field):
            value = getattr(built, field)
            written[name] = list(value) if isinstance(value, tuple) else value
    return written


_KIND = {
    Rope: "default",
    LinearRope: "linear",
    Llama3Rope: "llama3",
    YarnRope: "yarn",
    LongRope: "longrope",
}
_NAMES = {
    "factor": "factor",
    "low": "low_freq_factor",
    "high": "high_freq_factor",
    "original_length": "original_max_position_embeddings",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "truncate": "truncate",
    "short_factors": "short_factor",
    "long_factors": "long_factor",
    "attention_factor": "attention_factor",
}
