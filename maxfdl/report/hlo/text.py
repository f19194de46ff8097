"""The text of a compiled program: computations, instructions and types of arrays."""

import dataclasses
import functools
import itertools
import math
import re

from maxfdl.ops.cost import expected_flops

KINDS = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)

_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?")
_ASSIGNMENT = re.compile(r"\s+(?:ROOT )?%?([\w.-]+) = (.*)")
_HEADER = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\{$")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """`name = type opcode(operands), attributes`."""

    name: str
    type: str
    opcode: str
    operands: str
    attributes: str
    is_root: bool = False

    @functools.cached_property
    def operand_names(self) -> list[str]:
        return re.findall(r"%([\w.-]+)", self.operands)

    @property
    def kind(self) -> str:
        """The opcode; of the two halves of an asynchronous one, that of the first."""
        return self.opcode.removesuffix("-start")

    @property
    def size(self) -> int:
        return num_bytes(self.type)

    @property
    def called(self) -> list[str]:
        """The computations that it runs."""
        names = r"(?:calls|to_apply|body|condition)=%?([\w.-]+)"
        below = re.findall(names, self.attributes)
        return below + (self.branches if self.opcode == "conditional" else [])

    @property
    def branches(self) -> list[str]:
        """The computations of which a conditional runs one."""
        names = self.attribute(r"branch_computations=\{(.*?)\}")
        if names is None:
            either = r"(?:true|false)_computation=%?([\w.-]+)"
            return re.findall(either, self.attributes)
        return re.findall(r"[\w.-]+", names)

    @property
    def source(self) -> str:
        """What it was written as: JAX's name stack, such as
        `jit(step)/jvp()/while/body/dot_general`."""
        return self.attribute(r'op_name="([^"]*)"') or ""

    @property
    def expected_flops(self) -> int | None:
        """What it is expected to do, see `maxfdl.ops.cost.expect_flops`."""
        return expected_flops(self.source)

    def attribute(self, pattern: str) -> str | None:
        found = re.search(pattern, self.attributes)
        return found and found.group(1)


class Module:
    """The computations of a program by name, and the instructions of each by name."""

    def __init__(self, text: str):
        counts = re.findall(
            r"(?:num_partitions|replica_count)=(\d+)", text.partition("\n")[0]
        )
        self.num_devices = math.prod(map(int, counts))
        self.computations: dict[str, dict[str, Instruction]] = {}
        for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
            header = _HEADER.match(line)
            if header:
                current = self.computations.setdefault(header.group(2), {})
                if header.group(1):
                    self.entry = header.group(2)
            elif instruction := _parse(line):
                current[instruction.name] = instruction

    def operand_types(self, instruction: Instruction, computation: str) -> list[str]:
        inside = self.computations[computation]
        return [inside[n].type for n in instruction.operand_names if n in inside]


def _parse(line: str) -> Instruction | None:
    found = _ASSIGNMENT.match(line)
    if not found:
        return None
    name, rest = found.groups()
    end = _closing(rest) if rest.startswith("(") else rest.index(" ")
    type_, rest = rest[:end], rest[end:].lstrip()
    opening = rest.index("(")
    closing = opening + _closing(rest[opening:])
    operands, attributes = rest[opening + 1 : closing - 1], rest[closing:]
    is_root = line.lstrip().startswith("ROOT ")
    return Instruction(name, type_, rest[:opening], operands, attributes, is_root)


def _closing(text: str) -> int:
    """Returns where the parenthesis that `text` starts with has been closed."""
    depths = itertools.accumulate((c == "(") - (c == ")") for c in text)
    return next(i for i, depth in enumerate(depths) if depth == 0) + 1


def arrays(type_: str) -> list[tuple[str, list[int]]]:
    """Returns element type and shape of each array in a type."""
    return [
        (dtype, [int(n) for n in dims.split(",") if n])
        for dtype, dims, _ in _ARRAY.findall(type_)
    ]


def shape(type_: str) -> list[int]:
    ((_, dims),) = arrays(type_)
    return dims


def num_bytes(type_: str) -> int:
    """Returns the bytes of all arrays in a type, without padding."""
    bits = 0
    for dtype, dims in arrays(type_):
        width = re.match(r"[a-z]+(\d+)", dtype)  # None for pred, which has a byte.
        bits += math.prod(dims) * (int(width.group(1)) if width else 8)
    return bits // 8


def bytes_in_hbm(type_: str) -> list[int]:
    """Returns the bytes of each array in a type that lie in the main memory.

    A TPU program marks other memory in the layout: `S(1)` is on the chip.
    """
    return [
        0 if re.search(r"S\([1-9]", layout) else num_bytes(f"{dtype}[{dims}]")
        for dtype, dims, layout in _ARRAY.findall(type_)
    ]


def ints(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]
