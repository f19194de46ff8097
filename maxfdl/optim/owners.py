"""Which arrays of an optimizer's state belong to which parameter."""

from typing import Any

import jax

Path = tuple[Any, ...]


class Owners:
    """Finds the parameter that an array of the state belongs to.

    It is the one whose path that of the array ends in, if it has its shape: the longest
    such path. Counters, rows and columns of factored moments and the like have none.

    Args:
      params: Parameters, which may be abstract.
    """

    def __init__(self, params: Any):
        leaves = jax.tree.leaves_with_path(params)
        self._shapes = {path: param.shape for path, param in leaves}

    def __call__(self, path: Path, leaf: Any) -> Path | None:
        """Returns the path of the parameter, or None."""
        ends = (path[start:] for start in range(len(path)))
        own = next((end for end in ends if end in self._shapes), None)
        return own if own and leaf.shape == self._shapes[own] else None
