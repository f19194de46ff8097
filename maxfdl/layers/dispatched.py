"""Tokens on their way to experts: on one device, or on each device of a mesh."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from maxfdl.layers.context import Context
from maxfdl.ops.experts import Dispatch, Groups, Peers
from maxfdl.ops.sent import Sent, sent
from maxfdl.sharding.sharding import Sharding


def dispatched(
    dispatch: Dispatch, experts_BTk: jax.Array, num_experts: int, context: Context
) -> "Groups | OnMesh":
    """Returns how the tokens of a call get to their experts."""
    if context.sharding is None:
        return dispatch(experts_BTk, num_experts)
    return OnMesh.of(dispatch, experts_BTk, num_experts, context.sharding)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OnMesh:
    """Groups of rows on a mesh, where each device has its own.

    Its methods are those of `Groups`, for arrays of the whole mesh: tokens are cut as
    the rules say, and the rows that experts see over the axes of both.

    Args:
      own: `Groups` or `Sent` of each device; their arrays lie along the first dim.
      sharding: The mesh and the rules.
    """

    own: Groups | Sent
    sharding: Sharding = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(
        cls,
        dispatch: Dispatch,
        experts_BTk: jax.Array,
        num_experts: int,
        sharding: Sharding,
    ) -> "OnMesh":
        together = dataclasses.replace(sharding, apart=())
        peers = Peers(*together.axes_of_tokens(), sharding.axes_of_experts())

        def of_device(experts_BTk):
            return sent(dispatch, experts_BTk, num_experts, peers)

        in_specs, out_specs = (_tokens(sharding),), _rows(sharding)
        own = sharding.on_each(of_device, in_specs, out_specs)(experts_BTk)
        return cls(own, sharding)

    @property
    def sizes(self) -> jax.Array:
        """Rows of each device for each of its experts, one device after the other."""
        assert self.own.sizes is not None
        return self.own.sizes

    @property
    def expected(self) -> int:
        """Rows that the experts of one device are expected to see."""
        return self.own.expected

    def gather(
        self, x_BTD: jax.Array, weights_BTk: jax.Array | None = None
    ) -> jax.Array:
        tokens = _tokens(self.sharding)
        run = self._each(type(self.own).gather, (tokens, tokens), _rows(self.sharding))
        return run(x_BTD, weights_BTk)

    def of_experts(self, values_E: jax.Array, axes: tuple[str, ...] = ()) -> jax.Array:
        of_values = self.sharding.spec_in_use(axes)
        out = PartitionSpec(*_rows(self.sharding), *of_values[1:])
        return self._each(type(self.own).of_experts, (of_values,), out)(values_E)

    def combine(self, y_MD: jax.Array, weights_BTk: jax.Array | None) -> jax.Array:
        tokens = _tokens(self.sharding)
        in_specs = _rows(self.sharding), tokens
        return self._each(type(self.own).combine, in_specs, tokens)(y_MD, weights_BTk)

    def dropped(self, mask_BT: jax.Array) -> jax.Array:
        def of_device(own, mask_BT):
            return own.dropped(mask_BT)[None]

        specs = (_tokens(self.sharding),), _rows(self.sharding)
        return jnp.sum(self._each(of_device, *specs)(mask_BT), dtype=jnp.int32)

    def _each(self, method: Callable, in_specs: Any, out_specs: Any) -> Callable:
        """Returns a method of the groups of each device, of arrays of the mesh."""
        in_specs = (_rows(self.sharding), *in_specs)
        run = self.sharding.on_each(method, in_specs, out_specs)
        return lambda *args: run(self.own, *args)


def _tokens(sharding: Sharding) -> PartitionSpec:
    return PartitionSpec(*sharding.axes_of_tokens())


def _rows(sharding: Sharding) -> PartitionSpec:
    return PartitionSpec(sharding.axes_of_rows())
