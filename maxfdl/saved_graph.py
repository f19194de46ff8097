"""Which graph a run on disk has, and whether another graph may go on with it."""

import json
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from maxfdl import graph
from maxfdl.checkpoint.checkpointer import Checkpointer
from maxfdl.errors import ConfigError, UserError
from maxfdl.run.directory import CHECKPOINTS, CONFIG_JSON, RunDirectory


def saved_graph(run: RunDirectory, trust: Sequence[str] = ()) -> Any:
    """Returns the graph of a run, or None if nothing in its directory tells it.

    Returns that of config.json; without it, that of the newest checkpoint. Those of all
    checkpoints must be the same, but for operational fields.

    Raises:
      UserError: If one of them is another, or if one cannot be loaded.
    """
    texts = _texts(run)
    if not texts:
        return None
    (first, text), *others = texts.items()
    mine = _load(run, first, text, trust)
    for name, other in others:
        if json.loads(other) != json.loads(text):
            lines = differences(mine, _load(run, name, other, trust))
            if lines:
                raise UserError(_disagreement(run, first, name, lines))
    return mine


def differences(old: Any, new: Any) -> list[str]:
    """Returns lines on what makes two graphs two runs; none if they are one run's."""
    return graph.diff(graph.without_operational(old), graph.without_operational(new))


def refuse_another_run(run: RunDirectory, old: Any, new: Any) -> None:
    """Raises UserError unless `new` may go on with the run of the graph `old`."""
    if lines := differences(old, new):
        changes = "\n".join(f"  {line}" for line in lines)
        raise UserError(
            f"{run.path} holds a run of another graph; give another --run_dir (with"
            f" init_from={run.path} it begins with the weights of this one, but at step"
            " 0, with a new optimizer and the data from its beginning), or undo the"
            f" difference:\n{changes}"
        )


def check_schedule(old: Any, new: Any, taken: int, *, extend: bool = False) -> str:
    """Returns a remark if `new` has other learning rates for steps that were taken.

    Args:
      old, new: Graphs of one run, which differ in operational fields alone. Those that
        the learning rate depends on are `steps` and where its schedule ends.
      taken: Steps that were taken.
      extend: Whether it may have other rates.

    Raises:
      UserError: If it has, and may not.
    """
    schedule, then = (graph.build(each.optimizer.schedule) for each in (old, new))
    decay, now = schedule.decay(old.steps), then.decay(new.steps)
    if decay == now or taken <= min(decay.start, now.start):
        return ""
    if extend:
        step = jnp.int32(taken)
        rates = float(schedule(step, old.steps)), float(then(step, new.steps))
        return (
            f"the learning rate now falls to its end at step {now.stop}, and not at"
            f" {decay.stop}: that of the next step is {rates[1]:.3g}, and not"
            f" {rates[0]:.3g}"
        )
    raise UserError(_moved_end(old, new, schedule, then, taken))


def _texts(run: RunDirectory) -> dict[str, str]:
    """Returns the graphs as JSON, config.json's first, by where in the run they are."""
    texts = {}
    config = run.config_json()
    if config is not None:
        texts[CONFIG_JSON] = config
    for step, text in Checkpointer(directory=run.checkpoints).graphs().items():
        texts[f"{CHECKPOINTS}/{step}"] = text
    return texts


def _load(run: RunDirectory, name: str, text: str, trust: Sequence[str]) -> Any:
    try:
        return graph.load_json(text, trust=tuple(trust))
    except ConfigError as error:
        raise UserError(f"{run.path / name}: {error}") from error


def _moved_end(old: Any, new: Any, schedule: Any, then: Any, taken: int) -> str:
    """Returns the refusal of a schedule that ends at another step."""
    lengths = (getattr(each, "decay_steps", None) for each in (schedule, then))
    ends = {
        "steps": (old.steps, new.steps),
        "optimizer.schedule.decay_steps": tuple(lengths),
    }
    what = " and ".join(f"{k} {a} -> {b}" for k, (a, b) in ends.items() if a != b)
    decay, now, keep = schedule.decay(old.steps), then.decay(new.steps), ""
    if decay.start == 0 and hasattr(schedule, "decay_steps"):
        keep = (
            f", or optimizer.schedule.decay_steps={decay.stop - schedule.warmup_steps}"
            " to keep the old end and go on at the final rate"
        )
    return (
        f"the learning rate of this run ({type(schedule).__name__}) falls to its end at"
        f" step {decay.stop}, and {what} moves that end to step {now.stop}; after step"
        f" {taken} add --extend to go on with the rates that lead there{keep}, or undo"
        " the difference."
    )


def _disagreement(run: RunDirectory, first: str, name: str, lines: list[str]) -> str:
    remedy = f"move {name} out of the directory"
    if first == CONFIG_JSON:
        remedy = (
            f"put the right {CONFIG_JSON} back, or delete it (the checkpoints hold the"
            f" graph, too), or {remedy}"
        )
    changes = "\n".join(f"  {line}" for line in lines)
    return (
        f"{run.path}: {first} and {name} are graphs of two runs; {remedy}. From the"
        f" one to the other:\n{changes}"
    )
