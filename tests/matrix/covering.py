"""Few combinations in which every pair of choices comes together."""

import itertools
import random
from collections.abc import Sequence

NONE = "-"


def covering(choices: Sequence[Sequence[str]], seed: int = 0) -> list[tuple[str, ...]]:
    """Returns rows with one of each of `choices`, in which every pair is in some row.

    A choice may be `NONE`, whose pairs need not be there.

    Greedy: each row takes as many of the pairs still missing as it can (Cohen et al.
    1997, AETG).
    """
    rng = random.Random(seed)
    missing = {
        frozenset([(i, a), (j, b)])
        for (i, left), (j, right) in itertools.combinations(enumerate(choices), 2)
        for a in left
        for b in right
        if NONE not in (a, b)
    }
    rows = []
    while missing:
        row = max((_row(choices, missing, rng) for _ in range(20)), key=_news(missing))
        missing -= _pairs(row)
        rows.append(tuple(row[i] for i in range(len(choices))))
    return rows


def _row(choices, missing, rng) -> dict[int, str]:
    row = dict(rng.choice(sorted(map(sorted, missing))))
    for i in rng.sample(range(len(choices)), len(choices)):
        if i not in row:
            best = [(_gain(row, (i, c), missing), rng.random(), c) for c in choices[i]]
            row[i] = max(best)[2]
    return row


def _gain(row, choice, missing) -> int:
    return sum(frozenset([choice, each]) in missing for each in row.items())


def _news(missing):
    return lambda row: len(_pairs(row) & missing)


def _pairs(row) -> set[frozenset]:
    return {frozenset(pair) for pair in itertools.combinations(row.items(), 2)}
