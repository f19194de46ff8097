"""Saves a graph and its variables as a checkpoint that MaxText restores."""

import contextlib
import dataclasses
import json
import os
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
from maxfdl.paths import as_path
from maxfdl.run.maxtext_state import moments_in
from maxfdl.tensors.maxtext.folder import CHECKPOINT, CONFIG, MaxTextFolder, is_maxtext
from maxfdl.tensors.maxtext.layout import CheckpointLayout
from maxfdl.tensors.maxtext.options import Options
from maxfdl.tensors.maxtext.streams import Stream, fresh_streams, streams_in
from maxfdl.tensors.maxtext.writing import MaxTextTarget, write_maxtext, write_paxml
from maxfdl.tensors.staging import swapped_in
from maxfdl.tensors.table import layers_of, leaves_of

Library = Literal["linen", "nnx"]


def save(
    folder: str | os.PathLike[str],
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
    moments = None
    if state is not None:
        if not is_experiment(config):
            raise UserError(
                "state must come with the graph of its experiment, and not of a model."
            )
        moments = moments_of_state(graph.build(config), state)
    step = 0 if state is None else int(state["step"])
    write(
        folder,
        config,
        variables,
        moments,
        step,
        CheckpointLayout(layout, scanned),
        allow_non_finite=allow_non_finite,
    )


def write(
    folder: str | os.PathLike[str],
    config: fdl.Buildable,
    variables: Mapping[str, Any],
    moments: Mapping[str, Any] | None,
    step: int,
    layout: CheckpointLayout,
    *,
    allow_non_finite: bool = False,
) -> None:
    """Writes what `save` does; `variables` and `moments` may be `OnDisk`.

    Args:
      folder: Where to.
      config: Graph of the experiment or of its model.
      variables: The weights.
      moments: Trees like the parameters by name; None: parameters alone.
      step: Steps that were taken.
      layout: How to lay the checkpoint out, but for what `moments` and the origin say.
      allow_non_finite: Whether to write weights that are not finite.
    """
    made: Any = graph.validate(config)
    network = made.model if is_experiment(made) else made
    origin = _origin(made) if is_experiment(made) else None
    axis = origin.options["param_scan_axis"] if origin else layout.axis
    whole = moments is not None
    layout = dataclasses.replace(layout, axis=axis, whole=whole)
    known = origin.options if origin else None
    options = options_of(network, made if whole else None, layout, known)
    model = _model(network)
    target = MaxTextTarget(model, options, layout)
    streams = _streams(origin, target) if whole else []
    path = as_path(folder)
    staged = swapped_in(path, (CONFIG, f"{CHECKPOINT}/**/*"), last=CONFIG)
    with staged if jax.process_index() == 0 else contextlib.nullcontext() as new:
        if new is not None:
            (new / CHECKPOINT).mkdir()
            (new / CONFIG).write_text(_config(options, layout.framework, step), "utf-8")
        write_maxtext(
            new and new / CHECKPOINT,
            target,
            variables,
            moments,
            step,
            streams,
            allow_non_finite=allow_non_finite,
        )


def save_as_paxml(
    folder: str | os.PathLike[str],
    config: fdl.Buildable,
    variables: Mapping[str, Any],
    moments: Mapping[str, Any] | None,
    step: int,
    *,
    allow_non_finite: bool = False,
) -> None:
    """Writes a GPT-3 as a checkpoint of Paxml; arguments as of `write`.

    Raises:
      UserError: If the network is no GPT-3, or its optimizer not Paxml's.
    """
    made: Any = graph.validate(config)
    network = made.model if is_experiment(made) else made
    run = made if moments is not None else None
    options = options_of(network, run, CheckpointLayout("linen", True), None)
    if options["decoder_block"] != "gpt3" or not options["logits_via_embedding"]:
        raise UserError(
            "Paxml's checkpoints hold a GPT-3, whose head is its embedding; this"
            f" network is a {options['decoder_block']}."
        )
    if run is not None and options["opt_type"] != "adam_pax":
        raise UserError(
            f"Paxml keeps the moments of adam_pax, and this run has"
            f" {options['opt_type']}: its moments differ; write the parameters alone."
        )
    path = as_path(folder)
    last = "mdl_vars.params.lm.softmax.logits_ffn.linear.w/.zarray"
    owned = ("mdl_vars.*/**/*", "opt_states_0.*/**/*", "step/**/*")
    staged = swapped_in(path, owned, last)
    with staged if jax.process_index() == 0 else contextlib.nullcontext() as new:
        write_paxml(
            new,
            _model(network),
            options,
            variables,
            moments,
            step,
            allow_non_finite=allow_non_finite,
        )


def is_experiment(config: fdl.Buildable) -> bool:
    return issubclass(_callable(config), Experiment)


def _config(options: Options, layout: Library, step: int) -> str:
    told = {"maxtext": options["maxtext"], "library": layout, "state_step": step}
    of_maxtext = {name: x for name, x in options.items() if name != "maxtext"}
    return json.dumps({**told, "resolved": of_maxtext}, indent=1) + "\n"


def _origin(run: Any) -> MaxTextFolder | None:
    """Returns the checkpoint that an experiment started from, if it is still there."""
    path = run.init_from and as_path(run.init_from)
    return MaxTextFolder(path) if path and is_maxtext(path) else None


def moments_of_state(
    experiment: Experiment, state: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns trees like the parameters, by the names of the optimizer's moments."""
    declared = trained(experiment.make_model().parameters())
    owners = Owners(jax.tree.map(lambda p: p.abstract("float32"), declared))
    found: dict[str, Any] = {}
    for name, own, leaf in moments_in(state["optimizer"], owners):
        node = found.setdefault(name, {})
        for step in own[:-1]:
            node = node.setdefault(step.key, {})
        node[own[-1].key] = leaf
    return found


def _streams(origin: MaxTextFolder | None, target: MaxTextTarget) -> list[Stream]:
    """Returns the random streams of NNX: those of the origin if it is laid out so."""
    layout = target.layout
    if layout.framework != "nnx":
        return []
    if origin and origin.layout == layout:
        return streams_in(origin.items)
    num_layers = len([*layers_of(leaves_of(target.model))])
    paths = [binding.theirs[0] for binding in target.bindings]
    return fresh_streams(target.options, layout, num_layers, paths)


def _model(network: Any) -> Model:
    is_linen = issubclass(_callable(network), LinenModule)
    return (LinenModel if is_linen else NnxModel)(module=graph.build(network))


def _callable(node: fdl.Buildable) -> type:
    made = fdl.get_callable(node)
    return made if isinstance(made, type) else object
