"""Loads a checkpoint of MaxText as a graph, a model, its variables and the state."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, Literal

import fiddle as fdl
import jax

from fdl_configs.maxtext import experiment
from maxfdl import graph
from maxfdl.experiment import Experiment
from maxfdl.model import Model, NnxModel
from maxfdl.mutations.family import to_linen
from maxfdl.run.maxtext_state import maxtext_state
from maxfdl.sharding.mesh import MeshShape
from maxfdl.sharding.sharding import Sharding
from maxfdl.tensors.maxtext.reading import (
    Folder,
    MaxTextSource,
    folder_at,
    lazy_moments,
    lazy_variables,
    read_count,
    read_maxtext,
)
from maxfdl.tensors.weights import Variables
from maxfdl.train.program import Program

Backend = Literal["nnx", "linen"]


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A checkpoint of MaxText, loaded.

    Args:
      config: An experiment that trains on as MaxText would have, on random tokens.
      model: Its model.
      variables: The weights.
      state: The training state of `config`, with MaxText's moments and step; its arrays
        may be those of `variables`. None where the checkpoint has parameters alone.
    """

    config: fdl.Config[Experiment]
    model: Model
    variables: Variables
    state: dict[str, Any] | None


@dataclasses.dataclass(frozen=True)
class Opened:
    """A checkpoint of MaxText whose arrays are read one by one, as they are wanted.

    Args:
      config: As of `Loaded`.
      variables: The weights, `OnDisk`.
      moments: Trees like the parameters by name, `OnDisk`; None: there are none.
      step: Steps that were taken.
    """

    config: Any
    variables: Variables
    moments: dict[str, Any] | None
    step: int


def open_folder(found: Folder, *, parameters_only: bool = False) -> Opened:
    """Opens a checkpoint without reading its arrays.

    Args:
      found: The checkpoint.
      parameters_only: Whether to leave out moments and step.
    """
    made = _experiment(found)
    source, model = _source(found, made.model)
    variables = lazy_variables(source, model)
    if parameters_only or not source.layout.whole:
        return Opened(made, variables, None, 0)
    return Opened(made, variables, lazy_moments(source, model), read_count(source))


def open_parameters(found: Folder, network: fdl.Partial) -> Variables:
    """Returns the weights of a checkpoint as those of a network, `OnDisk`.

    The network may be in another form than MaxText's, such as that of published
    weights. How MaxText trained does not matter.
    """
    source, model = _source(found, network)
    return lazy_variables(source, model)


def _source(found: Folder, network: Any) -> tuple[MaxTextSource, Model]:
    model = NnxModel(module=graph.build(network))
    return MaxTextSource(found, model), model


def _experiment(found: Folder) -> Any:
    """Returns the experiment that a checkpoint's options describe."""
    config: Any = experiment(found.options)
    config.init_from = str(found.path)
    config.model.param_dtype = found.stored_type
    return config


def load(
    folder: str | os.PathLike[str],
    backend: Backend = "nnx",
    *,
    options: Mapping[str, Any] | None = None,
    sharding: Sharding | None = None,
) -> Loaded:
    """Reads a checkpoint that MaxText wrote, of Linen or NNX, scanned or not.

    Host memory holds one array at a time.

    Args:
      folder: The checkpoint: of a run (whose newest step it is), of one step, or a
        folder with `checkpoint/` and `config.json`.
      backend: Family of layers here, whichever MaxText had.
      options: MaxText's options, where no config.json beside the checkpoint has them.
      sharding: Mesh and rules; None puts all on one device.

    Raises:
      UserError: If there is no such checkpoint; if it is of a decoder or an optimizer
        that there is not here; or if arrays are missing, too many or of other shapes.
    """
    found = folder_at(folder, options)
    config = _experiment(found)
    if backend == "linen":
        config = to_linen(config)
    elif backend != "nnx":
        raise ValueError(f"backend ({backend}) must be 'nnx' or 'linen'.")
    made: Experiment = graph.build(config)
    if not found.layout.whole:
        model = made.make_model(sharding)
        variables = read_maxtext(found, model, sharding)
        return Loaded(config, model, variables, None)
    alone = MeshShape(data=1, fsdp=1, tensor=1).build(jax.devices()[:1])
    trainer = made.make_trainer(sharding or Sharding(alone, made.sharding))
    program = Program(trainer, made.batch_size, made.sequence_length)
    state = maxtext_state(program, found)
    variables = {name: state[name] for name in ("params", "state")}
    return Loaded(config, trainer.model, variables, state)
