"""Work in a background thread, which leaves the main one free to be interrupted."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

from maxfdl.run.leave import BACKGROUND

T = TypeVar("T")
_END = object()


def each_in_background(items: Iterator[T]) -> Iterator[T]:
    """Yields the items; a background thread works on the next while this one waits.

    So Ctrl-C is answered while XLA compiles, which runs no Python for minutes. What the
    thread does then is left to `leave.without_waiting`.
    """
    background = ThreadPoolExecutor(1, BACKGROUND)
    try:
        while (item := _result(background.submit(next, items, _END))) is not _END:
            yield item  # pyright: ignore[reportReturnType]  It is not _END.
    except BaseException:
        background.shutdown(wait=False)
        raise
    background.shutdown()


def _result(future: Future[T]) -> T:
    """Returns the result. A signal that comes just before a wait does not end that, so
    none of them is long."""
    while not wait([future], timeout=0.5).done:
        pass
    return future.result()
