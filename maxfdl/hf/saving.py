"""Saves a graph and its variables as a folder that `transformers` loads."""

import contextlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import fiddle as fdl
import jax
import jax.numpy as jnp

from maxfdl import graph
from maxfdl.data import HuggingFaceTokenizer
from maxfdl.data.tokenizers.saving import TOKENIZER, copy_tokenizer_files
from maxfdl.errors import UserError
from maxfdl.experiment import Experiment
from maxfdl.hf.calibration import Moments
from maxfdl.hf.describing import describe, same_network, without_extras
from maxfdl.hf.restating import as_published
from maxfdl.layers.linen.module import Module as LinenModule
from maxfdl.model import LinenModel, Model, NnxModel
from maxfdl.paths import AnyPath, as_path, fetched
from maxfdl.tensors.hugging_face.config import Config
from maxfdl.tensors.hugging_face.folder import CONFIG, EXPORTED, QUANTIZATION, Folder
from maxfdl.tensors.hugging_face.quantization.formats import (
    FormatName,
    Plan,
    kernels_of,
    plan,
)
from maxfdl.tensors.names import table_of
from maxfdl.tensors.safetensors import SHARD_BYTES
from maxfdl.tensors.source import tell
from maxfdl.tensors.staging import swapped_in
from maxfdl.tensors.table import bind, leaves_of
from maxfdl.tensors.writing import specs_of, write_weights


def save(
    folder: str | os.PathLike[str],
    config: fdl.Buildable,
    variables: Mapping[str, Any],
    *,
    source: str | os.PathLike[str] | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    family: str | None = None,
    format: FormatName | None = None,
    block_size: int | None = None,
    calibrate_steps: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    allow_non_finite: bool = False,
) -> None:
    """Writes config.json and safetensors files, in the types that the arrays have, or
    with kernels in few bits.

    New files are written beside an older export and replace all of it once they are
    complete: weights, tokenizer and generation files. If writing fails, the older
    export stays. Files that are no part of an export, such as README.md, stay. With
    several processes, all must call, and the first writes.

    Modules of multi-token prediction have no place in such a folder and are left out.

    Args:
      folder: Where to; made if it is missing.
      config: Graph of the experiment or of its model.
      variables: The weights, as `Model.init` gives them.
      source: A model folder whose config.json is kept where it describes the same
        network. None is the folder that the experiment starts from, if it is still
        there.
      tokenizer: A folder whose tokenizer, chat template and generation files are
        copied, such as `tokenizer` of a run directory; None is `source`.
      family: Family whose names to use; None finds the first that has such a graph,
        beginning with that of `source`.
      format: In what kernels are stored: see `formats.plan`; None: in their type.
      block_size: Numbers that share a scale, in formats that have a choice.
      calibrate_steps: Batches of the experiment's data to choose codes by, with GPTQ;
        None: codes are the nearest.
      shard_bytes: Largest size of a file, unless one tensor is larger.
      allow_non_finite: Whether to write weights that are not finite, which is told on
        stderr.

    Raises:
      UserError: If no family describes the graph, if weights are not finite, or if the
        folder cannot be written.
    """
    network: Any = config
    is_experiment = issubclass(_made(config), Experiment)
    if calibrate_steps is not None and (format is None or not is_experiment):
        raise UserError(
            f"calibrate_steps ({calibrate_steps}) needs a format, and the graph of an"
            " experiment, whose data it reads."
        )
    if is_experiment:
        network = graph.validate(config).model
        source = source or _start(config)
    network, variables = as_published(network, variables)
    origin = None if source is None else Folder(source)
    described, written = _config(network, origin, family)
    files = fetched(tokenizer) if tokenizer else origin and origin.path
    if origin is None and files is not None:
        written |= _special_ids(files)
    model = _model(without_extras(network))
    params = {name: variables["params"][name] for name in model.parameters()}
    kept = {**variables, "params": params}
    stored = _plan(model, kept, described, format, block_size)
    moments = None
    if calibrate_steps is not None:
        bindings = bind(table_of(described["model_type"]), leaves_of(model))
        moments = Moments(config, variables, calibrate_steps, bindings, described)
    target = as_path(folder)
    writes = jax.process_index() == 0
    staged = swapped_in(target, EXPORTED, last=CONFIG)
    with staged if writes else contextlib.nullcontext() as new:
        if new is not None:
            written |= {"dtype": _dtype(model, params)}
            if stored is not None:
                written |= {QUANTIZATION: stored.config}
            text = json.dumps(written, indent=2) + "\n"
            (new / CONFIG).write_text(text, encoding="utf-8")
            if files is not None:
                copy_tokenizer_files(files, new)
        write_weights(
            new, model, kept, described, stored, shard_bytes, allow_non_finite, moments
        )


def _plan(
    model: Model,
    variables: Mapping[str, Any],
    config: Config,
    format: FormatName | None,
    block_size: int | None,
) -> Plan | None:
    if format is None:
        return None
    bindings = bind(table_of(config["model_type"]), leaves_of(model))
    kernels = kernels_of(bindings, specs_of(model, variables, config))
    made = plan(format, kernels, config["model_type"], block_size)
    tell(made.remarks)
    return made


def _start(experiment: Any) -> AnyPath | None:
    """Returns the model folder that an experiment starts from, if there is one."""
    path = experiment.init_from and as_path(experiment.init_from)
    # A run directory has a config.json too, and keeps its weights elsewhere.
    is_model = path and (path / CONFIG).is_file() and any(path.glob("*.safetensors"))
    return path if is_model else None


def _config(
    network: Any, origin: Folder | None, family: str | None
) -> tuple[Config, dict[str, Any]]:
    """Returns the normalised config.json of a network, and the one to write."""
    if origin is None:
        described = describe(network, family)
        return described, dict(described)
    if family is None and same_network(network, origin.config):
        return origin.config, text_part(origin)
    described = describe(network, family, first=origin.config["model_type"])
    known = text_part(origin)
    # What the graph does not say, such as the ids of special tokens, may be kept.
    kept = {key: known[key] for key in _BESIDES if key in known}
    return described, {**described, **kept}


_BESIDES = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "max_position_embeddings",
    "initializer_range",
    "use_cache",
)


def _special_ids(folder: pathlib.Path) -> dict[str, int | None]:
    """Returns what config.json says of special tokens, where the graph says nothing."""
    tokenizer = HuggingFaceTokenizer(str(folder / TOKENIZER))
    return {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
    }


def text_part(origin: Folder) -> dict[str, Any]:
    """config.json as it is; of a multimodal model, the normalised one of its text."""
    raw = origin.raw_config
    if "text_config" in raw:
        return dict(origin.config)
    # The second is about the files of the origin, and these are others.
    dropped = ("torch_dtype", QUANTIZATION)
    kept = {key: value for key, value in raw.items() if key not in dropped}
    return kept | {"tie_word_embeddings": False} if origin.unties_head else kept


def _made(node: fdl.Buildable) -> type:
    made = fdl.get_callable(node)
    return made if isinstance(made, type) else object


def _model(network: Any) -> Model:
    is_linen = issubclass(_made(network), LinenModule)
    return (LinenModel if is_linen else NnxModel)(module=graph.build(network))


def _dtype(model: Model, params: Mapping[str, Any]) -> str:
    """Returns a type that holds all weights, for readers that load all in one type."""
    declared = jax.tree.leaves(model.parameters())
    packed = model.network.param_dtype
    pairs = zip(declared, jax.tree.leaves(params), strict=True)
    dtypes = {x.dtype if each.packing is None else packed for each, x in pairs}
    return str(jnp.result_type(*dtypes))
