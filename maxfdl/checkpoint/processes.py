"""What the processes of one run do together when they save and restore."""

import json
import sys
from typing import Any

import jax
import numpy as np


def synchronise(name: str) -> None:
    """Waits until every process has called this."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def gather(value: Any) -> list[Any]:
    """Returns the JSON values of all processes, in order; all must call this."""
    text = json.dumps(value).encode()
    if jax.process_count() == 1:
        return [json.loads(text)]
    from jax.experimental import multihost_utils

    sizes = multihost_utils.process_allgather(np.asarray(len(text)))
    padded = np.zeros(int(np.max(sizes)), np.uint8)
    padded[: len(text)] = np.frombuffer(text, np.uint8)
    rows = multihost_utils.process_allgather(padded)
    return [
        json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)
    ]


def say(message: str) -> None:
    """Prints a line on stderr; of several processes, the first alone does."""
    if jax.process_index() == 0:
        print(message, file=sys.stderr, flush=True)
