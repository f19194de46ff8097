"""How new parameters become what is stored of them."""

import dataclasses
from typing import Any

import jax

from maxfdl.ops.rounding import stochastically_rounded
from maxfdl.optim.keys import key_for


@dataclasses.dataclass(frozen=True)
class StochasticRounding:
    """Rounds new parameters up or down at random, so that the mean of many is exact.

    Rounded to nearest, a bfloat16 parameter stays as it is when an update moves it by
    less than 1 part in 500, which most updates do. Rounded so, it moves by a whole step
    of its type at times, and no float32 copy of it is needed. See
    `maxfdl.ops.rounding`; Zamirai et al. 2020, https://arxiv.org/abs/2010.06192.
    """

    def rounded(self, new: Any, old: Any, keys: Any) -> Any:
        """Returns float32 arrays in the types of `old`; trees like the parameters."""
        return jax.tree.map(
            lambda n, o, key: stochastically_rounded(n, o.dtype, key_for(key, "value")),
            new,
            old,
            keys,
        )
