"""Training in int8: products of int8 with sums in int32."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from maxfdl.ops.channels import Coder, by_channel
from maxfdl.ops.contraction import Contraction, Name
from maxfdl.ops.hashed_rounding import round_by_hash
from maxfdl.ops.product import State
from maxfdl.ops.recipe import Recipe

Rounding = Literal["nearest", "stochastic"]

_MOST = 127.0
# Magnitudes whose scales, and the inverses of these, float32 holds.
_LEAST, _GREATEST = 2.0**-100, 2.0**100


@dataclasses.dataclass(frozen=True)
class Int8(Recipe):
    """A scale for each row of activations and each output of a kernel: no state.

    `x = s x'` with integers `x'` from -127 to 127, `s = max |x| / 127`. int8 holds
    neither infinities nor NaN: where such are among the numbers that share a scale, the
    scale is NaN, and so are all their sums, as in a plain product.

    In the backward pass the gradient goes straight through the rounding. Without
    `backward` it is multiplied in the type of activations.

    Args:
      backward: Whether both products of the backward pass are of int8, too.
      rounding: Of gradients. `stochastic` rounds up or down by chance, so that their
        sums are right on average, see `maxfdl.ops.hashed_rounding`.
    """

    gathers_kernel = True

    backward: bool = False
    rounding: Rounding = "nearest"

    @staticmethod
    def check_config(node):
        if node.rounding == "stochastic" and not node.backward:
            yield (
                "Int8 rounding (stochastic) is that of gradients, which backward"
                " (False) leaves as they are; set backward=True."
            )

    def multiply(
        self, product: Contraction, x: jax.Array, kernel: jax.Array, state: State
    ) -> tuple[jax.Array, State]:
        gradients = Integers(self.rounding) if self.backward else None
        return jnp.asarray(by_channel(Integers(), gradients, product, x, kernel)), {}


@dataclasses.dataclass(frozen=True)
class Integers(Coder):
    """Integers from -127 to 127.

    Args:
      rounding: As in `Int8`.
    """

    rounding: Rounding = "nearest"

    def encode(
        self, product: Contraction, a: jax.Array, name: Name, kept: str
    ) -> tuple[jax.Array, jax.Array]:
        amax = product.greatest(a, name, kept, not_finite=jnp.inf)
        scale = jnp.clip(amax, _LEAST, _GREATEST) / _MOST
        scale = jnp.where(amax > 0, scale, 1.0)
        scale = jnp.where(jnp.isfinite(amax), scale, jnp.nan)
        by = product.spread(scale, kept, name)
        scaled = jnp.clip(a / by, -_MOST, _MOST)
        if self.rounding == "stochastic":
            scaled = round_by_hash(scaled, by, _outputs(product, name, a.shape))
        return jnp.rint(scaled).astype(jnp.int8), scale


def _outputs(product: Contraction, name: Name, shape: tuple[int, ...]) -> jax.Array:
    """Returns the number of the output that each place of an array belongs to.

    The dims of rows do not count, for they depend on how a batch is cut.
    """
    letters = product.letters(name)
    outputs = product.kept("kernel", name)
    places = jnp.zeros([1] * len(shape), jnp.int32)
    for dim, letter in enumerate(letters):
        if letter in outputs:
            places = places * shape[dim] + lax.broadcasted_iota(jnp.int32, shape, dim)
    return places
