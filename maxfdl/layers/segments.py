"""Runs of repeats of a stack whose layers compute the same program.

A stack whose products are other ones at the ends of the decoder (`Product.ends`) is cut
where they change, so that each run of repeats is traced once. Its arrays stay whole.
"""

import itertools
from collections.abc import Iterable
from typing import NamedTuple

from maxfdl.ops.product import Depth, Ends


class Segment(NamedTuple):
    """Repeats of a stack that run the same program, and their place in the decoder."""

    repeats: range
    depth: Depth | None


def segments_of(
    repeats: int, cycle: int, depth: Depth | None, ends: Iterable[Ends]
) -> list[Segment]:
    """Returns the segments of a stack, in order.

    Args:
      repeats: How often its cycle comes.
      cycle: Layers of the cycle.
      depth: All layers of the stack; None: they are in no decoder.
      ends: Where products change.
    """
    if depth is None:
        return [Segment(range(repeats), None)]

    def sides(repeat: int) -> list[bool]:
        layers = depth.of_repeats(range(repeat, repeat + 1), cycle).layers
        return [each.holds(n, depth.total) for each in ends for n in layers]

    runs = [list(run) for _, run in itertools.groupby(range(repeats), sides)]
    alike = [range(run[0], run[-1] + 1) for run in runs]
    return [Segment(run, depth.of_repeats(run, cycle)) for run in alike]
