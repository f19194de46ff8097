"""The training state in a checkpoint of MaxText, as that of a program here."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from maxfdl.errors import UserError
from maxfdl.layers.frozen import trained
from maxfdl.optim.owners import Owners, Path
from maxfdl.tensors.maxtext.reading import (
    Folder,
    MaxTextSource,
    read_count,
    read_maxtext,
    read_moments,
)
from maxfdl.train.program import Program
from maxfdl.train.trainer import State


def maxtext_state(program: Program, folder: Folder) -> State:
    """Returns MaxText's parameters, moments and step as the state of a program.

    Args:
      program: What goes on. Its optimizer must have the moments that MaxText's has.
      folder: The checkpoint.

    Raises:
      UserError: If the checkpoint has no such state, or it is that of another network
        or optimizer.
    """
    model, sharding = program.trainer.model, program.sharding
    source = MaxTextSource(folder, model)
    if not source.layout.whole:
        raise UserError(
            f"{folder.path} holds parameters alone; begin with them by init_from."
        )
    variables = read_maxtext(folder, model, sharding)
    state = program.start_from(variables)
    count, declared = read_count(source), trained(model.parameters())
    owners = Owners(jax.tree.map(lambda p: p.abstract("float32"), declared))
    moments = read_moments(source, model, sharding)
    optimizer = _with_moments(state["optimizer"], moments, count, owners, folder)
    step = jax.device_put(np.int32(count), state["step"].sharding)
    return {**state, "optimizer": optimizer, "step": step}


def moments_in(optimizer: Any, owners: Owners) -> Iterator[tuple[str, Path, Any]]:
    """Yields (name, path of its parameter, array) of each moment in a state."""
    for path, leaf in jax.tree.leaves_with_path(optimizer):
        own = owners(path, leaf)
        if own is not None:
            yield _name(path, own), own, leaf


def _with_moments(
    optimizer: Any,
    moments: Mapping[str, Any],
    count: int,
    owners: Owners,
    folder: Folder,
) -> Any:
    """Returns the state of an optimizer with other moments, and counts of steps."""
    needed = {name for name, _, _ in moments_in(optimizer, owners)}
    if needed != moments.keys():
        kind = folder.options["opt_type"]
        raise UserError(
            f"{folder.path} holds the state of MaxText's {kind}"
            f" ({', '.join(moments)}), and the optimizer of this graph keeps"
            f" {', '.join(sorted(needed)) or 'nothing'}; take the same optimizer, or"
            " begin with the parameters alone by init_from."
        )

    def replaced(path: Path, leaf: jax.Array) -> jax.Array:
        own = owners(path, leaf)
        new: Any = np.asarray(count, leaf.dtype)
        if own is not None:
            new = moments[_name(path, own)]
            for step in own:
                new = new[step.key]
        return jax.device_put(new, leaf.sharding)

    return jax.tree.map_with_path(replaced, optimizer)


def _name(path: Path, own: Path) -> str:
    """Returns the name of the innermost field that a moment is in."""
    steps = reversed(path[: -len(own)])
    return next(step.name for step in steps if hasattr(step, "name"))
