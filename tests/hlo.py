"""Reads compiled programs: FLOPs and collectives, counted as often as they run.

XLA's own `cost_analysis` counts the body of a loop once. Here it counts once per trip,
for the text of CPU and of TPU programs. A kernel behind a custom call counts nothing,
and what a loop does whose trips depend on data is not a number.
"""

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Iterator

import numpy as np

KINDS = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)

_SCALAR = 1024
"""Bytes that a TPU program may fill a scalar up to."""


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a program, as each device runs it.

    Args:
      kind: One of `KINDS`.
      payload: Bytes of the full-size array: of what a gather makes, and of what any
        other is given.
      group: Devices that exchange with one another.
      times: How often it runs.
      in_loop: Whether it stands in the body of a loop.
    """

    kind: str
    payload: int
    group: int
    times: float = 1
    in_loop: bool = False

    @property
    def wire(self) -> float:
        """Bytes that a device sends, over all times that it runs."""
        if self.kind == "collective-permute":
            return self.times * self.payload
        crossings = 2 if self.kind == "all-reduce" else 1
        return self.times * crossings * self.payload * (self.group - 1) / self.group


@dataclasses.dataclass(frozen=True)
class Program:
    """What one device does in one run: matrix products and exchanges."""

    flops: float = 0
    collectives: tuple[Collective, ...] = ()

    @property
    def wire(self) -> float:
        """Bytes that a device sends."""
        return sum(collective.wire for collective in self.collectives)

    def __add__(self, other: "Program") -> "Program":
        return Program(self.flops + other.flops, self.collectives + other.collectives)

    def repeated(self, times: float) -> "Program":
        """Returns the program of a loop that runs this one so often."""
        inside = (
            dataclasses.replace(c, times=c.times * times, in_loop=True)
            for c in self.collectives
        )
        return Program(self.flops * times, tuple(inside))


def read(text: str) -> Program:
    """Returns what the program does, from `compiled.as_text()`."""
    return _Module(text).program()


def is_independent(text: str, devices: int) -> bool:
    """Returns whether collectives that cross a border are free to run beside products.

    That is, in each computation that has some, there are loops or products too, and no
    collective needs one of these or is needed by it. Those of scalars do not count. See
    `crossing` for the arguments.
    """
    module = _Module(text)
    found = False
    for instructions in module.computations.values():
        large = [i for i in instructions.values() if i.size > _SCALAR]
        crossing = [i for i in large if module.crosses(i, devices)]
        work = [i for i in instructions.values() if module.has_products(i)]
        if not crossing:
            continue
        found = True
        before = {name for i in crossing for name in _needed(instructions, i)}
        after = {name for i in work for name in _needed(instructions, i)}
        exchanged, worked = ({i.name for i in each} for each in (crossing, work))
        if not work or before & worked or after & exchanged:
            return False
    return found


def factors(text: str) -> list[tuple[str, str]]:
    """Returns the element types of the two factors of each matrix product.

    The types are those that the product itself is given, after any conversion. One in
    the body of a loop stands once. Kernels behind custom calls are left out, but for
    the one that a TPU program makes of a `ragged_dot`.
    """
    found = []
    for instructions in _Module(text).computations.values():
        for i in instructions.values():
            ragged = i.opcode == "custom-call" and i.name.startswith("ragged-dot-none")
            if i.opcode in ("dot", "convolution") or ragged:
                types = [instructions[name].type for name in i.operand_names[-2:]]
                (a, _), (b, _) = (_arrays(type_)[0] for type_ in types)
                found.append((a, b))
    return found


def crossing(text: str, devices: int) -> tuple[list[Collective], list[Collective]]:
    """Returns the collectives that cross a border between devices.

    The first list has those that every run meets, the second those in a branch of a
    conditional.

    Args:
      text: `compiled.as_text()`.
      devices: How many there are on each side of a border: of 8, by 4, device 3 and
        device 4 are on two sides.
    """
    module = _Module(text)
    in_branches = module.under_conditionals()
    found: tuple[list[Collective], list[Collective]] = [], []
    for name, instructions in module.computations.items():
        for instruction in instructions.values():
            kind = instruction.opcode.removesuffix("-start")
            if instruction.opcode != "recv" and module.crosses(instruction, devices):
                types = [instructions[each].type for each in instruction.operand_names]
                collective = module.collective(kind, instruction, types)
                found[name in in_branches].append(collective)
    return found


def results(text: str, kind: str) -> list[tuple[str, int]]:
    """Returns element type and size of what each collective of a kind makes.

    One in the body of a loop stands once, or more often if XLA made several of it.
    """
    return [
        (dtype, math.prod(shape))
        for instructions in _Module(text).computations.values()
        for i in instructions.values()
        if i.opcode.removesuffix("-start") == kind
        for dtype, shape in _arrays(i.type)
    ]


@dataclasses.dataclass(frozen=True)
class _Instruction:
    """`name = type opcode(operands), attributes`."""

    name: str
    type: str
    opcode: str
    operands: str
    attributes: str

    @functools.cached_property
    def operand_names(self) -> list[str]:
        return re.findall(r"%([\w.-]+)", self.operands)

    @property
    def size(self) -> int:
        return _num_bytes(self.type)

    def attribute(self, pattern: str) -> str | None:
        found = re.search(pattern, self.attributes)
        return found and found.group(1)


class _Module:
    """Computations by name, and the cost of each."""

    def __init__(self, text: str):
        counts = re.findall(r"(?:num_partitions|replica_count)=(\d+)", text[:10_000])
        self.num_devices = math.prod(map(int, counts))
        self.computations: dict[str, dict[str, _Instruction]] = {}
        for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
            header = re.match(r"(ENTRY )?%?([\w.-]+) \(.*\{$", line)
            if header:
                current = self.computations.setdefault(header.group(2), {})
                if header.group(1):
                    self.entry = header.group(2)
            elif instruction := _parse(line):
                current[instruction.name] = instruction

    def program(self) -> Program:
        return self.cost(self.entry)

    def crosses(self, instruction: _Instruction, devices: int) -> bool:
        """Returns whether it is a collective over a border, see `crossing`."""
        if _between_slices(instruction):
            return True
        if instruction.opcode.removesuffix("-start") not in KINDS:
            return False
        groups = _groups(instruction, self.num_devices)
        return any(len({device // devices for device in g}) > 1 for g in groups)

    def has_products(self, instruction: _Instruction) -> bool:
        """Returns whether it is a loop, a call or a fusion with products, or one."""
        if instruction.opcode in ("dot", "convolution"):
            return True
        below = _called(instruction)
        return any(
            self.has_products(each)
            for name in below
            for each in self.computations.get(name, {}).values()
        )

    def under_conditionals(self) -> set[str]:
        """Returns the computations that run in a branch of a conditional alone."""
        found: set[str] = set()
        called = [
            branch
            for instructions in self.computations.values()
            for instruction in instructions.values()
            if instruction.opcode == "conditional"
            for branch in _branches(instruction)
        ]
        while called:
            name = called.pop()
            if name not in found:
                found.add(name)
                for instruction in self.computations[name].values():
                    called += _called(instruction)
        return found

    @functools.cache  # noqa: B019  A module lives as long as one call of `read`.
    def cost(self, computation: str) -> Program:
        inside = self.computations[computation].values()
        program = sum((self.cost_of(i, computation) for i in inside), Program())
        if computation.startswith("all-reduce-scatter"):
            # How a TPU program writes a reduce-scatter: a kernel of its own, described
            # by an all-reduce and the slice that is kept.
            program = dataclasses.replace(
                program,
                collectives=tuple(
                    dataclasses.replace(c, kind="reduce-scatter")
                    for c in program.collectives
                ),
            )
        return program

    def cost_of(self, instruction: _Instruction, computation: str) -> Program:
        opcode = instruction.opcode
        types = [
            self.computations[computation][name].type
            for name in instruction.operand_names
            if name in self.computations[computation]
        ]
        if opcode == "dot":
            return Program(_flops_of_dot(instruction, *types))
        if opcode == "convolution":
            return Program(_flops_of_convolution(instruction, *types))
        if opcode == "while":
            body = self.cost(instruction.attribute(r"body=%?([\w.-]+)"))
            return body.repeated(self.trips(instruction)) if body != Program() else body
        if opcode == "conditional":
            branches = map(self.cost, _branches(instruction))
            return max(branches, key=lambda branch: (branch.flops, branch.wire))
        if opcode in ("fusion", "call", "async-start"):
            return self.cost(instruction.attribute(r"(?:calls|to_apply)=%?([\w.-]+)"))
        kind = opcode.removesuffix("-start")
        if kind in KINDS:
            return Program(collectives=(self.collective(kind, instruction, types),))
        return Program()

    def collective(self, kind, instruction, types) -> Collective:
        if between := _between_slices(instruction):
            return Collective(between, _num_bytes(types[0]), group=2)
        if kind in ("collective-permute", "ragged-all-to-all"):
            types = types[:1]  # The others are buffers and offsets.
        group = _group_size(instruction, self.num_devices)
        payload = sum(map(_num_bytes, types))
        return Collective(kind, payload * (group if kind == "all-gather" else 1), group)

    def trips(self, loop: _Instruction) -> float:
        """Returns how often a loop runs: as noted, or its one constant bound."""
        noted = loop.attribute(r'known_trip_count":\{"n":"(\d+)"')
        if noted:
            return int(noted)
        condition = loop.attribute(r"condition=%?([\w.-]+)") or ""
        bounds = {
            int(i.operands)
            for i in self.instructions_under(condition)
            if i.opcode == "constant" and re.match(r"[su]\d+\[\]", i.type)
        }
        return bounds.pop() if len(bounds) == 1 else math.nan

    def instructions_under(self, computation: str) -> Iterator[_Instruction]:
        for instruction in self.computations[computation].values():
            yield instruction
            called = instruction.attribute(r"(?:calls|to_apply)=%?([\w.-]+)")
            if called:
                yield from self.instructions_under(called)


def _parse(line: str) -> _Instruction | None:
    found = re.match(r"\s+(?:ROOT )?%?([\w.-]+) = (.*)", line)
    if not found:
        return None
    name, rest = found.groups()
    end = _closing(rest) if rest.startswith("(") else rest.index(" ")
    type_, rest = rest[:end], rest[end:].lstrip()
    opening = rest.index("(")
    closing = opening + _closing(rest[opening:])
    operands, attributes = rest[opening + 1 : closing - 1], rest[closing:]
    return _Instruction(name, type_, rest[:opening], operands, attributes)


def _closing(text: str) -> int:
    """Returns where the parenthesis that `text` starts with has been closed."""
    depths = itertools.accumulate((c == "(") - (c == ")") for c in text)
    return next(i for i, depth in enumerate(depths) if depth == 0) + 1


def _arrays(type_: str) -> list[tuple[str, list[int]]]:
    """Returns element type and shape of each array in a type."""
    found = re.findall(r"([a-z]\w*)\[([\d,]*)\]", type_)
    return [(dtype, [int(n) for n in dims.split(",") if n]) for dtype, dims in found]


def _shape(type_: str) -> list[int]:
    ((_, shape),) = _arrays(type_)
    return shape


def _num_bytes(type_: str) -> int:
    bits = 0
    for dtype, shape in _arrays(type_):
        width = re.match(r"[a-z]+(\d+)", dtype)  # None for pred, which has a byte.
        bits += math.prod(shape) * (int(width.group(1)) if width else 8)
    return bits // 8


def _group_size(instruction: _Instruction, num_devices: int) -> int:
    if instruction.attribute(r"(source_target_pairs)"):
        return 2
    listed = instruction.attribute(r"replica_groups=\{\{([\d,]+)\}")
    if listed:
        return len(listed.split(","))
    counted = instruction.attribute(r"replica_groups=\[\d+,(\d+)\]<=")
    if counted:
        return int(counted)
    named = re.search(
        r"replica_groups=@?mesh\w*\[(.*?)\] \{(.*?)\}", instruction.attributes
    )
    if named:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named.group(1)))
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", named.group(2))
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    return num_devices


def _between_slices(instruction: _Instruction) -> str | None:
    """Returns the kind of collective over the data-centre network, if it is one.

    A TPU program hands it to the host: it sends to there, and receives the result.
    """
    if instruction.opcode not in ("send", "recv"):
        return None
    kind = instruction.attribute(r'_xla_megascale_transfer_type="(\w+)"')
    return kind and kind.lower().replace("_", "-")


def _groups(instruction: _Instruction, num_devices: int) -> list[list[int]]:
    """Returns the devices of each group that exchanges."""
    pairs = instruction.attribute(r"source_target_pairs=\{(\{.*?\})\}")
    listed = pairs or instruction.attribute(r"replica_groups=\{(\{.*?\})\}")
    if listed:
        groups = re.findall(r"\{([\d,]+)\}", listed)
        return [[int(n) for n in group.split(",")] for group in groups]
    counted = re.search(
        r"replica_groups=\[(\d+),(\d+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)",
        instruction.attributes,
    )
    if counted:
        return _iota(counted.group(3)).reshape(-1, int(counted.group(2))).tolist()
    named = re.search(
        r"replica_groups=@?mesh\w*\[(.*?)\](?:, device_ids=\((.*?\)?)\))? \{(.*?)\}",
        instruction.attributes,
    )
    if not named:
        return [[*range(num_devices)]]
    sizes = {name: int(n) for name, n in re.findall(r"'(\w+)'=(\d+)", named.group(1))}
    ids = _iota(named.group(2) or f"[{num_devices}]")
    return _along(ids.reshape([*sizes.values()]), [*sizes], named.group(3))


def _iota(text: str) -> np.ndarray:
    """Returns the numbers that `[2,4]T(1,0)` stands for: iota, reshaped, transposed."""
    shape, _, order = text.partition("T")
    ids = np.arange(math.prod(_ints(shape))).reshape(_ints(shape))
    return ids.transpose(_ints(order)) if order else ids


def _along(ids: np.ndarray, names: list[str], axes: str) -> list[list[int]]:
    """Returns the groups along axes such as `'data', 'fsdp':(1)2`: the part of an axis
    after 1 of its devices, of size 2."""
    kept: list[int] = []
    shape: list[int] = []
    parts = {n: (p, s) for n, p, s in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", axes)}
    for name, size in zip(names, ids.shape, strict=True):
        before, part = parts.get(name, ("1", "1"))
        before, part = int(before or 1), int(part or size)
        kept.append(len(shape) + 1)
        shape += [before, part, size // before // part]
    moved = np.moveaxis(ids.reshape(shape), kept, range(-len(kept), 0))
    return moved.reshape(-1, math.prod(shape[dim] for dim in kept)).tolist()


def _needed(
    instructions: dict[str, _Instruction], instruction: _Instruction
) -> set[str]:
    """Returns the names of all that an instruction needs, in its computation."""
    found: set[str] = set()
    left = [*instruction.operand_names]
    while left:
        name = left.pop()
        if name in instructions and name not in found:
            found.add(name)
            left += instructions[name].operand_names
    return found


def _ints(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]


def _called(instruction: _Instruction) -> list[str]:
    """Returns the computations that an instruction runs."""
    names = r"(?:calls|to_apply|body|condition)=%?([\w.-]+)"
    return re.findall(names, instruction.attributes) + (
        _branches(instruction) if instruction.opcode == "conditional" else []
    )


def _branches(instruction: _Instruction) -> list[str]:
    names = instruction.attribute(r"branch_computations=\{(.*?)\}")
    if names is None:
        return re.findall(
            r"(?:true|false)_computation=%?([\w.-]+)", instruction.attributes
        )
    return re.findall(r"[\w.-]+", names)


def _flops_of_dot(instruction: _Instruction, left: str, right: str) -> int:
    dims = instruction.attribute(r"lhs_contracting_dims=\{([\d,]*)\}") or ""
    depth = math.prod(_shape(left)[int(dim)] for dim in dims.split(",") if dim)
    return 2 * math.prod(_shape(instruction.type)) * depth


def _flops_of_convolution(instruction: _Instruction, left: str, right: str) -> int:
    """Counts the products that are not with padding.

    TPU programs write every matrix product as a convolution, and one with a batch dim
    as one whose window slides over mere padding.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    assert labels, instruction
    sizes = [
        dict(zip(names, _shape(type_), strict=True))
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
