"""How MaxText groups the layers of a decoder: in stacks of arrays, or one by one.

A scanned decoder keeps layers that are the same in stacks. Where a few kinds of layers
come in turn, a block has one stack for each place in the cycle. A decoder that is not
scanned has a path of its own for each layer.
"""

import dataclasses
from collections.abc import Callable

from maxfdl.errors import UserError
from maxfdl.tensors.maxtext.options import Options

_GEMMA3_CYCLE = 6  # five layers with a window, and one without


@dataclasses.dataclass(frozen=True)
class Group:
    """Layers under one path of MaxText.

    Args:
      path: The path.
      layers: Their numbers, counted over the whole decoder.
      is_stack: Whether they are one stack; if not, there is one layer.
      kind: Suffix of the names of its parts.
      has_rngs: Whether NNX keeps random streams here, and not in an earlier group that
        shares them.
    """

    path: str
    layers: tuple[int, ...]
    is_stack: bool
    kind: str = ""
    has_rngs: bool = True


Grouping = Callable[[int, Options, bool], list[Group]]
"""From number of layers, options, and whether layers are scanned, to groups."""


def plain(count: int, options: Options, scanned: bool) -> list[Group]:
    """One stack, or each layer under its number."""
    if scanned:
        return [Group("decoder/layers", tuple(range(count)), True)]
    return [Group(f"decoder/layers_{i}", (i,), False) for i in range(count)]


def in_cycles(count: int, options: Options, scanned: bool) -> list[Group]:
    """Blocks of `inhomogeneous_layer_cycle_interval` layers.

    Raises:
      UserError: If the number of layers is no multiple of it: MaxText leaves out the
        layers after the last whole block.
    """
    cycle = options["inhomogeneous_layer_cycle_interval"]
    if scanned and count % cycle:
        raise UserError(
            f"MaxText's num_decoder_layers ({count}) must be a multiple of"
            f" inhomogeneous_layer_cycle_interval ({cycle}) where layers are scanned."
        )
    return _cycles(count, cycle, scanned)


def in_forked_cycles(count: int, options: Options, scanned: bool) -> list[Group]:
    """The same for Qwen3-Next: members have another name, and random streams each."""
    return [
        dataclasses.replace(
            group,
            path=group.path.replace("layers/layers_", "layers/layer_"),
            has_rngs=True,
        )
        for group in in_cycles(count, options, scanned)
    ]


def _cycles(count: int, cycle: int, scanned: bool) -> list[Group]:
    """Layers after the last whole cycle are in a block that is no stack."""
    if not scanned:
        return plain(count, {}, scanned)
    whole = count // cycle * cycle
    block, after = "decoder/layers/layers_", "decoder/layers_remainder/layers_"
    stacks = [
        Group(f"{block}{i}", tuple(range(i, whole, cycle)), True, has_rngs=not i)
        for i in range(cycle if whole else 0)
    ]
    rest = [
        Group(f"{after}{i}", (whole + i,), False, has_rngs=not i)
        for i in range(count - whole)
    ]
    return stacks + rest


def of_gemma3(count: int, options: Options, scanned: bool) -> list[Group]:
    """Blocks of six, and the layers that are left."""
    return _cycles(count, _GEMMA3_CYCLE, scanned)


def in_pairs(count: int, options: Options, scanned: bool) -> list[Group]:
    """Gemma 2: a layer of MaxText is two, one with a window and one without."""
    kinds = ("_local", "_global")
    pairs = plain(count // 2, options, scanned)
    return [
        Group(
            each.path, tuple(2 * i + k for i in each.layers), each.is_stack, kind, not k
        )
        for each in pairs
        for k, kind in enumerate(kinds)
    ]


def dense_first(count: int, options: Options, scanned: bool) -> list[Group]:
    """DeepSeek: a stack of layers without experts, then one of layers with them."""
    dense = options["first_num_dense_layers"]
    parts = (("dense_layers", range(dense)), ("moe_layers", range(dense, count)))
    if scanned:
        return [
            Group(f"decoder/{name}", tuple(each), True) for name, each in parts if each
        ]
    return [
        Group(f"decoder/{name}_{i}", (number,), False)
        for name, each in parts
        for i, number in enumerate(each)
    ]
