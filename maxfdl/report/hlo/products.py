"""FLOPs of matrix products, as the programs of CPUs and of TPUs write them."""

import math
import re

from maxfdl.report.hlo.text import Instruction, arrays, shape

_OF_PRODUCTS = r"tpu_custom_call|__cublas|__cudnn|triton|mosaic_gpu"
"""Targets of custom calls that may hide matrix products."""

_WITHOUT_PRODUCTS = ("ragged-dot-metadata",)


def flops_of_dot(instruction: Instruction, left: str) -> int:
    dims = instruction.attribute(r"lhs_contracting_dims=\{([\d,]*)\}") or ""
    depth = math.prod(shape(left)[int(dim)] for dim in dims.split(",") if dim)
    return 2 * math.prod(shape(instruction.type)) * depth


def flops_of_convolution(instruction: Instruction, left: str, right: str) -> int:
    """Counts the products that are not with padding.

    TPU programs write every matrix product as a convolution, and one with a batch dim
    as one whose window slides over mere padding.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    assert labels, instruction
    sizes = [
        dict(zip(names, shape(type_), strict=True))
        for names, type_ in zip(
            labels.groups(), (left, right, instruction.type), strict=True
        )
    ]
    inputs, kernel, outputs = sizes
    window = instruction.attribute(r"window=\{(.*?)\}") or ""
    count = outputs["b"] * outputs["f"] * kernel["i"]
    for place in range(len(outputs) - 2):
        dim = str(place)
        count *= _products(inputs[dim], kernel[dim], outputs[dim], window, place)
    groups = int(instruction.attribute(r"batch_group_count=(\d+)") or 1)
    return 2 * count // groups


def _products(inputs: int, kernel: int, outputs: int, window: str, place: int) -> int:
    """Returns how many pairs of output and kernel position meet an input."""

    def entry(name, default):
        found = re.search(rf"\b{name}=(\S+)", window)
        return found.group(1).split("x")[place] if found else default

    before = int(entry("pad", "0_0").split("_")[0])
    stride, spread = int(entry("stride", 1)), int(entry("lhs_dilate", 1))
    step = int(entry("rhs_dilate", 1))
    reach = (inputs - 1) * spread
    places = (
        o * stride + k * step - before for o in range(outputs) for k in range(kernel)
    )
    return sum(0 <= place <= reach and place % spread == 0 for place in places)


def flops_of_kernel(instruction: Instruction, operands: list[str]) -> int | None:
    """Returns the FLOPs behind a custom call; None if it may have some not known here.

    Attention costs what `DotProductAttention` says: half of the scores, which a causal
    mask leaves, and no recomputation inside a kernel. Splash attention has one kernel
    forward and two backward, `dq` and `dkv`.
    """
    kernel = instruction.name
    target = instruction.attribute(r'custom_call_target="([^"]*)"') or ""
    if not re.match(_OF_PRODUCTS, target) or kernel.startswith(_WITHOUT_PRODUCTS):
        return 0
    if is_ragged_dot(instruction):
        *_, (_, (rows, depth)), _ = map(_only_array, operands)
        return 2 * rows * depth * shape(instruction.type)[-1]
    attention = re.match(r"splash_m[hq]a_(fwd|dq|dkv)_", kernel)
    if attention:
        wide = [dims for dtype, dims in map(_only_array, operands) if "f" in dtype]
        queries, keys, values = wide[:3]
        *_, tokens, width = keys
        widths = {
            "fwd": width + values[-1],
            "dq": width,
            "dkv": width + 2 * values[-1],
        }
        return math.prod(queries[:-1]) * tokens * widths[attention.group(1)]
    return None


def is_ragged_dot(instruction: Instruction) -> bool:
    """Returns whether it is the kernel that a TPU program makes of a `ragged_dot`.

    Its last two operands are the factors.
    """
    is_call = instruction.opcode == "custom-call"
    return is_call and instruction.name.startswith("ragged-dot-none")


def _only_array(type_: str) -> tuple[str, list[int]]:
    (found,) = arrays(type_)
    return found
