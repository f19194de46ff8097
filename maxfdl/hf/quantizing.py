"""Stores a model folder in few bits, one tensor after the other."""

import json
import os
from collections.abc import Iterator
from typing import Any

import fiddle as fdl
import numpy as np

from fdl_configs.families import network_of
from maxfdl import graph
from maxfdl.data.tokenizers.saving import copy_tokenizer_files
from maxfdl.experiment import Experiment
from maxfdl.hf.calibration import Moments
from maxfdl.hf.loading import load
from maxfdl.hf.saving import text_part
from maxfdl.model import NnxModel
from maxfdl.paths import as_path
from maxfdl.tensors.finite import Inspection
from maxfdl.tensors.hugging_face.folder import CONFIG, EXPORTED, QUANTIZATION, Folder
from maxfdl.tensors.hugging_face.quantization.formats import (
    FormatName,
    kernels_of,
    plan,
)
from maxfdl.tensors.quantized.rounded import Rounded
from maxfdl.tensors.safetensors import SHARD_BYTES
from maxfdl.tensors.source import Source, tell
from maxfdl.tensors.staging import swapped_in
from maxfdl.tensors.writing import write_tensors


def quantize(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    format: FormatName,
    *,
    block_size: int | None = None,
    calibrate_steps: int | None = None,
    config: fdl.Config[Experiment] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes the folder `source` to `target` with kernels in few bits.

    Memory holds one tensor at a time. Scales are those of the greatest magnitudes.

    With `calibrate_steps`, codes are chosen by GPTQ, for the inputs that products have
    on as many batches of data; memory then holds the model, too.

    Args:
      source: A model folder, which may be in few bits already.
      target: Where to; made if it is missing. An older export in it is replaced once
        the new one is complete.
      format: See `formats.plan`.
      block_size: Numbers that share a scale, in formats that have a choice.
      calibrate_steps: How many batches of data; None: codes are the nearest.
      config: The experiment whose data they are; None is that of `hf.load`.
      shard_bytes: Largest size of a file.

    Raises:
      UserError: If `source` cannot be read, if the format does not suit it, or if
        `target` cannot be written.
    """
    folder = Folder(source)
    model = NnxModel(module=graph.build(network_of(folder)))
    tensors = Source(folder, model)
    specs = tensors.specs()
    kernels = kernels_of(tensors.bindings, specs)
    stored = plan(format, kernels, folder.config["model_type"], block_size)

    moments = None
    if calibrate_steps is not None:
        loaded = load(source)
        moments = Moments(
            config or loaded.config,
            loaded.variables,
            calibrate_steps,
            tensors.bindings,
            folder.config,
        )

    def values() -> Iterator[tuple[str, np.ndarray | Rounded]]:
        for name in specs:
            yield name, tensors.rounded(name) or tensors.read(name)

    written: dict[str, Any] = text_part(folder) | {QUANTIZATION: stored.config}
    if dtype := folder.config.get("dtype"):
        written["dtype"] = dtype
    with swapped_in(as_path(target), EXPORTED, CONFIG) as new:
        text = json.dumps(written, indent=2) + "\n"
        (new / CONFIG).write_text(text, encoding="utf-8")
        copy_tokenizer_files(folder.path, new)
        strict = Inspection(allow_non_finite=False)
        write_tensors(new, specs, values(), stored, strict, shard_bytes, moments)
    tell([*tensors.remarks, *stored.remarks])
