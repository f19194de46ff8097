"""Which network of a graph a mutation changes.

An experiment may hold several: the model that is trained, and a teacher or a reference
beside it. `under` is the path of the one that a mutation changes; the default is
`model`. A graph that is no experiment is taken as the network itself.
"""

from typing import Any

import fiddle as fdl

from maxfdl.errors import MutationError, did_you_mean
from maxfdl.graph import iterate
from maxfdl.mutations.roles import is_experiment, is_transformer

MODEL = "model"


def network_in(cfg: fdl.Buildable, under: str = MODEL) -> fdl.Buildable:
    """Returns the node at the path `under`.

    Raises:
      MutationError: If there is none.
    """
    return _node_at(cfg, under) if is_experiment(cfg) else cfg


def backend_of(cfg: fdl.Buildable, under: str = MODEL) -> fdl.Buildable:
    """Returns the node that makes pure functions of the network at `under`: the field
    `backend` beside it.

    Raises:
      MutationError: If there is none.
    """
    if not is_experiment(cfg):
        return cfg
    beside = under.rpartition(".")[0]
    return _node_at(cfg, f"{beside}.backend" if beside else "backend")


def _node_at(cfg: fdl.Buildable, path: str) -> Any:
    nodes = dict(iterate(cfg))
    if path not in nodes:
        networks = [name for name, node in nodes.items() if is_transformer(node)]
        raise MutationError(
            f"under [{path}] must be the path of a network of this graph, which has"
            f" {', '.join(networks) or 'none'}.{did_you_mean(path, networks)}"
        )
    return nodes[path]
