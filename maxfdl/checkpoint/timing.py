"""How long checkpoints take, beside Orbax alone."""

import dataclasses
import statistics
import time
import uuid
from typing import Any

import jax
import numpy as np

from maxfdl.checkpoint.checkpointer import Checkpointer, NoData
from maxfdl.checkpoint.orbax import import_orbax, orbax_context
from maxfdl.paths import AnyPath, remove_folder

_STACKS, _LAYERS, _WIDTH = 8, 8, 512


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
    """Returns stacks of random float32 matrices, which compression cannot shrink."""
    rows = max(1, num_bytes // (4 * _STACKS * _LAYERS * _WIDTH))
    draw = np.random.default_rng(0)
    shape = (_LAYERS, rows, _WIDTH)
    return {
        "params": {
            f"stack_{i}": jax.device_put(draw.standard_normal(shape, np.float32))
            for i in range(_STACKS)
        }
    }


class _Verified:
    """Steps that are saved and restored as a run does it."""

    def __init__(self, folder: AnyPath):
        self._checkpointer = Checkpointer(directory=folder / "verified", keep=1)
        self.wait = self._checkpointer.wait
        self.close = self._checkpointer.close

    def save(self, step: int, state: Any) -> None:
        self._checkpointer.save(step, state, NoData(), "{}")

    def restore(self, step: int, abstract: Any) -> Any:
        return self._checkpointer.restore(step, abstract, NoData())


class _Plain:
    """The same steps by Orbax's own `training.Checkpointer`."""

    def __init__(self, folder: AnyPath):
        training = import_orbax().training
        keep = training.preservation_policies.LatestN(1)
        self._checkpointer = training.Checkpointer(
            str(folder / "plain"),
            preservation_policy=keep,
            context=orbax_context(folder),
        )
        self._pending: Any = None
        self.close = self._checkpointer.close

    def save(self, step: int, state: Any) -> None:
        save = self._checkpointer.save_checkpointables_async
        self._pending = save(step, {"state": state}, force=True)

    def wait(self) -> None:
        self._pending.result()

    def restore(self, step: int, abstract: Any) -> Any:
        return self._checkpointer.load_checkpointables(step, {"state": abstract})


def measure(num_bytes: int, times: int, folder: AnyPath) -> dict[str, list[Seconds]]:
    """Returns the times of verified saves and of plain ones, taken in turns.

    Each kind goes first every other time. The first save and restore, which also
    imports, is not among them.

    Args:
      num_bytes: Of the state.
      times: How often each kind is measured.
      folder: Where the checkpoints go; they are removed.
    """
    state = random_state(num_bytes)
    place = folder.absolute() / f"maxfdl-bench-{uuid.uuid4().hex}"
    place.mkdir()
    try:
        kinds = {"verified": _Verified(place), "Orbax alone": _Plain(place)}
        found: dict[str, list[Seconds]] = {name: [] for name in kinds}
        for step in range(1, times + 2):
            for name in sorted(kinds, reverse=bool(step % 2)):
                found[name].append(_timed(kinds[name], step, state))
        for kind in kinds.values():
            kind.close()
    finally:
        remove_folder(place)
    return {name: each[1:] for name, each in found.items()}


def median(found: list[Seconds], field: str) -> float:
    """Returns the median of one of the fields."""
    return statistics.median(getattr(each, field) for each in found)


def ratio(found: dict[str, list[Seconds]], field: str) -> float:
    """Returns the median of the ratios of neighbours in time: verified to plain."""
    pairs = zip(found["verified"], found["Orbax alone"], strict=True)
    return statistics.median(getattr(a, field) / getattr(b, field) for a, b in pairs)


def _timed(kind: _Verified | _Plain, step: int, state: Any) -> Seconds:
    began = time.perf_counter()
    kind.save(step, state)
    blocked = time.perf_counter()
    kind.wait()
    saved = time.perf_counter()
    jax.block_until_ready(kind.restore(step, _abstract(state)))
    return Seconds(blocked - began, saved - began, time.perf_counter() - saved)


def _abstract(state: Any) -> Any:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
