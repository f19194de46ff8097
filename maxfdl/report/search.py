"""Looks for the mesh, the remat and the tiling with the least time of a step.

Greedy, one choice after the other: the mesh first, then what the backward pass keeps,
then the tiles of the loss. Each goes on from the best that was found before. A graph
that cannot run so on these devices costs nothing, for it is refused before it compiles;
so is one that is estimated to need far more memory than a device has.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import fiddle as fdl
import jax

from maxfdl import graph
from maxfdl.errors import UserError
from maxfdl.layers.moe import MoE
from maxfdl.report.ahead import Ahead, compile_ahead, program_of
from maxfdl.report.memory.estimate import estimate_on
from maxfdl.sharding.room import size_text
from maxfdl.train.program import Program

_REMAT = ("none", "dots_no_batch", "attention_out", "full")
_TILES = (1, 8)
_FEW = (2, 4, 8)
"""Sizes that are tried of the axes beside fsdp."""
_FAR_MORE = 1.5
"""Times the memory of a device that a step is estimated to need and not compiled."""

Mutations = tuple[str, ...]

Choice = dict[str, Mutations]
"""What was chosen, by what there was to choose: `mesh`, `remat`, `tiling`."""

Make = Callable[[Sequence[str]], fdl.Buildable]
"""Returns the graph with these mutations, written as calls: `remat(policy=full)`."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """One graph that was tried.

    Args:
      mutations: What makes it of the graph that the search began with.
      report: Of its step; None if it was refused.
      refusal: Why it cannot run on these devices, and was not compiled.
      failure: What went wrong as it was compiled, of a bug.
    """

    mutations: Mutations
    report: Ahead | None = None
    refusal: str | None = None
    failure: str | None = None

    def as_json(self) -> dict[str, Any]:
        report = None if self.report is None else self.report.as_json()
        return {**dataclasses.asdict(self), "report": report}


def trials(make: Make, devices: Sequence[jax.Device], budget: int) -> Iterator[Trial]:
    """Yields what is tried, as it is done; the first is the graph itself.

    Args:
      make: Makes the graphs.
      devices: To compile for.
      budget: How many steps are compiled at most.
    """
    search = _Search(make, devices, budget)
    first = search.attempt({})
    if first is None:
        return
    yield first
    chosen: Choice = {}
    if first.report is None or not first.report.fits:
        # The mesh is chosen among steps that have room, if there are any.
        chosen = {"remat": ("remat(policy=full)",)}
    choices = search.choices(make(()))
    for name, options in choices:
        # Meshes are many; half of the budget is for the other choices.
        kept = budget // 2 if name == choices[0][0] else 0
        for option in options:
            if search.left <= kept:
                break
            trial = search.attempt(chosen | {name: option})
            if trial is not None:
                yield trial
        chosen = search.best_choice() or chosen


def best(found: Sequence[Trial]) -> Trial | None:
    """Returns the trial with the least time among those that fit."""
    fitting = [t for t in found if t.report is not None and t.report.fits]
    return min(fitting, key=_rank, default=None)


def _rank(trial: Trial) -> tuple[bool, float, float]:
    """Orders trials: those that fit by time, then the others by memory.

    Times that are the same to three digits are equal. Of these, and of all on a chip
    without a data sheet, the one with the least memory is the best.
    """
    report = trial.report
    if report is None:
        return True, math.inf, math.inf
    if not report.fits:
        return True, 0.0, report.peak_bytes or math.inf
    seconds = report.roofline.seconds if report.roofline else 0.0
    return False, float(f"{seconds:.3g}"), report.peak_bytes or 0.0


class _Search:
    """What was tried so far."""

    def __init__(self, make: Make, devices: Sequence[jax.Device], budget: int):
        self._make = make
        self._devices = devices
        self.left = budget
        self._seen: set[str] = set()
        self._done: list[tuple[Choice, Trial]] = []

    def attempt(self, choice: Choice) -> Trial | None:
        """Compiles a choice; returns None if it was tried already."""
        mutations = tuple(text for texts in choice.values() for text in texts)
        try:
            config = self._make(mutations)
            program = program_of(graph.build(config), self._devices)
            if (key := _key(config, program)) in self._seen:
                return None
            self._seen.add(key)
            name = getattr(config, "name", "?")
            self._check_room(name, program)
            self.left -= 1
            report, _ = compile_ahead(name, program)
            trial = Trial(mutations, report)
        except UserError as error:
            trial = Trial(mutations, refusal=str(error))
        except Exception as error:  # a bug, which the other choices need not have
            said = (str(error).strip() or "?").splitlines()[0]
            trial = Trial(mutations, failure=f"{type(error).__name__}: {said}")
        self._done.append((choice, trial))
        return trial

    def _check_room(self, name: str, program: Program) -> None:
        """Raises UserError for a step that surely does not fit."""
        found = estimate_on(name, program, self._devices[0])
        have = found.memory_bytes
        if have is not None and found.peak_bytes > _FAR_MORE * have:
            raise UserError(
                f"it needs about {size_text(found.peak_bytes)} on a device, which has"
                f" {size_text(int(have))}, by an estimate that is trusted from"
                f" {_FAR_MORE} times on; not compiled."
            )

    def best_choice(self) -> Choice | None:
        """Returns the choice of the best trial so far, if any was compiled."""
        compiled = [(c, t) for c, t in self._done if t.report is not None]
        return min(compiled, key=lambda pair: _rank(pair[1]))[0] if compiled else None

    def choices(self, config: fdl.Buildable) -> list[tuple[str, list[Mutations]]]:
        """Returns what is chosen in turn, and the mutations to choose from."""
        return [
            ("mesh", [*_meshes(config, self._devices)]),
            ("remat", [(f"remat(policy={policy})",) for policy in _REMAT]),
            ("tiling", [(f"vocab_tiling(num_tiles={tiles})",) for tiles in _TILES]),
        ]


def _key(config: fdl.Buildable, program: Program) -> str:
    """Returns a text that graphs share which compile to the same step."""
    config = graph.copy(config)
    fdl.materialize_defaults(config)
    config.mesh = str(program.sharding.mesh.shape)  # in which no axis is -1
    return graph.as_text(config)


def _meshes(
    config: fdl.Buildable, devices: Sequence[jax.Device]
) -> Iterator[Mutations]:
    """Yields meshes of all devices: fsdp alone, and with one more axis."""
    count = len(devices)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    yield (f"mesh(fsdp={count})",)
    if slices > 1:
        yield (f"mesh(data={slices},fsdp={count // slices})",)
    axes = ["tensor", "data", "context", "stage"]
    made = [fdl.get_callable(node) for _, node in graph.iterate(config.model)]
    if any(isinstance(each, type) and issubclass(each, MoE) for each in made):
        axes.insert(0, "expert")
    for size in _FEW:
        for axis in axes:
            if count % size or (axis, size) == ("data", slices):
                continue
            mesh = f"mesh(fsdp={count // size},{axis}={size})"
            # Twice as many microbatches as stages: a third of a step is bubble.
            pipeline = f"pipeline(stages={size},microbatches={2 * size})"
            yield (mesh, pipeline) if axis == "stage" else (mesh,)
