"""What a run prints: lines that a person reads while it goes."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax

from maxfdl.terminal import discard

_when_nobody_reads: Callable[[], Any] | None = None


def say(message: str) -> None:
    """Prints a line at once; of several processes, the first alone does.

    Raises:
      BrokenPipeError: If the reader of the output has gone, unless `outliving_reader`.
    """
    if jax.process_index() != 0:
        return
    try:
        print(message, flush=True)
    except BrokenPipeError:
        if _when_nobody_reads is None:
            raise
        discard(sys.stdout)
        _when_nobody_reads()


@contextlib.contextmanager
def outliving_reader(ask_to_stop: Callable[[], Any]) -> Iterator[None]:
    """While entered, `say` calls `ask_to_stop` when the reader of the output has gone,
    and later lines go nowhere: what was trained is to be saved first."""
    global _when_nobody_reads
    _when_nobody_reads = ask_to_stop
    try:
        yield
    finally:
        _when_nobody_reads = None


def note(message: str) -> None:
    """Prints a line on standard error at once; of several processes, the first does."""
    if jax.process_index() == 0:
        print(f"note: {message}", file=sys.stderr, flush=True)


def step_line(step: int, steps: int, metrics: dict[str, float], left: float) -> str:
    """Returns the line of one logged step."""
    return (
        f"step {step:>{len(str(steps))}}/{steps}"
        f"  loss {metrics['loss']:.4f}"
        f"  grad_norm {metrics['grad_norm']:.3f}"
        f"  {quantity(metrics['tokens_per_second'])} tokens/s"
        f"  {duration(left)} left"
    )


def quantity(number: float) -> str:
    """Returns a number in three digits: 12.3k, 4.56M."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"


def duration(seconds: float) -> str:
    """Returns a length of time as 7s, 1m07s or 2h05m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
