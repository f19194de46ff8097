"""FLOPs of matrix products, as the programs of CPUs and of TPUs write them."""

import math
import re

from maxfdl.ops.cost import attention_kernel_flops
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

    See `maxfdl.ops.cost.attention_kernel_flops` and, where work depends on data,
    `expect_flops`.
    """
    kernel = instruction.name
    target = instruction.attribute(r'custom_call_target="([^"]*)"') or ""
    if not re.match(_OF_PRODUCTS, target) or kernel.startswith(_WITHOUT_PRODUCTS):
        return 0
    expected = instruction.expected_flops
    if expected is not None:
        return expected
    if is_ragged_dot(instruction):
        return 2 * math.prod(shape(operands[-2])) * shape(instruction.type)[-1]
    wide = [dims for type_ in operands for dtype, dims in arrays(type_) if "f" in dtype]
    return attention_kernel_flops(kernel, *wide[:3]) if len(wide) > 2 else None


def is_ragged_dot(instruction: Instruction) -> bool:
    """Returns whether it is the kernel that a TPU program makes of a `ragged_dot`.

    Its last two operands are the factors.
    """
    is_call = instruction.opcode == "custom-call"
    return is_call and instruction.name.startswith("ragged-dot-none")
