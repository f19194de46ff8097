"""The state that a run begins with."""

import functools
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from maxfdl.checkpoint.checkpointer import Checkpointer
from maxfdl.checkpoint.structure import Structure
from maxfdl.errors import UserError
from maxfdl.paths import AnyPath, as_path
from maxfdl.run.directory import CHECKPOINTS
from maxfdl.tensors.maxtext.reading import folder_at, is_checkpoint, read_maxtext
from maxfdl.train.program import Program
from maxfdl.train.trainer import State


def first_state(
    program: Program, init_from: str | None, resume_from: str | None = None
) -> State:
    """Returns the state before the first step, laid out as the program wants it.

    Args:
      program: What is trained.
      init_from: Whose weights to start with: a model folder of Hugging Face, a
        checkpoint of MaxText or Paxml, or the directory of a run; of that, the newest
        checkpoint, and the weights that were trained, not an average of them; their
        masters, if it has some. None draws them.
      resume_from: A checkpoint of MaxText or Paxml to go on from instead, with its
        moments and its step.

    Raises:
      UserError: If there are no such weights, or if they are of another network.
    """
    if resume_from is not None:
        return _of_maxtext_whole(program, resume_from)
    if init_from is None:
        return program.init()
    folder = as_path(init_from)
    if not folder.is_dir():
        raise UserError(
            f"init_from ({init_from}) must be a model folder of Hugging Face, a"
            " checkpoint of MaxText or the directory of a run, but there is no such"
            " folder."
        )
    if is_checkpoint(folder):
        read = _of_maxtext
    else:
        read = _of_run if (folder / CHECKPOINTS).is_dir() else _of_hugging_face
    return program.start_from(read(program, folder))


def _of_maxtext(program: Program, folder: AnyPath) -> dict[str, Any]:
    return read_maxtext(folder_at(folder), program.trainer.model, program.sharding)


def _of_maxtext_whole(program: Program, resume_from: str) -> State:
    from maxfdl.run.maxtext_state import maxtext_state

    return maxtext_state(program, folder_at(resume_from))


def _of_run(program: Program, folder: AnyPath) -> dict[str, Any]:
    state = program.abstract_state()
    abstract = {name: state[name] for name in ("params", "state")}
    checkpointer = Checkpointer(directory=folder / CHECKPOINTS)
    newest = checkpointer.latest()
    if newest is None:
        raise UserError(f"init_from ({folder}) is a run that has saved no checkpoint.")
    # An empty part holds no leaves, and so is no part of what was saved.
    wanted = {name: part for name, part in abstract.items() if part}
    saved = checkpointer.read(newest, functools.partial(_with_masters, wanted))
    masters, params = (_flat(saved.pop(name, {})) for name in ("masters", "params"))
    for path, param in _flat(abstract["params"]).items():
        if path in masters and param.dtype != params[path].dtype:
            params[path] = masters[path].astype(param.dtype)
    first = {**abstract, **saved, "params": unflatten_dict(params, sep=".")}
    if not masters or not state["masters"]:
        return first
    wide = {
        path: masters.get(path, params[path]).astype("float32")
        for path in _flat(state["masters"])
    }
    return {**first, "masters": unflatten_dict(wide, sep=".")}


def _with_masters(wanted: State, saved: Structure) -> State:
    """Returns what to read of a run: its masters, too, if it has some.

    Parameters that have a master are read in the type that they were saved in.
    """
    params = _flat(wanted["params"])
    has_master = [path for path in params if f"masters.{path}" in saved]
    if not has_master:
        return wanted

    def of_type(path: str, dtype: Any) -> jax.ShapeDtypeStruct:
        leaf = params[path]
        return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding)

    masters = {path: of_type(path, "float32") for path in has_master}
    params |= {path: of_type(path, saved[f"params.{path}"][1]) for path in has_master}
    return {
        **wanted,
        "params": unflatten_dict(params, sep="."),
        "masters": unflatten_dict(masters, sep="."),
    }


def _flat(tree: Any) -> dict[str, Any]:
    return flatten_dict(tree, sep=".")


def _of_hugging_face(program: Program, folder: AnyPath) -> dict[str, Any]:
    from maxfdl.tensors.hugging_face.folder import (
        Folder,  # reads safetensors, which few runs need
    )
    from maxfdl.tensors.weights import read_weights

    return read_weights(Folder(folder), program.trainer.model, program.sharding)
