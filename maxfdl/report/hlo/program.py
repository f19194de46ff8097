"""What a compiled program does, counted as often as it does it.

XLA's own `cost_analysis` counts the body of a loop once. Here it counts once per trip,
for the text of CPU and of TPU programs.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

from maxfdl.report.hlo.groups import Groups, groups_of
from maxfdl.report.hlo.products import (
    flops_of_convolution,
    flops_of_dot,
    flops_of_kernel,
)
from maxfdl.report.hlo.schedule import ends
from maxfdl.report.hlo.text import KINDS, Instruction, Module, num_bytes
from maxfdl.report.hlo.traffic import Traffic

_BLOCKS = ("call", "conditional", "while")
"""What runs computations with a schedule of their own."""


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
      groups: The devices of each group, by their places in the mesh; none are named of
        one that the host runs between slices.
      channel: Its number. An asynchronous collective stands in several fusions, which
        all have the same.
      through_host: Whether the host runs it, over the data-centre network.
      beside: FLOPs of the products that run, in the order of the program, between its
        start and its end; 0 of one that everything waits for.
      source: What it was written as: JAX's name stack, such as
        `jit(step)/jvp()/while/body/dot_general`.
    """

    kind: str
    payload: int
    group: int
    times: float = 1
    in_loop: bool = False
    groups: Groups = dataclasses.field(default=(), compare=False, repr=False)
    channel: int | None = dataclasses.field(default=None, compare=False)
    through_host: bool = False
    beside: float = dataclasses.field(default=0, compare=False)
    source: str = dataclasses.field(default="", compare=False, repr=False)

    @property
    def wire(self) -> float:
        """Bytes that a device sends, over all times that it runs."""
        if self.kind == "collective-permute":
            return self.times * self.payload
        crossings = 2 if self.kind == "all-reduce" else 1
        return self.times * crossings * self.payload * (self.group - 1) / self.group


@dataclasses.dataclass(frozen=True)
class Program:
    """What one device does in one run.

    What a loop does whose trips depend on data is not a number, but for `traffic`,
    where such a loop counts once.

    Args:
      flops: Of matrix products.
      expected: Those among them of products whose number depends on data, see
        `maxfdl.ops.cost.expect_flops`.
      collectives: The exchanges with other devices.
      traffic: Bytes that are read from main memory and written there, estimated.
      unknown: Names of kernels behind custom calls whose FLOPs are not known, and are
        missing in `flops`.
    """

    flops: float = 0
    collectives: tuple[Collective, ...] = ()
    traffic: float = 0
    unknown: frozenset[str] = frozenset()
    expected: float = 0

    @property
    def wire(self) -> float:
        """Bytes that a device sends."""
        return sum(collective.wire for collective in self.collectives)

    def __add__(self, other: "Program") -> "Program":
        return Program(
            self.flops + other.flops,
            self.collectives + other.collectives,
            self.traffic + other.traffic,
            self.unknown | other.unknown,
            self.expected + other.expected,
        )

    def repeated(self, times: float) -> "Program":
        """Returns the program of a loop that runs this one so often."""
        inside = (
            dataclasses.replace(c, times=c.times * times, in_loop=True)
            for c in self.collectives
        )
        traffic = self.traffic * (1 if math.isnan(times) else times)
        flops, expected = (n and n * times for n in (self.flops, self.expected))
        return Program(flops, tuple(inside), traffic, self.unknown, expected)

    def beside(self, flops: float) -> "Program":
        """Returns the program whose collectives have so many FLOPs beside them."""
        beside = tuple(dataclasses.replace(c, beside=flops) for c in self.collectives)
        return dataclasses.replace(self, collectives=beside)

    def without(self, channels: set[int]) -> "Program":
        """Returns the program without the collectives that have these numbers."""
        left = tuple(c for c in self.collectives if c.channel not in channels)
        return dataclasses.replace(self, collectives=left)


def read(text: str) -> Program:
    """Returns what the program does, from `compiled.as_text()`."""
    module = Module(text)
    return _Costs(module).of(module.entry)


class _Costs:
    """What each computation of a module does."""

    def __init__(self, module: Module):
        self.module = module
        self.traffic = Traffic(module)

    @functools.cache  # noqa: B019  It lives as long as one call of `read`.
    def of(self, computation: str, in_fusion: bool = False) -> Program:
        """Returns what a computation does.

        Args:
          computation: Its name.
          in_fusion: Whether it is a fusion, whose instructions pass each other their
            results on the chip.
        """
        instructions = [*self.module.computations[computation].values()]
        costs = [self._of_instruction(each, computation) for each in instructions]
        fused = [
            {c.channel for c in cost.collectives if c.channel} if _is_part(each) else ()
            for each, cost in zip(instructions, costs, strict=True)
        ]
        program, exchanged = Program(), set[int]()
        for place, end in enumerate(ends(instructions, fused)):
            cost = costs[place].without(exchanged.intersection(fused[place]))
            exchanged |= {*fused[place]}
            if instructions[place].opcode not in _BLOCKS:
                cost = cost.beside(sum(c.flops for c in costs[place + 1 : end + 1]))
            if not in_fusion:
                moved = self.traffic.of(instructions[place], computation)
                cost = dataclasses.replace(cost, traffic=cost.traffic + moved)
            program += cost
        return _with_scatter(program) if _is_scatter(computation) else program

    def _of_instruction(self, instruction: Instruction, computation: str) -> Program:
        opcode = instruction.opcode
        types = self.module.operand_types(instruction, computation)
        if opcode == "dot":
            return Program(flops_of_dot(instruction, types[0]))
        if opcode == "convolution":
            return Program(flops_of_convolution(instruction, *types))
        if opcode == "custom-call":
            flops = flops_of_kernel(instruction, types)
            if flops is None:
                name = re.sub(r"[.\d]+$", "", instruction.name)
                return Program(unknown=frozenset([name]))
            depends = flops and instruction.expected_flops is not None
            return Program(flops, expected=flops if depends else 0)
        if opcode == "while":
            body = self.of(instruction.attribute(r"body=%?([\w.-]+)"))
            loop = body.repeated(self._trips(instruction))
            expected = instruction.expected_flops
            if math.isnan(loop.flops) and expected is not None:
                return dataclasses.replace(loop, flops=expected, expected=expected)
            return loop
        if opcode == "conditional":
            branches = map(self.of, instruction.branches)
            return max(branches, key=lambda branch: (branch.flops, branch.wire))
        if opcode in ("fusion", "call", "async-start"):
            (called,) = instruction.called
            return self.of(called, in_fusion=opcode != "call")
        found = collective_of(instruction, self.module, types)
        return Program(collectives=(found,) if found else ())

    def _trips(self, loop: Instruction) -> float:
        """Returns how often a loop runs: as noted, or its one constant bound."""
        noted = loop.attribute(r'known_trip_count":\{"n":"(\d+)"')
        if noted:
            return int(noted)
        condition = loop.attribute(r"condition=%?([\w.-]+)") or ""
        bounds = {
            int(i.operands)
            for i in self._instructions_under(condition)
            if i.opcode == "constant" and re.match(r"[su]\d+\[\]", i.type)
        }
        return bounds.pop() if len(bounds) == 1 else math.nan

    def _instructions_under(self, computation: str) -> Iterator[Instruction]:
        for instruction in self.module.computations[computation].values():
            yield instruction
            for called in instruction.called:
                yield from self._instructions_under(called)


def collective_of(
    instruction: Instruction, module: Module, types: list[str]
) -> Collective | None:
    """Returns the collective that an instruction begins, if it does.

    Args:
      instruction: Any.
      module: Where it stands.
      types: Of its operands.
    """
    if instruction.opcode == "recv":  # the other half of a send
        return None
    kind = between_slices(instruction) or instruction.kind
    if kind not in KINDS:
        return None
    through_host, groups = instruction.opcode == "send", ()
    if through_host or kind == "collective-permute":
        types = types[:1]  # The others are buffers.
    if kind == "ragged-all-to-all":
        # Of what is sent and where it is received, one is as large as all that may
        # come; the other, on average over devices, is what travels.
        types = [min(types[:2], key=num_bytes)]
    if through_host:
        group = _slices(instruction)
    else:
        groups = groups_of(instruction, module.num_devices)
        group = len(groups[0])
    payload = sum(map(num_bytes, types))
    return Collective(
        kind,
        payload * (group if kind == "all-gather" else 1),
        group,
        groups=groups,
        channel=_channel(instruction),
        through_host=through_host,
        source=instruction.source,
    )


def _channel(instruction: Instruction) -> int | None:
    """Returns the number of a channel, if it is that of one collective alone.

    JAX gives those of a `shard_map` the channel 1, all of them; of the asynchronous
    ones among them the chain tells which are one.
    """
    channel = int(instruction.attribute(r"channel_id=(\d+)") or 0)
    if channel > 1:
        return channel
    chain = instruction.attribute(r'chain_id="(\d+)"')
    return None if chain is None else -1 - int(chain)


def between_slices(instruction: Instruction) -> str | None:
    """Returns the kind of collective over the data-centre network, if it is one.

    A TPU program hands it to the host: it sends to there, and receives the result.
    """
    if instruction.opcode not in ("send", "recv"):
        return None
    kind = instruction.attribute(r'_xla_megascale_transfer_type="(\w+)"')
    return kind and kind.lower().replace("_", "-")


def _slices(instruction: Instruction) -> int:
    """Returns how many slices exchange, from a target such as `{1,2}x{0:3}`: the
    slices, and their devices."""
    target = instruction.attribute(r'_xla_megascale_target="\{([\d,:]+)\}')
    ranges = [each.split(":") for each in (target or "1:2").split(",")]
    return sum(int(ends[-1]) - int(ends[0]) + 1 for ends in ranges)


def _is_part(instruction: Instruction) -> bool:
    """Returns whether it may be one part of a collective of several."""
    return instruction.opcode in ("fusion", "async-start")


def _is_scatter(computation: str) -> bool:
    return computation.startswith("all-reduce-scatter")


def _with_scatter(program: Program) -> Program:
    """Returns the program of a reduce-scatter, as a TPU program writes it: a kernel of
    its own, described by an all-reduce and the slice that is kept."""
    scatters = (
        dataclasses.replace(c, kind="reduce-scatter") for c in program.collectives
    )
    return dataclasses.replace(program, collectives=tuple(scatters))
