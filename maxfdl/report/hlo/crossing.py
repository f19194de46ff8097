"""Collectives of a compiled program one by one: what they cross and what they await."""

import math

from maxfdl.report.hlo.groups import crosses, groups_of
from maxfdl.report.hlo.products import is_ragged_dot
from maxfdl.report.hlo.program import Collective, between_slices, collective_of
from maxfdl.report.hlo.text import KINDS, Instruction, Module, arrays

_SCALAR = 1024
"""Bytes that a TPU program may fill a scalar up to."""


def is_independent(text: str, devices: int) -> bool:
    """Returns whether collectives that cross a border are free to run beside products.

    That is, in each computation that has some, there are loops or products too, and no
    collective needs one of these or is needed by it. Those of scalars do not count. See
    `crossing` for the arguments.
    """
    module = Module(text)
    found = False
    for instructions in module.computations.values():
        large = [i for i in instructions.values() if i.size > _SCALAR]
        crossing = [i for i in large if _crosses(i, module, devices)]
        work = [i for i in instructions.values() if _has_products(i, module)]
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
    for instructions in Module(text).computations.values():
        for i in instructions.values():
            if i.opcode in ("dot", "convolution") or is_ragged_dot(i):
                types = [instructions[name].type for name in i.operand_names[-2:]]
                (a, _), (b, _) = (arrays(type_)[0] for type_ in types)
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
    module = Module(text)
    in_branches = _under_conditionals(module)
    found: tuple[list[Collective], list[Collective]] = [], []
    for name, instructions in module.computations.items():
        for instruction in instructions.values():
            if _crosses(instruction, module, devices):
                types = module.operand_types(instruction, name)
                collective = collective_of(instruction, module, types)
                if collective is not None:
                    found[name in in_branches].append(collective)
    return found


def results(text: str, kind: str) -> list[tuple[str, int]]:
    """Returns element type and size of what each collective of a kind makes.

    One in the body of a loop stands once, or more often if XLA made several of it.
    """
    return [
        (dtype, math.prod(shape))
        for instructions in Module(text).computations.values()
        for i in instructions.values()
        if i.kind == kind
        for dtype, shape in arrays(i.type)
    ]


def _crosses(instruction: Instruction, module: Module, devices: int) -> bool:
    """Returns whether it is a collective over a border, see `crossing`."""
    if between_slices(instruction):
        return True
    if instruction.kind not in KINDS:
        return False
    sides = [device // devices for device in range(module.num_devices)]
    return crosses(groups_of(instruction, module.num_devices), sides)


def _has_products(instruction: Instruction, module: Module) -> bool:
    """Returns whether it is a loop, a call or a fusion with products, or one."""
    if instruction.opcode in ("dot", "convolution"):
        return True
    return any(
        _has_products(each, module)
        for name in instruction.called
        for each in module.computations.get(name, {}).values()
    )


def _under_conditionals(module: Module) -> set[str]:
    """Returns the computations that run in a branch of a conditional alone."""
    found: set[str] = set()
    called = [
        branch
        for instructions in module.computations.values()
        for instruction in instructions.values()
        if instruction.opcode == "conditional"
        for branch in instruction.branches
    ]
    while called:
        name = called.pop()
        if name not in found:
            found.add(name)
            for instruction in module.computations[name].values():
                called += instruction.called
    return found


def _needed(instructions: dict[str, Instruction], instruction: Instruction) -> set[str]:
    """Returns the names of all that an instruction needs, in its computation."""
    found: set[str] = set()
    left = [*instruction.operand_names]
    while left:
        name = left.pop()
        if name in instructions and name not in found:
            found.add(name)
            left += instructions[name].operand_names
    return found
