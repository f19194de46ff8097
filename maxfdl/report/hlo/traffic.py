"""Bytes that a program reads from the main memory of a device, and writes there.

Each instruction outside of a fusion reads its operands and writes its results; a fusion
keeps what is between on the chip. Of an array from which a part is cut, or in which a
part is overwritten in place, that part alone counts. It is an estimate: what caches
hold, and whole tiles, are not known here.
"""

import functools

from maxfdl.report.hlo.text import KINDS, Instruction, Module, bytes_in_hbm

_FREE = {
    "after-all",
    "bitcast",
    "call",
    "conditional",
    "constant",
    "get-tuple-element",
    "opt-barrier",
    "parameter",
    "partition-id",
    "replica-id",
    "tuple",
    "while",
}
_COPIES = {"copy-start", "slice-start", "dynamic-slice-start"}


class Traffic:
    """What instructions of a module read and write, in bytes."""

    def __init__(self, module: Module):
        self._module = module

    def of(self, instruction: Instruction, computation: str) -> int:
        """Returns the bytes of an instruction that does not stand in a fusion."""
        opcode = instruction.opcode
        if opcode in _FREE or opcode.endswith("-done"):
            return 0
        if opcode in _COPIES:  # made type: where it goes and whence, then a flag
            large = [size for size in bytes_in_hbm(instruction.type) if size > 16]
            return min(large, default=0) * len(large)
        if opcode == "dynamic-slice":
            return 2 * sum(bytes_in_hbm(instruction.type))
        if opcode == "dynamic-update-slice":
            updates = self._module.operand_types(instruction, computation)[1]
            return 2 * sum(bytes_in_hbm(updates))
        types = self._module.operand_types(instruction, computation)
        if opcode == "fusion":
            (body,) = instruction.called
            read = sum(
                self._read(body, number) if sum(bytes_in_hbm(type_)) else 0
                for number, type_ in enumerate(types)
            )
            return read + self._written(body, instruction.type)
        return sum(map(sum, map(bytes_in_hbm, (*types, instruction.type))))

    @functools.cache  # noqa: B019  It lives as long as the module.
    def _read(self, computation: str, number: int) -> int:
        """Returns the bytes that a fusion reads of its argument `number`."""
        for each in self._module.computations[computation].values():
            if each.opcode == "parameter" and each.operands == str(number):
                return min(self._used(computation, each.name), each.size)
        return 0

    def _used(self, computation: str, name: str) -> int:
        inside = self._module.computations[computation]
        total = 0
        for user in self._users(computation).get(name, ()):
            places = [i for i, each in enumerate(user.operand_names) if each == name]
            if user.opcode in ("dynamic-slice", "gather") and places == [0]:
                total += user.size
            elif user.opcode == "dynamic-update-slice" and places == [0]:
                pass  # overwritten in place
            elif _is_exchange(user):
                pass  # counted with the collective itself
            elif user.opcode in ("bitcast", "tuple", "get-tuple-element"):
                total += self._used(computation, user.name)
            elif user.opcode == "fusion":
                (body,) = user.called
                total += sum(self._read(body, place) for place in places)
            else:
                return inside[name].size
        return total

    @functools.cache  # noqa: B019  It lives as long as the module.
    def _users(self, computation: str) -> dict[str, list[Instruction]]:
        users: dict[str, list[Instruction]] = {}
        for each in self._module.computations[computation].values():
            for name in dict.fromkeys(each.operand_names):
                users.setdefault(name, []).append(each)
        return users

    def _written(self, computation: str, type_: str) -> int:
        """Returns the bytes that a fusion writes, whose result has this type."""
        inside = self._module.computations[computation]
        (root,) = (each for each in inside.values() if each.is_root)
        names = root.operand_names if root.opcode == "tuple" else [root.name]
        sizes = bytes_in_hbm(type_)
        if len(names) != len(sizes):
            return 0 if _is_exchange(root) else sum(sizes)
        return sum(
            min(size, self._made(computation, name))
            for name, size in zip(names, sizes, strict=True)
        )

    def _made(self, computation: str, name: str) -> int:
        """Returns the bytes of a result that are new."""
        made = self._module.computations[computation][name]
        if made.opcode == "bitcast":
            return self._made(computation, made.operand_names[0])
        if made.opcode == "dynamic-update-slice":
            update = self._module.operand_types(made, computation)[1]
            return sum(bytes_in_hbm(update))
        if made.opcode == "fusion":
            return self._written(made.called[0], made.type)
        return 0 if made.opcode == "parameter" or _is_exchange(made) else made.size


def _is_exchange(instruction: Instruction) -> bool:
    return instruction.kind in KINDS or "AsyncCollective" in instruction.attributes
