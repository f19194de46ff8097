"""Saves a graph and its variables as a checkpoint that MaxText restores."""

import contextlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, Literal

import fiddle as fdl
import jax

from maxfdl import graph
from maxfdl.errors import UserError
from maxfdl.experiment import Experiment
from maxfdl.layers.frozen import trained
from maxfdl.layers.linen.module import Module as LinenModule
from maxfdl.maxtext.describing import options_of
from maxfdl.model import LinenModel, Model, NnxModel
from maxfdl.optim.owners import Owners
from maxfdl.run.maxtext_state import moments_in
from maxfdl.tensors.maxtext.folder import CHECKPOINT, CONFIG, MaxTextFolder, is_maxtext
from maxfdl.tensors.maxtext.layout import CheckpointLayout, layout_of
from maxfdl.tensors.maxtext.options import Options
from maxfdl.tensors.maxtext.streams import Stream, fresh_streams, streams_in
from maxfdl.tensors.maxtext.writing import MaxTextTarget, write_maxtext
from maxfdl.tensors.staging import swapped_in
from maxfdl.tensors.table import layers_of, leaves_of

Library = Literal["linen", "nnx"]


def save(
    folder: str | pathlib.Path,
    config: fdl.Buildable,
    variables: Mapping[str, Any],
    state: Mapping[str, Any] | None = None,
    *,
    layout: Library = "linen",
    scanned: bool = True,
    allow_non_finite: bool = False,
) -> None:
    """Writes `checkpoint/`, which MaxText restores, and `config.json` with its options.

    An older export in the folder is replaced once the new one is complete. With several
    processes, all must call, and the first writes. To go on in MaxText, put
    `checkpoint/` where a step of its run is, and run with the options of config.json.

    Numbers stay bit for bit where the network is as `load` makes it. Elsewhere, such as
    where the scale of queries has to go into their kernel, they may be rounded, which
    is told on stderr.

    Args:
      folder: Where to; made if it is missing.
      config: Graph of the experiment or, without `state`, of its model.
      variables: The weights.
      state: The training state: moments and step. None writes the parameters alone.
      layout: The library of the MaxText that is to read it: Linen as in 0.2.4, or NNX
        as in 0.2.5.
      scanned: Whether layers are stacks of arrays, as with `scan_layers=true`.
      allow_non_finite: Whether to write weights that are not finite.

    Raises:
      UserError: If MaxText has no such network or optimizer, if weights are not finite,
        or if the folder cannot be written.
    """
    if layout not in ("linen", "nnx"):
        raise ValueError(f"layout ({layout}) must be 'linen' or 'nnx'.")
    made: Any = graph.validate(config)
    is_experiment = issubclass(_callable(made), Experiment)
    if state is not None and not is_experiment:
        raise UserError(
            "state needs the graph of the experiment, whose optimizer it is."
        )
    network = made.model if is_experiment else made
    origin = _origin(made) if is_experiment else None
    axis = origin.options["param_scan_axis"] if origin else 1
    laid_out = CheckpointLayout(layout, scanned, axis, whole=state is not None)
    run = made if state is not None else None
    options = options_of(network, run, laid_out, origin.options if origin else None)
    model, factory = _model(network)
    target = MaxTextTarget(model, factory, options, laid_out)
    streams = _streams(origin, options, laid_out, model) if state is not None else []
    moments = None if state is None else _moments(model, state)
    step = 0 if state is None else int(state["step"])
    path = pathlib.Path(os.path.expanduser(folder))
    owned = (CONFIG, f"{CHECKPOINT}/**/*")
    staged = swapped_in(path, owned, last=CONFIG)
    with staged if jax.process_index() == 0 else contextlib.nullcontext() as new:
        if new is not None:
            (new / CHECKPOINT).mkdir()
            (new / CONFIG).write_text(_config(options, layout, step))
        write_maxtext(
            new and new / CHECKPOINT,
            target,
            variables,
            moments,
            step,
            streams,
            allow_non_finite=allow_non_finite,
        )


def _config(options: Options, layout: Library, step: int) -> str:
    told = {"maxtext": options["maxtext"], "library": layout, "state_step": step}
    of_maxtext = {name: x for name, x in options.items() if name != "maxtext"}
    return json.dumps({**told, "resolved": of_maxtext}, indent=1) + "\n"


def _origin(run: Any) -> MaxTextFolder | None:
    """Returns the checkpoint that an experiment started from, if it is still there."""
    path = run.init_from and pathlib.Path(run.init_from)
    return MaxTextFolder(path) if path and is_maxtext(path) else None


def _moments(model: Model, state: Mapping[str, Any]) -> dict[str, Any]:
    """Returns trees like the parameters, by the names of the optimizer's moments."""
    declared = trained(model.parameters())
    owners = Owners(jax.tree.map(lambda p: p.abstract("float32"), declared))
    found: dict[str, Any] = {}
    for name, own, leaf in moments_in(state["optimizer"], owners):
        node = found.setdefault(name, {})
        for step in own[:-1]:
            node = node.setdefault(step.key, {})
        node[own[-1].key] = leaf
    return found


def _streams(
    origin: MaxTextFolder | None,
    options: Options,
    layout: CheckpointLayout,
    model: Model,
) -> list[Stream]:
    """Returns the random streams of NNX: those of the origin if it is laid out so."""
    if layout.framework != "nnx":
        return []
    if origin and layout_of(origin.items, origin.options) == layout:
        return streams_in(origin.items)
    return fresh_streams(options, layout, len([*layers_of(leaves_of(model))]))


def _model(network: Any) -> tuple[Model, Any]:
    is_linen = issubclass(_callable(network), LinenModule)
    factory = graph.build(network)
    return (LinenModel if is_linen else NnxModel)(module=factory), factory


def _callable(node: fdl.Buildable) -> type:
    made = fdl.get_callable(node)
    return made if isinstance(made, type) else object
