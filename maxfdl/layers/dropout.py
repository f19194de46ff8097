"""Dropout."""

import jax

from maxfdl.layers.checks import check_dropout
from maxfdl.layers.context import Context
from maxfdl.layers.layer import Layer
from maxfdl.ops.dropout import dropout


class Dropout(Layer):
    """Zeroes each element with probability `rate` and scales the rest to keep the mean.

    The mask follows from step, layer, path and row alone. Without a key in the context
    (evaluation, generation) nothing is dropped. Srivastava et al. 2014.
    """

    check_config = staticmethod(check_dropout)

    rate: float = 0.0

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        if self.rate == 0.0 or context.key is None:
            return x
        return dropout(x, self.rate, context.row_keys())
