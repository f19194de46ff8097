"""Loads a model folder as a graph, a model and its variables."""

import dataclasses
import os
from collections.abc import Callable
from typing import Any, Literal

import fiddle as fdl

from fdl_configs.hugging_face import fine_tuning
from maxfdl import graph
from maxfdl.experiment import Experiment
from maxfdl.layers.parameter import DType
from maxfdl.model import Model
from maxfdl.mutations.dtypes import compute_dtype
from maxfdl.mutations.dtypes import param_dtype as set_param_dtype
from maxfdl.mutations.family import to_linen
from maxfdl.sharding.sharding import Sharding
from maxfdl.tensors.hugging_face.folder import Folder
from maxfdl.tensors.on_disk import lazily
from maxfdl.tensors.source import Source, tell
from maxfdl.tensors.table import Binding, stored_leaves_of
from maxfdl.tensors.weights import Variables, read_weights

Backend = Literal["nnx", "linen"]


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model folder, loaded.

    Args:
      config: An experiment that trains on from these weights; mutations change it, and
        `graph.build` builds it.
      model: Its model.
      variables: The weights.
    """

    config: fdl.Config[Experiment]
    model: Model
    variables: Variables


def open_folder(folder: str | os.PathLike[str]) -> Loaded:
    """Opens a model folder without reading its weights: `variables` are `OnDisk`."""
    config: Any = fine_tuning(str(folder))
    model = graph.build(config.backend)(module=graph.build(config.model), sharding=None)
    found = Folder(folder)
    source = Source(found, model)

    def read(binding: Binding) -> list[Any]:
        return binding.to_ours([source.read(x) for x in binding.theirs], found.config)

    tell(source.remarks)
    leaves = stored_leaves_of(model)
    return Loaded(config, model, lazily(leaves, model, source.bindings, read))


def load(
    folder: str | os.PathLike[str],
    backend: Backend = "nnx",
    *,
    dtype: DType | None = None,
    param_dtype: DType | None = None,
    sharding: Sharding | None = None,
    allow_non_finite: bool = False,
    changed: Callable[[Any], Any] | None = None,
) -> Loaded:
    """Reads a model folder of Hugging Face: config.json and safetensors.

    Host memory holds one tensor at a time. Nothing is downloaded, no code of the folder
    is run, and no pickle is read.

    Args:
      folder: The folder.
      backend: Family of layers.
      dtype: Type of activations and products; None is that of config.json.
      param_dtype: Type of the weights in memory; None is that of config.json.
      sharding: Mesh and rules; None puts all on one device.
      allow_non_finite: Whether to read weights that are not finite, which is told on
        stderr.
      changed: Changes the graph before its model is made, such as by the mutation
        `quantize_weights`: weights are packed one by one as they are read.

    Raises:
      UserError: If there is no such family here; if tensors are missing, too many or
        of other shapes, with all that are; if the mesh does not cut them; or if one is
        not finite, or too large for `param_dtype`.
    """
    config: Any = fine_tuning(str(folder))
    if dtype is not None:
        config = compute_dtype(config, dtype=dtype)
    if param_dtype is not None:
        config = set_param_dtype(config, dtype=param_dtype)
    if backend == "linen":
        config = to_linen(config)
    elif backend != "nnx":
        raise ValueError(f"backend ({backend}) must be 'nnx' or 'linen'.")
    if changed is not None:
        config = changed(config)
    # Not the whole experiment: weights that cannot be trained may still be used.
    make_model = graph.build(config.backend)
    model = make_model(module=graph.build(config.model), sharding=sharding)
    variables = read_weights(
        Folder(folder), model, sharding, allow_non_finite=allow_non_finite
    )
    return Loaded(config, model, variables)
