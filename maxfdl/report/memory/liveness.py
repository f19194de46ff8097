"""When each array of a program is in memory.

XLA computes elementwise operations together with those before and behind them, so many
arrays that a program is written with are never written to memory. Here the result of
such an operation is written only where that takes no memory: where operands that
nothing else needs are at least as large. Else those that use it compute it again, and
keep its operands in memory. A matrix product or a sum takes elementwise operands as
they are; other operations, such as kernels, collectives and loops, read what was
written. What is not elementwise writes what it gives, in the narrowest type that it is
cast to right behind.

XLA runs what is needed late as late as it can. The gradient of the output head is
ready before the backward pass of the layers and needed behind it. XLA sums it over the
devices behind it, so each device holds the gradient of the whole head until then.
"""

import bisect
import dataclasses
from collections.abc import Iterable, Sequence

from maxfdl.report.memory.program import Instruction, Region, Value

_WRITES_IN_PLACE = ("dynamic_update_slice", "scatter", "scatter-add")
_TAKES_FUSED = ("arg", "cast", "cum", "dot_general", "gather", "reduce")
"""Beginnings of names of primitives that compute elementwise operands themselves."""
_FUSES_WITH_NEXT = ("conv", "dot_general", "reduce_")
"""Beginnings of names of primitives whose result is cast as it is written."""


@dataclasses.dataclass(eq=False)
class Buffer:
    """Memory of one array, from one moment to another, both included."""

    value: Value
    bytes: int
    start: int
    end: int


def buffers_of(program: Region) -> list[Buffer]:
    """Returns the memory that a program needs besides its arguments and its results.

    The results of a step are its new state, which is written over the old one.
    """
    for result in program.results:
        result.bytes = 0
    timeline = _Timeline()
    timeline.run(program)
    return [buffer for buffer in timeline.buffers if buffer.bytes]


def most_at_once(buffers: Sequence[Buffer]) -> list[Buffer]:
    """Returns the buffers at the moment when they need the most memory."""
    changes = [(b.start, b.bytes) for b in buffers]
    changes += [(b.end + 1, -b.bytes) for b in buffers]
    held, most, moment = 0, 0, 0
    for time, change in sorted(changes):  # what is freed comes before what is taken
        held += change
        if held > most:
            most, moment = held, time
    return [b for b in buffers if b.start <= moment <= b.end]


class _Timeline:
    """Buffers of what has run so far. An instruction takes an even and an odd moment:
    what it reads may end with the first, what it writes may begin with the second."""

    def __init__(self):
        self.buffers: list[Buffer] = []
        self._now = 0

    def run(self, region: Region) -> None:
        """Runs a region; what it is given is in memory already."""
        plan = _Plan(region)
        held: dict[Value, Buffer] = {}
        for i, instruction in enumerate(plan.instructions):
            if plan.is_written(instruction):
                self._run(plan, i, instruction, held)
        for value, buffer in held.items():
            buffer.end = self._now
            if plan.is_carried_in_place(value):
                buffer.bytes = 0

    def _run(
        self, plan: "_Plan", i: int, instruction: Instruction, held: dict[Value, Buffer]
    ) -> None:
        start = self._now
        self._now += 2
        ending = [held[x] for x in plan.reads[i] if plan.last[x] == i and x in held]
        in_place = instruction.is_fused or instruction.name in _WRITES_IN_PLACE
        for out in instruction.outs:
            if out not in plan.fused:
                held[out] = self._new(out, plan.size(out), start + in_place)
        for before, after in instruction.carried:
            if before in held and held[before] in ending:
                self._merge(held, before, after)
        for body in instruction.bodies:
            self.run(body)
        for buffer in ending:
            if held.get(buffer.value) is buffer:
                buffer.end = start if in_place else self._now - 1
                del held[buffer.value]
        for out in instruction.outs:
            if out in held and out not in plan.last:
                held.pop(out).end = self._now - 1

    def _new(self, value: Value, size: int, start: int) -> Buffer:
        buffer = Buffer(value, size, start, start)
        self.buffers.append(buffer)
        return buffer

    def _merge(self, held: dict[Value, Buffer], before: Value, after: Value) -> None:
        """What a loop carries has one buffer, in which it came if nothing else needs
        that."""
        if held[before].bytes == held[after].bytes:
            held[after].start = held[before].start
            self.buffers.remove(held.pop(before))


class _Plan:
    """Which arrays of a region are written, and until when each is read.

    `fused` has those that are not, with what they are computed from; `reads` what each
    instruction reads, and `last` which one is the last to read an array.
    """

    def __init__(self, region: Region):
        self.instructions = _late_sums(_needed(region))
        self.fused: dict[Value, frozenset[Value]] = {}
        self.reads: list[frozenset[Value]] = []
        self.last: dict[Value, int] = {}
        self._region = region
        self._users: dict[Value, list[int]] = {}
        self._readers: dict[Value, list[Value]] = {}
        self._given = set(region.arguments)
        self._end = len(self.instructions)
        for i, instruction in enumerate(self.instructions):
            for value in instruction.ins:
                self._users.setdefault(value, []).append(i)
        for value in region.results:
            self._users.setdefault(value, []).append(self._end)
        for i, instruction in enumerate(self.instructions):
            self.reads.append(self._sources(instruction.ins))
            if instruction.is_fused:
                self._fuse(i, instruction)
            if self.is_written(instruction):
                self.last.update(dict.fromkeys(self.reads[i], i))
        self.last.update(dict.fromkeys(self._sources(region.results), self._end))

    def is_written(self, instruction: Instruction) -> bool:
        """Returns whether an instruction writes any of its results."""
        return not all(out in self.fused for out in instruction.outs)

    def is_carried_in_place(self, value: Value) -> bool:
        """Returns whether a result of a trip is written over what the trip before left,
        which is read no more by then."""
        givens = [given for given, left in self._region.carried if left is value]
        writers = [i for i, x in enumerate(self.instructions) if value in x.outs]
        if not givens or not writers:
            return False
        read, written = self.last.get(givens[0], -1), writers[0]
        return read < written + self.instructions[written].is_fused

    def size(self, value: Value) -> int:
        """Returns the bytes that are written of a value.

        If elementwise operations are all that follows a product or a sum, it is the
        smallest of them.
        """
        size, users = value.bytes, self._users.get(value, ())
        if not value.role.startswith(_FUSES_WITH_NEXT):
            return size
        while len(users) == 1 and users[0] != self._end:
            user = self.instructions[users[0]]
            if not user.is_fused or user.outs[0].shape != value.shape:
                break
            size = min(size, user.outs[0].bytes or size)
            users = self._users.get(user.outs[0], ())
        return size

    def _sources(self, values: Sequence[Value]) -> frozenset[Value]:
        """Returns the arrays in memory that values are, or are computed from."""
        sources = [self.fused.get(v, frozenset([v] if v.bytes else ())) for v in values]
        return frozenset().union(*sources)

    def _fuse(self, i: int, instruction: Instruction) -> None:
        """Leaves results unwritten that are larger than the operands that end here."""
        sources = self.reads[i]
        ending = sum(source.bytes for source in sources if self._ends(source, i))
        for out in instruction.outs:
            if out.bytes > ending and not self._is_read_from_memory(out):
                self.fused[out] = sources
                for source in sources:
                    self._readers.setdefault(source, []).append(out)

    def _is_read_from_memory(self, value: Value) -> bool:
        users = [
            self.instructions[i] for i in self._users.get(value, ()) if i != self._end
        ]
        return any(
            not user.is_fused and not user.name.startswith(_TAKES_FUSED)
            for user in users
        )

    def _ends(self, value: Value, i: int) -> bool:
        """Returns whether nothing behind instruction i needs a value."""
        readers = (value, *self._readers.get(value, ()))
        return value not in self._given and all(
            max(self._users.get(reader, (-1,))) <= i for reader in readers
        )


def _needed(region: Region) -> list[Instruction]:
    """Returns the instructions whose results are used."""
    used, needed = set(region.results), []
    for instruction in reversed(region.instructions):
        if not used.isdisjoint(instruction.outs):
            used.update(instruction.ins)
            needed.append(instruction)
    return needed[::-1]


def _late_sums(instructions: Sequence[Instruction]) -> list[Instruction]:
    """Returns the instructions with reduce-scatters right before the first use of what
    they give, if loops come before that. What is elementwise in it moves along."""
    sums = _of_sums(instructions)
    loops = [i for i, instruction in enumerate(instructions) if instruction.carried]
    end, places, used = len(instructions), [], {}
    for i, instruction in reversed([*enumerate(instructions)]):
        first = min(used.get(out, end) for out in instruction.outs)
        is_late = not sums.isdisjoint(instruction.outs)
        is_moved = is_late and bisect.bisect(loops, i) < bisect.bisect_left(
            loops, first
        )
        places.append(first if is_moved else i)
        used.update({x: min(used.get(x, end), places[-1]) for x in instruction.ins})
    order = sorted(range(end), key=places[::-1].__getitem__)
    return [instructions[i] for i in order]


def _of_sums(instructions: Iterable[Instruction]) -> set[Value]:
    """Returns what reduce-scatters give, and what is elementwise in that alone."""
    sums: set[Value] = set()
    for instruction in instructions:
        arrays = {value for value in instruction.ins if value.shape}
        is_sum = instruction.name == "reduce_scatter"
        if is_sum or (instruction.is_fused and arrays and arrays <= sums):
            sums.update(instruction.outs)
    return sums
