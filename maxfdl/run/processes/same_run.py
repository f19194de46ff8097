"""Whether the processes that have joined are about to do the same."""

import hashlib
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from maxfdl.errors import UserError
from maxfdl.run.processes.peers import Peers

GRAPH = "graph"

_JAX_SETTINGS = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
)


def check(
    peers: Peers, mine: Mapping[str, Any], diff: Callable[[str, str], list[str]]
) -> None:
    """Compares what this process is about to do with what process 0 is.

    Args:
      peers: The other processes, all of which call this.
      mine: JSON values by the names that a person knows them by, such as "--stop_at".
        `GRAPH` is the graph as JSON.
      diff: Takes the graph of process 0 and that of this one; returns the lines in
        which they differ.

    Raises:
      UserError: If anything differs, with everything that does.
    """
    theirs = peers.meet("what to run", dict(mine))
    number = peers.place.process_id
    lines = []
    for name in dict.fromkeys([*theirs, *mine]):
        before, here = theirs.get(name), mine.get(name)
        if before == here:
            continue
        if name == GRAPH:
            lines.append(f"  the graph, from process 0 to process {number}:")
            lines += [f"    {line}" for line in diff(theirs[GRAPH], mine[GRAPH])]
        else:
            lines.append(
                f"  {name}: {_shown(before)} in process 0, {_shown(here)} in process"
                f" {number}"
            )
    if lines:
        raise UserError(
            f"process 0 and process {number} are not one run; start all with the same"
            " command, on machines that see the same files:\n" + "\n".join(lines)
        )
    # Nobody goes on before all have found the same.
    peers.meet("same run")


def software() -> dict[str, Any]:
    """Returns what must be the same in all processes, whatever they run."""
    import jax

    settings = {name: str(jax.config.values[name]) for name in _JAX_SETTINGS}
    return {"the code of maxfdl": _digest(), "JAX": jax.__version__, **settings}


def _digest() -> str:
    """Returns a short hash of all files of this package: installed versions lie."""
    digest = hashlib.sha256()
    package = pathlib.Path(__file__).parents[2]
    for path in sorted(package.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)
