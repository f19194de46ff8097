"""Whether all processes of a run read the same data."""

import itertools
from typing import Any

from maxfdl.errors import UserError
from maxfdl.run.processes.ending import current


def check_same_data(batches: Any) -> None:
    """Compares what the batches of this process are made of with those of process 0.

    Each process reads its own share of the rows, so that other files on one machine
    would train on other text without a word.

    Args:
      batches: Of this process; their state says what they are made of.

    Raises:
      UserError: If they are made of something else.
    """
    peers = current()
    if peers is None:
        return
    mine = _made_of(batches.get_state())
    theirs = peers.meet("data", mine)
    if difference := _first_difference(theirs, mine):
        raise UserError(
            f"process {peers.place.process_id} reads other data than process 0, which"
            f" differ in {difference}; give all processes the same files."
        )


def _made_of(state: dict[str, Any]) -> dict[str, Any]:
    # Of a ramp-up, which cuts the batches of another iterator, or of that itself.
    return state["made_of"] if "made_of" in state else state["batches"]["made_of"]


def _first_difference(theirs: dict[str, Any], mine: dict[str, Any]) -> str:
    """Returns the first that differs, or nothing; what is only renamed is the same."""
    kinds = [each["source"]["kind"] for each in (theirs, mine)]
    if kinds[0] != kinds[1]:
        return f"the source ({kinds[0]} there, {kinds[1]} here)"
    parts = (each["source"]["parts"] for each in (theirs, mine))
    for there, here in itertools.zip_longest(*parts):
        if there is None:
            return f"[{here[0]}], which is only here"
        if here is None:
            return f"[{there[0]}], which is only there"
        if there[1:] != here[1:]:
            return f"[{here[0]}] ({there[1]:,} bytes there, {here[1]:,} here)"
    for name, value in mine["settings"].items():
        if theirs["settings"].get(name) != value:
            return f"{name} ({theirs['settings'].get(name)} there, {value} here)"
    return ""
