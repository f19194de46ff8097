"""Short forms for many paths that differ in one step: `layers[0..79].{q,k}.dot`."""

import re
from collections.abc import Iterable

_STEP = re.compile(r"\.?[^.\[]+|\[[^\]]*\]")

Pattern = tuple[tuple[str, ...], ...]  # for each step, the alternatives


def collapse(paths: Iterable[str]) -> list[str]:
    """Returns patterns that together stand for exactly `paths`, in their order.

    The work is linear in the number of paths: each step position is merged once, by
    hashing what is left of the path without it.
    """
    patterns: list[Pattern] = [
        tuple((step,) for step in _STEP.findall(path)) for path in paths
    ]
    depth = max(map(len, patterns), default=0)
    for position in reversed(range(depth)):
        patterns = _merge(patterns, position)
    return [_text(pattern) for pattern in patterns]


def _merge(patterns: list[Pattern], position: int) -> list[Pattern]:
    groups: dict[tuple, list[str]] = {}
    for pattern in patterns:
        if position >= len(pattern):
            groups[pattern, None] = []
            continue
        # Names merge with names, indices with indices.
        is_index = pattern[position][0].startswith("[")
        rest = (pattern[:position], is_index, pattern[position + 1 :])
        groups.setdefault((rest, position), []).extend(pattern[position])
    return [
        key if at is None else (*key[0], tuple(steps), *key[2])
        for (key, at), steps in groups.items()
    ]


def _text(pattern: Pattern) -> str:
    return "".join(map(_step_text, pattern)).removeprefix(".")


def _step_text(steps: tuple[str, ...]) -> str:
    if len(steps) == 1:
        return steps[0]
    if steps[0].startswith("["):
        return f"[{_ranges([step[1:-1] for step in steps])}]"
    return ".{" + ",".join(step.removeprefix(".") for step in steps) + "}"


def _ranges(keys: list[str]) -> str:
    """`0,1,2,5` becomes `0..2,5`; keys that are no numbers stay as they are."""
    if not all(key.isdigit() for key in keys):
        return ",".join(keys)
    runs: list[list[int]] = []
    for number in sorted(map(int, keys)):
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(r[0]) if len(r) == 1 else f"{r[0]}..{r[-1]}" for r in runs)
