"""Float32 copies of parameters that are stored in narrower types."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from maxfdl.optim import by_repeat


@dataclasses.dataclass(frozen=True)
class Masters:
    """Keeps a float32 copy of each trained parameter, its master.

    The optimizer and the updates after it change the master, and the parameter is the
    number of its own type next to that. So small updates add up, while forward and
    backward pass read the narrow parameters only. Micikevicius et al. 2018,
    https://arxiv.org/abs/1710.03740, section 3.1. Masters lie where the state of the
    optimizer does: sharded over replicas by ZeRO-1, in host memory if that is.

    Parameters in float32 or wider have no masters. Four bytes a number.
    """

    def init(self, params: Any) -> Any:
        """Returns the masters of parameters; nothing if they are float32 themselves."""
        if not any(_is_narrow(param) for param in jax.tree.leaves(params)):
            return {}
        return jax.tree.map(lambda param: param.astype(jnp.float32), params)

    def narrowed(self, masters: Any, params: Any, parameters: dict) -> Any:
        """Returns masters in the types of `params`, and in the same memory.

        Args:
          masters: As a step leaves them.
          params: As they were before the step.
          parameters: Declarations, a tree like them.
        """
        return by_repeat.changed(
            lambda declared, old, masters: masters,
            lambda declared, params: (params, params),
            parameters,
            params,
            masters,
            accepted=True,
        )


def _is_narrow(param: jax.Array) -> bool:
    return jnp.finfo(param.dtype).bits < 32
