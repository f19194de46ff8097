"""Tokens of one device and the experts of all: on each device apart."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Num

from maxfdl.ops.exchange import Axes, Exchange
from maxfdl.ops.experts import Dispatch, Groups, Peers, compact


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sent:
    """Rows of one device, in the order of experts, that go to the devices of these.

    Its methods are those of `Groups`; M counts the rows that come in here.

    Args:
      groups: The rows of this device before they are sent.
      exchange: How they travel.
      mine: [B, T] which tokens this device sends, where others have them too; None:
        all.
      sharing: Mesh axes along which devices have the same tokens.
      expected: Rows that come in if tokens spread evenly over the experts.
    """

    groups: Groups
    exchange: Exchange
    mine: Any
    sharing: Axes = dataclasses.field(metadata={"static": True})
    expected: int = dataclasses.field(metadata={"static": True})

    @property
    def sizes(self) -> Int[Array, " S"]:
        return self.exchange.sizes

    def gather(
        self,
        x_BTD: Float[Array, "B T D"],
        weights_BTk: Float[Array, "B T k"] | None = None,
    ) -> Float[Array, "M D"]:
        """Returns the token of each row that comes in; an empty row is 0."""
        return self.exchange.send(self.groups.gather(x_BTD, weights_BTk))

    def of_experts(
        self, values_S: Num[Array, "S ..."], axes: tuple[str, ...] = ()
    ) -> Num[Array, "M ..."]:
        """Returns, for each row, what `values` has for its expert; 0 if it is empty."""
        numbers, room = jnp.arange(self.sizes.size), self.exchange.room
        experts = jnp.repeat(numbers, self.sizes, total_repeat_length=room)
        is_full = jnp.arange(room) < jnp.sum(self.sizes)
        experts = jnp.where(is_full, experts, self.sizes.size)
        return values_S.at[experts].get(mode="fill", fill_value=0)

    def combine(
        self, y_MD: Float[Array, "M D"], weights_BTk: Float[Array, "B T k"] | None
    ) -> Float[Array, "B T D"]:
        """Returns each token's sum over its copies, when they are back."""
        y = self.groups.combine(self.exchange.bring_back(y_MD), weights_BTk)
        return lax.psum(y, self.sharing) if self.sharing else y

    def dropped(self, mask_BT: Bool[Array, "B T"]) -> Int[Array, ""]:
        """Returns how many copies of the tokens that it sends no expert sees."""
        rows, expert = self.groups.rows, self.groups.experts
        place = jnp.arange(expert.size) - self.exchange.starts[expert]
        lost = (
            (place >= self.exchange.sent[expert])
            .at[rows]
            .get(mode="fill", fill_value=True)
        )
        mask_BT = mask_BT if self.mine is None else mask_BT & self.mine
        return jnp.sum(lost & mask_BT[..., None], dtype=jnp.int32)


def sent(
    dispatch: Dispatch,
    experts_BTk: Int[Array, "B T k"],
    num_experts: int,
    peers: Peers,
) -> Groups | Sent:
    """Returns how the tokens of this device get to their experts.

    Each device sorts its own tokens. Where no mesh axis cuts the experts, it has all.
    """
    rows, tokens, k = experts_BTk.shape
    kept = dispatch.kept(experts_BTk, num_experts, peers)
    expected = dispatch.expected(rows * tokens, k, num_experts, peers)
    if not peers.experts:
        groups = compact(experts_BTk, kept, num_experts)
        return dataclasses.replace(groups, expected=expected)
    mine = None
    if peers.sharing:
        number = jnp.arange(rows * tokens).reshape(rows, tokens)
        share = number % lax.axis_size(peers.sharing)
        mine = share == lax.axis_index(peers.sharing)
        kept = mine[..., None] if kept is None else kept & mine[..., None]
    groups = compact(experts_BTk, kept, num_experts)
    assert groups.sizes is not None
    room = dispatch.room(rows * tokens, k, num_experts, peers)
    exchange = Exchange.of(groups.sizes, groups.copies.size, room, peers.experts)
    return Sent(groups, exchange, mine, peers.sharing, expected)
