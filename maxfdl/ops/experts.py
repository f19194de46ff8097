"""How tokens get to their experts and back.

Letters: N tokens in any number of dims, k experts per token, E experts, D width, M rows
that experts see. A token has k copies; copy number `n k + j` is that for its choice j.
"""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Num

from maxfdl.ops.exchange import Axes


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Groups:
    """Rows in the order of their experts, and which copy of a token each holds.

    Args:
      copies: [M] copy that a row holds; N k where the row is empty.
      rows: [N, k] row that holds a copy; M where the copy was dropped.
      experts: [M] expert of each row; E for a row of none.
      sizes: [E] rows per expert; None: equally many.
      expected: Rows that hold a copy if tokens spread evenly over the experts.
    """

    copies: Any  # arrays; JAX also makes trees of placeholders
    rows: Any
    experts: Any
    sizes: Any
    expected: int = dataclasses.field(metadata={"static": True})

    def gather(
        self, x_ND: Float[Array, "*N D"], weights_Nk: Float[Array, "*N k"] | None = None
    ) -> Float[Array, "M D"]:
        """Returns each row's token, times its weight if there are weights.

        An empty row is 0.
        """
        k = self.rows.shape[-1]
        x_ND = x_ND.reshape(-1, x_ND.shape[-1])
        x_MD = _take(x_ND, self.copies // k, self.rows.reshape(-1, k))
        if weights_Nk is None:
            return x_MD
        return x_MD * self.gather_weights(weights_Nk).astype(x_MD.dtype)[:, None]

    def gather_weights(self, weights_Nk: Float[Array, "*N k"]) -> Float[Array, " M"]:
        """Returns each row's weight; that of an empty row is 0."""
        weights = weights_Nk.reshape(-1, 1)
        return _take(weights, self.copies, self.rows.reshape(-1, 1))[:, 0]

    def of_experts(
        self, values_E: Num[Array, "E ..."], axes: tuple[str, ...] = ()
    ) -> Num[Array, "M ..."]:
        """Returns, for each row, what `values` has for its expert, such as a bias.

        A row of no expert has 0. `axes` are the logical names of the dims of `values`,
        for meshes.
        """
        return values_E.at[self.experts].get(mode="fill", fill_value=0)

    def combine(
        self, y_MD: Float[Array, "M D"], weights_Nk: Float[Array, "*N k"] | None
    ) -> Float[Array, "*N D"]:
        """Returns each token's sum over its copies, weighted if there are weights.

        Summed in float32. A dropped copy adds nothing.
        """
        *dims, k = self.rows.shape
        y = _take(y_MD, self.rows.reshape(-1), self.copies[:, None])
        y_NkD = y.reshape(-1, k, y.shape[-1]).astype(jnp.float32)
        if weights_Nk is not None:
            y_NkD = y_NkD * weights_Nk.reshape(-1, k)[..., None]
        y_ND = jnp.sum(y_NkD, axis=1).astype(y_MD.dtype)
        return y_ND.reshape(*dims, y_ND.shape[-1])

    def dropped(self, mask_N: Bool[Array, "*N"]) -> Int[Array, ""]:
        """Returns how many copies of the tokens in `mask` no expert sees."""
        lost = self.rows == self.copies.shape[0]
        return jnp.sum(lost & mask_N[..., None], dtype=jnp.int32)


@dataclasses.dataclass(frozen=True)
class Peers:
    """Mesh axes over which a dispatch runs, on each device apart.

    Args:
      batch, sequence: Axes that cut the rows of a batch and their tokens, those along
        which devices run apart included.
      experts: Axes that cut the experts, between which tokens travel.
    """

    batch: Axes
    sequence: Axes
    experts: Axes

    @property
    def tokens(self) -> Axes:
        """All axes that cut the tokens."""
        return (*self.batch, *self.sequence)

    @property
    def sharing(self) -> Axes:
        """Axes that cut the experts and not the tokens: devices along them have the
        same tokens, and each sends its share of them."""
        return tuple(a for a in self.experts if a not in self.tokens)


class Dispatch:
    """Lays out the copies of all tokens in rows by expert."""

    def __call__(self, experts_Nk: Int[Array, "*N k"], num_experts: int) -> Groups:
        """Returns the rows of all tokens, on one device."""
        raise NotImplementedError

    def kept(
        self, experts_BTk: Int[Array, "B T k"], num_experts: int, peers: Peers
    ) -> Bool[Array, "B T k"] | None:
        """Returns which copies of the tokens of this device are kept; None: all.

        It runs on each device apart, and decides as if one device had all tokens.
        """
        raise NotImplementedError

    def room(self, tokens: int, k: int, num_experts: int, peers: Peers) -> int:
        """Returns for how many rows each device has room, if it has so many tokens."""
        raise NotImplementedError

    def expected(self, tokens: int, k: int, num_experts: int, peers: Peers) -> int:
        """Returns how many rows each device is expected to see: all devices together
        see the copies of all tokens, and one of them no more than it has room for."""
        even = tokens * k // lax.axis_size(peers.sharing)
        return min(even, self.room(tokens, k, num_experts, peers))


@dataclasses.dataclass(frozen=True)
class Dropless(Dispatch):
    """Every copy gets a row: `M = N k`, in groups of unequal size.

    A token's result does not depend on what other tokens do. Gale et al. 2022,
    https://arxiv.org/abs/2211.15841.

    Where a mesh cuts the experts, each device has room for all copies that may come to
    its experts: n N min(k, E / n) rows for n devices with N tokens each. `room_factor`
    bounds that: copies for which a device has no room are dropped, and counted.

    Args:
      room_factor: Rows that a device has room for, in units of `N k`, what an even
        spread needs; None: room for all.
    """

    room_factor: float | None = None

    @staticmethod
    def check_config(node):
        if node.room_factor is not None and node.room_factor <= 0:
            yield (
                f"Dropless room_factor ({node.room_factor}) must be positive, or None"
                " for room for all."
            )

    def __call__(self, experts_Nk: Int[Array, "*N k"], num_experts: int) -> Groups:
        return compact(experts_Nk, None, num_experts)

    def kept(
        self, experts_BTk: Int[Array, "B T k"], num_experts: int, peers: Peers
    ) -> None:
        return None

    def room(self, tokens: int, k: int, num_experts: int, peers: Peers) -> int:
        most = _all_that_may_come(tokens, k, num_experts, peers)
        if self.room_factor is None:
            return most
        even = tokens * k / lax.axis_size(peers.sharing)
        return min(math.ceil(self.room_factor * even - 1e-9), most)


@dataclasses.dataclass(frozen=True)
class Capacity(Dispatch):
    """`C = ceil(factor k N / E)` rows for every expert, so `M = E C`.

    Copies take the rows in the order of the tokens, and those that find none left are
    dropped (Lepikhin et al. 2020, https://arxiv.org/abs/2006.16668). N counts all
    tokens of a batch, on whatever devices they are, and so does the order: a mesh drops
    what one device does. Microbatches and the replicas of DiLoCo count their own.

    Args:
      factor: Rows per expert, in units of what an even spread needs.
    """

    adds_up: ClassVar[bool] = False  # what microbatches drop is not what all drop
    rows_are_independent: ClassVar[bool] = False  # nor what those of a pipeline do
    factor: float

    @staticmethod
    def check_config(node):
        if node.factor <= 0:
            yield f"Capacity factor ({node.factor}) must be positive."

    def of_expert(self, tokens: int, k: int, num_experts: int) -> int:
        """Returns C, for this many tokens."""
        # Less a hair, so that 1.1 * 10 is 11 and not 12; an expert sees a token once.
        even = self.factor * k * tokens / num_experts
        return min(math.ceil(even - 1e-9), tokens)

    def __call__(self, experts_Nk: Int[Array, "*N k"], num_experts: int) -> Groups:
        *dims, k = experts_Nk.shape
        capacity = self.of_expert(math.prod(dims), k, num_experts)
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
        return Groups(copies, rows, experts, None, min(experts.size, order.size))

    def kept(
        self, experts_BTk: Int[Array, "B T k"], num_experts: int, peers: Peers
    ) -> Bool[Array, "B T k"]:
        rows, tokens, k = experts_BTk.shape
        number = rows * tokens * lax.axis_size(peers.tokens)
        place = _places_among_all(experts_BTk, num_experts, peers)
        return place < self.of_expert(number, k, num_experts)

    def room(self, tokens: int, k: int, num_experts: int, peers: Peers) -> int:
        number = tokens * lax.axis_size(peers.tokens)
        here = num_experts // lax.axis_size(peers.experts)
        most = _all_that_may_come(tokens, k, num_experts, peers)
        return min(here * self.of_expert(number, k, num_experts), most)

    def expected(self, tokens: int, k: int, num_experts: int, peers: Peers) -> int:
        number = tokens * lax.axis_size(peers.tokens)
        rows = num_experts * self.of_expert(number, k, num_experts)
        devices = lax.axis_size((*peers.tokens, *peers.sharing))
        return min(super().expected(tokens, k, num_experts, peers), -(-rows // devices))


def _all_that_may_come(tokens: int, k: int, num_experts: int, peers: Peers) -> int:
    """Returns how many rows may come to the experts of a device: a token's k experts
    differ from one another."""
    senders = lax.axis_size(peers.experts) // lax.axis_size(peers.sharing)
    return senders * tokens * min(k, num_experts // lax.axis_size(peers.experts))


def _places_among_all(
    experts_BTk: jax.Array, num_experts: int, peers: Peers
) -> jax.Array:
    """Returns, for each copy, how many before it have its expert: those of earlier
    rows of the batch, of earlier tokens of its row, and those here before it."""
    rows = experts_BTk.shape[0]
    row = jnp.arange(rows)[:, None, None]
    counts_BE = jnp.zeros((rows, num_experts), jnp.int32).at[row, experts_BTk].add(1)
    of_rows_BE, earlier_BE = _sums_before(counts_BE, peers.sequence)
    _, before_E = _sums_before(jnp.sum(of_rows_BE, axis=0), peers.batch)
    start_BE = before_E + jnp.cumsum(of_rows_BE, axis=0) - of_rows_BE + earlier_BE

    order, sizes = _by_expert(experts_BTk, num_experts)
    expert = experts_BTk.reshape(-1)[order]
    place = (
        jnp.arange(order.size, dtype=jnp.int32) - (jnp.cumsum(sizes) - sizes)[expert]
    )
    place_BTk = _inverse(order, place).reshape(experts_BTk.shape)
    here_BE = jnp.cumsum(counts_BE, axis=0) - counts_BE
    return place_BTk + (start_BE - here_BE)[row, experts_BTk]


def _sums_before(x: jax.Array, axes: Axes) -> tuple[jax.Array, jax.Array]:
    """Returns the sum of `x` over all devices along the axes, and over earlier ones."""
    if not axes:
        return x, jnp.zeros_like(x)
    of_all = lax.all_gather(x, axes)
    number = jnp.arange(of_all.shape[0]).reshape(-1, *[1] * x.ndim)
    earlier = jnp.where(number < lax.axis_index(axes), of_all, 0)
    return jnp.sum(of_all, axis=0), jnp.sum(earlier, axis=0)


def compact(
    experts_Nk: jax.Array, kept_Nk: jax.Array | None, num_experts: int
) -> Groups:
    """Returns a row for each copy; those that are not kept come last, and are empty."""
    if kept_Nk is not None:
        experts_Nk = jnp.where(kept_Nk, experts_Nk, num_experts)
    order, sizes = _by_expert(experts_Nk, num_experts)
    row = jnp.arange(order.size, dtype=jnp.int32)
    rows = _inverse(order, row).reshape(experts_Nk.shape)
    experts, copies = experts_Nk.reshape(-1)[order], order
    if kept_Nk is not None:
        rows = jnp.where(kept_Nk, rows, order.size)
        copies = jnp.where(experts < num_experts, order, order.size)
    return Groups(copies, rows, experts, sizes, order.size)


def _by_expert(experts_Nk: jax.Array, num_experts: int) -> tuple[jax.Array, jax.Array]:
    """Returns the copies sorted by expert, then token, and how many each expert has.

    A copy of expert number E belongs to none.
    """
    flat = experts_Nk.reshape(-1)
    order = jnp.argsort(flat, stable=True).astype(jnp.int32)
    return order, jnp.zeros(num_experts, jnp.int32).at[flat].add(1, mode="drop")


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
