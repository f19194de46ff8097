"""When asynchronous collectives end: the text of a program is in the order it runs."""

import re
from collections.abc import Iterable, Sequence

from maxfdl.report.hlo.text import Instruction


def ends(
    instructions: Sequence[Instruction], channels: Sequence[Iterable[int]]
) -> list[int]:
    """Returns the place at which what each instruction begins has ended.

    Of an instruction that begins nothing, it is its own place.

    Args:
      instructions: Those of one computation.
      channels: Of the collectives in each of them that is a fusion. All fusions that
        have one channel are parts of one collective.
    """
    places = [*range(len(instructions))]
    last = {channel: place for place in places for channel in channels[place]}
    begun = {each.name: place for place, each in enumerate(instructions)}
    sent: dict[str, int] = {}
    for place, each in enumerate(instructions):
        if each.opcode == "send":
            sent[_meeting(each)] = place
        if each.opcode.endswith(("-done", "-update")) and each.operand_names:
            start = begun[each.operand_names[0]]
            if instructions[start].opcode == "recv":  # the other half of a send
                start = sent.get(_meeting(instructions[start]), start)
            places[start] = place
            begun[each.name] = start
    return [
        max([places[place], *(last[channel] for channel in channels[place])])
        for place in range(len(instructions))
    ]


def _meeting(instruction: Instruction) -> str:
    """Returns the name that a send and its recv over the host have in common."""
    found = re.search(r'_host_transfer_rendezvous="([^"]*)"', instruction.attributes)
    return found.group(1) if found else instruction.name
