"""Dynamic 8-bit numbers: from -1 to 1, or from 0 to 1, in seven decades.

The bits of a code are a sign if there is one, some zeros, a one, and a fraction. Each
zero divides by 10, and the fraction lies evenly between 0.1 and 1, so that numbers near
1 have up to 128 steps in a decade, and those near 1e-6 one or two. Dettmers 2016,
https://arxiv.org/abs/1511.04561; for the state of optimizers, Dettmers et al. 2022,
https://arxiv.org/abs/2110.02861. 0 and 1 are numbers of their own.

A code here is the index of its number in the ascending table of all 256, as
bitsandbytes stores it. Both directions are formulas, because TPUs are slow at looking
up each number in a table.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

_DECADES = 7


@dataclasses.dataclass(frozen=True)
class DynamicMap:
    """The numbers with a sign, or those without, which have one more bit of fraction.

    A decade that ends at `10^-d` has `n = 2^b` numbers, and number f of them is
    `10^-d / (10 n) * (n + 9 f + 4.5)`. As an integer its magnitude is `n + f`.

    Each float result is one product of an exact number and a constant, and each code
    comes from comparisons with such, so that no compiler's order of operations, and so
    no mesh, changes a bit.
    """

    signed: bool

    def encoded(self, x: Float[Array, "*dims"]) -> UInt8[Array, "*dims"]:
        """Returns the codes of the numbers nearest to `x`, which lies within [-1, 1].

        Without a sign, a positive number never becomes 0, for an optimizer divides by
        it.
        """
        size, (lowest, *edges, highest) = jnp.abs(x), self._edges
        items = _of_decade(size, edges, self._items)
        step = _of_decade(size, edges, self._steps)
        near = jnp.floor((size / step - items) / 9.0)
        near += (size >= step * (items + 9.0 * (near + 1.0))).astype(near.dtype)
        near -= (size < step * (items + 9.0 * near)).astype(near.dtype)
        whole = items + jnp.clip(near, 0.0, items - 1.0)
        whole = jnp.where(size < lowest, 0.0, whole)
        whole = jnp.where(size >= highest, self._one, whole).astype(jnp.int32)
        if self.signed:
            code = jnp.maximum(127 + jnp.where(x < 0, -whole, whole), 0)
        else:
            code = jnp.where(x > 0, jnp.maximum(whole - 1, 1), 0)
        return code.astype(jnp.uint8)

    def decoded(self, codes: UInt8[Array, "*dims"]) -> Float[Array, "*dims"]:
        """Returns the numbers of codes, float32."""
        index = codes.astype(jnp.int32)
        whole = jnp.abs(index - 127) if self.signed else index + 1
        magnitude = whole.astype(jnp.float32)
        items = _of_decade(magnitude, self._items[1:], self._items)
        step = _of_decade(magnitude, self._items[1:], self._steps)
        size = step * (items + 9.0 * (magnitude - items) + 4.5)
        size = jnp.where(magnitude < self._items[0], 0.0, size)
        size = jnp.where(magnitude == self._one, 1.0, size)
        return jnp.where(index < 127, -size, size) if self.signed else size

    @property
    def _items(self) -> list[float]:
        """How many numbers each decade has, from the lowest on."""
        last = 6 if self.signed else 7
        return [2.0 ** (last - down) for down in reversed(range(_DECADES))]

    @property
    def _one(self) -> float:
        """The magnitude of 1 as an integer."""
        return 2.0 * self._items[-1]

    @property
    def _steps(self) -> list[float]:
        """A ninth of the distance between neighbours in each decade."""
        ends = [10.0**-down for down in reversed(range(_DECADES))]
        return [end / (10.0 * n) for end, n in zip(ends, self._items, strict=True)]

    @property
    def _edges(self) -> list[float]:
        """Where each decade begins, and then 1: halfway to the number below."""
        decades = [*zip(self._steps, self._items, strict=True)]
        first = [step * (n + 4.5) for step, n in decades]
        final = [step * (10.0 * n - 4.5) for step, n in decades]
        pairs = zip([0.0, *final], [*first, 1.0], strict=True)
        return [(below + above) / 2 for below, above in pairs]


SIGNED, UNSIGNED = DynamicMap(signed=True), DynamicMap(signed=False)


def _of_decade(
    x: jax.Array, edges: Sequence[float], values: Sequence[float]
) -> jax.Array:
    """Returns the constant of each number's decade; all but the first have an edge."""
    chosen = jnp.full_like(x, values[0])
    for edge, value in zip(edges, values[1:], strict=True):
        chosen = jnp.where(x >= edge, jnp.float32(value), chosen)
    return chosen
