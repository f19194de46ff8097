"""How tokens get to their experts and back.

Letters: N tokens, k experts per token, E experts, D width, M rows that experts see. A
token has k copies; copy number `n k + j` is that for its choice j.
"""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Groups:
    """Rows in the order of their experts, and which copy of a token each holds.

    Args:
      copies: [M] copy that a row holds; N k where the row is empty.
      rows: [N, k] row that holds a copy; M where the copy was dropped.
      experts: [M] expert of each row.
      sizes: [E] rows per expert; None: equally many.
    """

    copies: Int[Array, " M"]
    rows: Int[Array, "N k"]
    experts: Int[Array, " M"]
    sizes: Int[Array, " E"] | None

    def gather(self, x_ND: Float[Array, "N D"]) -> Float[Array, "M D"]:
        """Returns each row's token; an empty row is 0."""
        return _take(x_ND, self.copies // self.rows.shape[1], self.rows)

    def gather_weights(self, weights_Nk: Float[Array, "N k"]) -> Float[Array, " M"]:
        """Returns each row's weight; that of an empty row is 0."""
        weights = weights_Nk.reshape(-1, 1)
        return _take(weights, self.copies, self.rows.reshape(-1, 1))[:, 0]

    def combine(
        self, y_MD: Float[Array, "M D"], weights_Nk: Float[Array, "N k"] | None
    ) -> Float[Array, "N D"]:
        """Returns each token's sum over its copies, weighted if there are weights.

        Summed in float32. A dropped copy adds nothing.
        """
        y = _take(y_MD, self.rows.reshape(-1), self.copies[:, None])
        y_NkD = y.reshape(*self.rows.shape, -1).astype(jnp.float32)
        if weights_Nk is not None:
            y_NkD = y_NkD * weights_Nk[..., None]
        return jnp.sum(y_NkD, axis=1).astype(y_MD.dtype)

    def dropped(self, mask_N: Bool[Array, " N"]) -> Int[Array, ""]:
        """Returns how many copies of the tokens in `mask` no expert sees."""
        lost = self.rows == self.copies.shape[0]
        return jnp.sum(lost & mask_N[:, None], dtype=jnp.int32)


class Dispatch:
    """Lays out the copies of all tokens in rows by expert."""

    def __call__(self, experts_Nk: Int[Array, "N k"], num_experts: int) -> Groups:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Dropless(Dispatch):
    """Every copy gets a row: `M = N k`, in groups of unequal size.

    A token's result does not depend on what other tokens do. Gale et al. 2022,
    https://arxiv.org/abs/2211.15841.
    """

    def __call__(self, experts_Nk: Int[Array, "N k"], num_experts: int) -> Groups:
        order, sizes = _by_expert(experts_Nk, num_experts)
        row = jnp.arange(order.size, dtype=jnp.int32)
        rows = _inverse(order, row).reshape(experts_Nk.shape)
        return Groups(order, rows, experts_Nk.reshape(-1)[order], sizes)


@dataclasses.dataclass(frozen=True)
class Capacity(Dispatch):
    """`C = ceil(factor k N / E)` rows for every expert, so `M = E C`.

    Copies take the rows in the order of the tokens, and those that find none left are
    dropped (Lepikhin et al. 2020, https://arxiv.org/abs/2006.16668). N counts all
    tokens of the call, so results depend on how a batch is cut.

    Args:
      factor: Rows per expert, in units of what an even spread needs.
    """

    adds_up: ClassVar[bool] = False  # what microbatches drop is not what all drop
    factor: float

    @staticmethod
    def check_config(node):
        if node.factor <= 0:
            yield f"Capacity factor ({node.factor}) must be positive."

    def __call__(self, experts_Nk: Int[Array, "N k"], num_experts: int) -> Groups:
        tokens, k = experts_Nk.shape
        # Less a hair, so that 1.1 * 10 is 11 and not 12; an expert sees a token once.
        even = self.factor * k * tokens / num_experts
        capacity = min(math.ceil(even - 1e-9), tokens)
        order, sizes = _by_expert(experts_Nk, num_experts)
        starts = jnp.cumsum(sizes) - sizes

        expert = experts_Nk.reshape(-1)[order]
        place = jnp.arange(order.size, dtype=jnp.int32) - starts[expert]
        row = expert * capacity + place
        row = jnp.where(place < capacity, row, num_experts * capacity)
        rows = _inverse(order, row).reshape(experts_Nk.shape)

        places = jnp.arange(capacity, dtype=jnp.int32)
        held = order.at[starts[:, None] + places].get(mode="clip")
        copies = jnp.where(places < sizes[:, None], held, order.size).reshape(-1)
        experts = jnp.repeat(jnp.arange(num_experts, dtype=jnp.int32), capacity)
        return Groups(copies, rows, experts, None)


def _by_expert(experts_Nk: jax.Array, num_experts: int) -> tuple[jax.Array, jax.Array]:
    """Returns the copies sorted by expert, then token, and how many each expert has."""
    flat = experts_Nk.reshape(-1)
    order = jnp.argsort(flat, stable=True).astype(jnp.int32)
    return order, jnp.zeros(num_experts, jnp.int32).at[flat].add(1)


def _inverse(order: jax.Array, values: jax.Array) -> jax.Array:
    """Returns `values`, which lie as `order` says, back in the order of copies."""
    return jnp.zeros_like(values).at[order].set(values, unique_indices=True)


# JAX's own rule adds up the gradient of a gather by a scatter, which on a GPU is slow
# and sums in no fixed order. Each side of this one knows where the other has its rows.
@jax.custom_vjp
def _take(x, here, back):
    """Returns `x[here]`, or 0 past the end; `back` [len(x), j] is the way back."""
    return x.at[here].get(mode="fill", fill_value=0)


def _take_forward(x, here, back):
    return _take(x, here, back), back


def _take_backward(back, dy):
    dx = dy.at[back].get(mode="fill", fill_value=0)
    return jnp.sum(dx.astype(jnp.float32), axis=1).astype(dy.dtype), None, None


_take.defvjp(_take_forward, _take_backward)
