"""The formats of the compressed-tensors library, with a codec for each group."""

import dataclasses
import re
from collections.abc import Iterable, Mapping

import numpy as np

from maxfdl.outside import Choice, Either, Flag, Integer, Listing, Text, Values, shown
from maxfdl.tensors.quantized.codec import Block, Codec
from maxfdl.tensors.quantized.codes import Codes, Float4, Float8, Int8, PackedInt

_SCALE = "_scale"
_REGEX = "re:"
_EMBEDDINGS = ("embed_tokens", "wte")
_STRATEGIES = ("tensor", "channel", "group", "tensor_group", "block")
_POWERS = np.dtype(np.uint8)

Kind = tuple[str, int]
"""`int` or `float`, and the number of bits."""


@dataclasses.dataclass(frozen=True)
class Group:
    """Modules whose weights have the same codec.

    Args:
      targets: Their names, regular expressions that begin with `re:`, or classes such
        as `Linear`.
      codec: The codec.
    """

    targets: tuple[str, ...]
    codec: Codec


@dataclasses.dataclass(frozen=True)
class CompressedTensors:
    """Weights that have a `weight_scale` beside them.

    A target that names a module comes before one that names a class, whichever group
    it is in.

    Args:
      values: The `quantization_config`, for errors.
      groups: The groups.
      ignore: Modules that are in none, as targets name them.
    """

    values: Values
    groups: tuple[Group, ...]
    ignore: tuple[str, ...]

    def codecs(self, names: Iterable[str]) -> Mapping[str, Codec]:
        names = set(names)
        parts = {group.codec.codes.part for group in self.groups}
        scaled = (name.removesuffix(_SCALE) for name in names if name.endswith(_SCALE))
        weights = (
            name for name in scaled if any(name + part in names for part in parts)
        )
        return {name: self._codec(name) for name in sorted(weights)}

    def _codec(self, weight: str) -> Codec:
        module = weight.removesuffix(".weight")
        if any(_names(target, module) for target in self.ignore):
            raise self.values.wrong(
                f"ignore names {module}, whose weights are in few bits nevertheless"
            )
        for is_match in (_names, _is_class_of):
            for group in self.groups:
                if any(is_match(target, module) for target in group.targets):
                    return group.codec
        raise self.values.wrong(
            f"config_groups has no target for {module}, whose weights are in few bits"
        )


def compressed_tensors(values: Values) -> CompressedTensors:
    """Returns the scheme of a `quantization_config` of compressed-tensors."""
    for key in ("sparsity_config", "transform_config"):
        inside = values.within(key)
        if inside.content and inside.content.get("format") != "dense":
            raise values.wrong(
                f"{key} must be empty, for weights that are sparse or rotated are not"
                " read"
            )
    name = values.take("format", Text(), default="dense")
    groups = values.within("config_groups")
    made = [_group(groups.within(key), name) for key in groups.content]
    ignore = values.take("ignore", Listing(Text()), default=None) or []
    for target in (*ignore, *(target for group in made for target in group.targets)):
        _check_target(values, target)
    return CompressedTensors(values, tuple(made), tuple(ignore))


def _group(values: Values, name: str) -> Group:
    targets = values.take("targets", Listing(Text()))
    weights = values.within("weights")
    own = values.take("format", Text(), default=None) or name
    kind = (
        weights.take("type", Choice(("int", "float")), default="int"),
        weights.take("num_bits", Integer(least=1, most=8), default=8),
    )
    return Group(tuple(targets), _codec(values, own, kind, weights))


def _codec(values: Values, name: str, kind: Kind, weights: Values) -> Codec:
    codes = _codes(values, name, kind)
    symmetric = weights.take("symmetric", Flag(), default=True)
    order = weights.take("actorder", Either(Text(), Flag()), default=None)
    if order in ("group", "dynamic", True):
        raise weights.wrong(
            f"actorder ({shown(order)}) must be another: columns that are in groups by"
            " an index are not read"
        )
    strategy, block = _block(weights)
    packs_zeros = isinstance(codes, PackedInt) and strategy in ("group", "channel")
    zeros = codes if packs_zeros else Int8()
    return Codec(
        codes,
        block,
        scale=_SCALE,
        scale_dtype=_POWERS if name.startswith("mx") else np.dtype(np.float32),
        zeros=None if symmetric else zeros,
        global_scale=name == "nvfp4-pack-quantized",
    )


def _codes(values: Values, name: str, kind: Kind) -> Codes:
    whole, bits = kind[0] == "int", kind[1]
    match name:
        case "int-quantized" | "naive-quantized" if whole:
            return Int8(bits)
        case "pack-quantized" if whole:
            return PackedInt(bits)
        case "float-quantized" | "naive-quantized" | "mxfp8-quantized" if bits == 8:
            return Float8()
        case "nvfp4-pack-quantized" | "mxfp4-pack-quantized" if bits == 4:
            return Float4()
    raise values.wrong(
        f"format ({name}, {kind[0]} of {bits} bits) must be one of int-quantized,"
        " pack-quantized, float-quantized, naive-quantized, mxfp8-quantized,"
        " mxfp4-pack-quantized and nvfp4-pack-quantized, for numbers of their kind"
    )


def _block(weights: Values) -> tuple[str, Block]:
    """Returns the strategy, and what has one scale by it."""
    size = weights.take("group_size", Integer(least=-1), default=None)
    implied = "tensor" if size is None else "channel" if size == -1 else "group"
    strategy = weights.take("strategy", Choice(_STRATEGIES), default=None) or implied
    match strategy:
        case "tensor":
            return strategy, Block(None, None)
        case "channel":
            return strategy, Block(1, None)
        case "block":
            return strategy, Block(*_sides(weights))
    if size is None or size < 1:
        raise weights.wrong(f"group_size ({shown(size)}) must be positive for groups")
    return strategy, Block(1, size)


def _sides(weights: Values) -> list[int]:
    pair = Listing(Integer(least=1), length=2)
    found = weights.take("block_structure", Either(pair, Text()))
    if isinstance(found, str):  # as older files have it: "128x128"
        sides = [int(each) for each in found.split("x") if each.isdecimal()]
        if not pair.fits(sides):
            raise weights.wrong(f"block_structure ({shown(found)}) must be {pair}")
        return sides
    return found


def _check_target(values: Values, target: str) -> None:
    try:
        re.compile(target.removeprefix(_REGEX))
    except re.error as error:
        if target.startswith(_REGEX):
            raise values.wrong(
                f"{shown(target)} must be a regular expression after {_REGEX}, but"
                f" {error}"
            ) from None


def _names(target: str, module: str) -> bool:
    if target.startswith(_REGEX):
        return re.match(target.removeprefix(_REGEX), module) is not None
    return target == module


def _is_class_of(target: str, module: str) -> bool:
    if "." in target or target.startswith(_REGEX):
        return False
    return (target == "Embedding") == module.endswith(_EMBEDDINGS)
