"""How long checkpoints take, beside Orbax alone."""

import dataclasses
import pathlib
import shutil
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from maxfdl.checkpoint.checkpointer import Checkpointer, NoData
from maxfdl.checkpoint.orbax import import_orbax

_ARRAYS = 16


@dataclasses.dataclass(frozen=True)
class Seconds:
    """Of one save and one restore of it.

    Args:
      blocked: Until the caller may go on, with arrays copied and files being written.
      saved: Until the step is whole on disk.
      restored: Until the arrays are back on their devices.
    """

    blocked: float
    saved: float
    restored: float


def random_state(num_bytes: int) -> dict[str, Any]:
    """Returns arrays of random float32 numbers, which compression cannot shrink."""
    size = max(1, num_bytes // _ARRAYS // 4)
    draw = np.random.default_rng(0)
    return {
        "params": {
            f"array_{i}": jax.device_put(draw.standard_normal(size, np.float32))
            for i in range(_ARRAYS)
        }
    }


def measure(
    num_bytes: int, times: int, folder: pathlib.Path
) -> dict[str, list[Seconds]]:
    """Returns the times of verified saves and of plain ones, taken in turns.

    The first save and restore of each kind, which also imports and compiles, is not
    among them.

    Args:
      num_bytes: Of the state.
      times: How often each kind is measured.
      folder: Where the checkpoints go; they are removed.
    """
    state = random_state(num_bytes)
    kinds = {"verified": _verified, "Orbax alone": _plain}
    found: dict[str, list[Seconds]] = {name: [] for name in kinds}
    for _ in range(times + 1):
        for name, save_and_restore in kinds.items():
            place = folder / "maxfdl_checkpoint_bench"
            shutil.rmtree(place, ignore_errors=True)
            found[name].append(save_and_restore(state, place))
            shutil.rmtree(place, ignore_errors=True)
    return {name: each[1:] for name, each in found.items()}


def median(found: list[Seconds], field: str) -> float:
    """Returns the median of one of the fields."""
    return statistics.median(getattr(each, field) for each in found)


def _verified(state: Any, place: pathlib.Path) -> Seconds:
    checkpointer = Checkpointer(directory=place)
    try:
        return _timed(
            lambda: checkpointer.save(1, state, NoData(), "{}"),
            checkpointer.wait,
            lambda: checkpointer.restore(1, _abstract(state), NoData()),
        )
    finally:
        checkpointer.close()


def _plain(state: Any, place: pathlib.Path) -> Seconds:
    ocp = import_orbax()
    pending = []
    save = ocp.save_checkpointables_async
    return _timed(
        lambda: pending.append(save(place, {"state": state})),
        lambda: pending.pop().result(),
        lambda: ocp.load_checkpointables(place, {"state": _abstract(state)}),
    )


def _timed(
    save: Callable[[], Any], wait: Callable[[], Any], restore: Callable[[], Any]
) -> Seconds:
    began = time.perf_counter()
    save()
    blocked = time.perf_counter()
    wait()
    saved = time.perf_counter()
    jax.block_until_ready(restore())
    return Seconds(blocked - began, saved - began, time.perf_counter() - saved)


def _abstract(state: Any) -> Any:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
