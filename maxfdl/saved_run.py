"""A run on disk, read to sample from it or to export it."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax

from maxfdl import graph
from maxfdl.checkpoint.checkpointer import Checkpointer
from maxfdl.checkpoint.load import StepReader
from maxfdl.errors import UserError
from maxfdl.experiment import Experiment
from maxfdl.layers.on_disk import OnDisk, in_memory
from maxfdl.layers.packing import stored_as
from maxfdl.layers.parameter import map_parameters, wholes
from maxfdl.model import Model
from maxfdl.paths import AnyPath
from maxfdl.run.directory import RunDirectory
from maxfdl.saved_graph import saved_graph
from maxfdl.sharding.mesh import MeshShape
from maxfdl.sharding.room import check_room, on_one_device
from maxfdl.sharding.sharding import Sharding
from maxfdl.train.trainer import Trainer


@dataclasses.dataclass(frozen=True)
class SavedRun:
    """The newest checkpoint of a run, on one device.

    Args:
      config: The graph of the run.
      experiment: What it builds.
      step: Steps that were taken.
      variables: What the run evaluates: an average if it keeps one.
    """

    config: Any
    experiment: Experiment
    step: int
    variables: dict[str, Any]

    def changed(self, change: Callable[[Any], Any]) -> "SavedRun":
        """Returns the run with a changed graph, and its weights as that stores them.

        The weights of this one are used up, so that memory holds one kernel twice.
        Those on disk are read, and kernels that are packed layer by layer.

        Raises:
          UserError: If the changed graph has other weights, or other state, or if its
            weights do not fit into memory.
        """
        config = change(graph.copy(self.config))
        experiment: Experiment = graph.build(config)
        old, new = self.experiment.make_model(), experiment.make_model()
        if _shapes(old) != _shapes(new) or old.state() != new.state():
            raise UserError(
                "The changes must leave the weights and the state of the run as they"
                " are, but for how they are stored."
            )
        needed = jax.eval_shape(new.init, jax.random.key(0))
        check_room(on_one_device(needed), "the weights of the run need")
        params = stored_as(
            new.parameters(), old.parameters(), self.variables.pop("params")
        )
        variables = {**jax.tree.map(in_memory, self.variables), "params": params}
        return SavedRun(config, experiment, self.step, variables)


def _shapes(model: Model) -> dict[str, Any]:
    """Returns the shape of each array of weights, of a packed kernel as a whole."""
    declared = wholes(model.parameters())
    return map_parameters(lambda _, parameter: parameter.full_shape, declared)


def read_run(
    folder: AnyPath,
    trust: Sequence[str] = (),
    allow_non_finite: bool = False,
    one_by_one: bool = False,
    whole: bool = False,
) -> SavedRun:
    """Returns what the run in `folder` saved last.

    With `one_by_one`, arrays are `OnDisk`, to be read when they are wanted, but not
    those of a run whose weights are computed, as averages are. With `whole`, the
    variables are the whole training state, with the weights that are trained.

    Raises:
      UserError: If there is no run, or none that saved anything, or if weights are not
        finite, unless `allow_non_finite`.
    """
    found = _open(folder, trust, whole)
    config, experiment, trainer = found.config, found.experiment, found.trainer
    checkpointer, step, parts = found.checkpointer, found.step, found.parts
    # An empty part holds no leaves, and so is no part of what was saved.
    wanted = {name: part for name, part in parts.items() if jax.tree.leaves(part)}
    computed = not whole and parts.keys() != {"params", "state"}
    if one_by_one and not computed:
        reader = checkpointer.reader(step, wanted, allow_non_finite=allow_non_finite)
        there = _on_disk(wanted, reader)
        return SavedRun(config, experiment, step, {**parts, **there})
    check_room(on_one_device(wanted), f"the weights of {folder} need")
    as_saved = functools.partial(trainer.as_saved, wanted)
    saved = {
        **parts,
        **checkpointer.read(step, as_saved, allow_non_finite=allow_non_finite),
    }
    if computed:
        saved = jax.jit(trainer.evaluated)(saved)
    return SavedRun(config, experiment, step, saved)


def read_evaluated(
    folder: AnyPath, trust: Sequence[str] = (), step: int | None = None
) -> tuple[Any, int, dict[str, Any]]:
    """Returns the graph of a run, a step, and the parts of its state, as they were
    saved, that evaluation reads: the newest step unless told.

    Raises:
      UserError: As `read_run`.
    """
    found = _open(folder, trust)
    step = found.step if step is None else step
    wanted = {k: part for k, part in found.parts.items() if jax.tree.leaves(part)}
    check_room(on_one_device(wanted), f"the weights of {folder} need")
    as_saved = functools.partial(found.trainer.as_saved, wanted)
    saved = found.checkpointer.read(step, as_saved, allow_non_finite=True)
    return found.config, step, saved


@dataclasses.dataclass(frozen=True)
class _Opened:
    """A run on disk, of which no array is read yet; see `SavedRun`."""

    config: Any
    experiment: Experiment
    trainer: Trainer
    checkpointer: Checkpointer
    step: int
    parts: dict[str, Any]
    """What evaluation reads, or the whole state, as abstract arrays."""


def _open(folder: AnyPath, trust: Sequence[str], whole: bool = False) -> _Opened:
    run = RunDirectory(folder) if folder.is_dir() else None
    config: Any = run and saved_graph(run, trust)
    if run is None or config is None:
        raise UserError(
            f"{folder} must be the directory of a run, with its config.json."
        )
    checkpointer = Checkpointer(directory=run.checkpoints)
    step = checkpointer.latest()
    if step is None:
        how = "train for longer" if config.checkpoint else "its checkpoint is None"
        raise UserError(f"{folder} has saved no checkpoint; {how}.")
    experiment: Experiment = graph.build(config)
    alone = MeshShape(data=1, fsdp=1, tensor=1).build(jax.devices()[:1])
    trainer = experiment.make_trainer(Sharding(alone, experiment.sharding))
    abstract = jax.eval_shape(trainer.init)
    names = tuple(abstract) if whole else trainer.evaluated_from
    parts = {name: abstract[name] for name in names}
    return _Opened(config, experiment, trainer, checkpointer, step, parts)


def _on_disk(abstract: Any, reader: StepReader) -> Any:
    def leaf(path: Any, leaf: jax.ShapeDtypeStruct) -> OnDisk:
        keys = [key.key for key in path]
        in_parts = reader.is_in_parts(keys)
        return OnDisk(
            leaf,
            read=functools.partial(reader.read, keys),
            read_part=functools.partial(reader.read_part, keys) if in_parts else None,
        )

    return jax.tree_util.tree_map_with_path(leaf, abstract)
