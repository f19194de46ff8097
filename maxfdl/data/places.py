"""The place of a run in its data, put together from those of its processes."""

from collections.abc import Sequence
from typing import Any

State = dict[str, Any]


def joined(states: Sequence[State]) -> State:
    """Returns the place of all processes, which any number of them can go on from.

    Every process takes its own lanes from it: lanes do not depend on the number of
    processes, see `maxfdl.data.lanes`.

    Args:
      states: What the iterators of all processes saved after the same step.
    """
    first, *others = states
    if all(other == first for other in others):
        return first
    whole = dict(first)
    if "batches" in first:
        whole["batches"] = joined([state["batches"] for state in states])
    if "made_of" in first:  # differs in the bad documents that each has met
        whole["made_of"] = [state["made_of"] for state in states]
    if "places" in first:
        whole |= _joined_lanes(states)
    return whole


def _joined_lanes(states: Sequence[State]) -> State:
    """Returns the places of all lanes, and all bad documents, of the processes."""

    def known(lane: int, places: Sequence[Any]) -> Any:
        first, *others = [place for place in places if place is not None] or [None]
        # Processes that share a lane all read the whole of it.
        assert all(other == first for other in others), f"lane {lane}"
        return first

    of_lanes = zip(*(state["places"] for state in states), strict=True)
    bad = dict.fromkeys(index for state in states for index in state["bad"])
    return {"bad": [*bad], "places": [known(*each) for each in enumerate(of_lanes)]}
