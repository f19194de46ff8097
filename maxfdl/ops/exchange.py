"""Rows that travel to the devices that hold their experts, and back.

This runs on each device apart, inside a `shard_map`. The mesh axes that cut the experts
join n devices, each with E / n neighbouring experts. Rows travel by one
`ragged_all_to_all` each way, which receives them in the order of experts; XLA:CPU has
none, and gathers the rows of all devices instead. Shared experts do not depend on it:
XLA for TPUs runs it in the background, beside them, with the flag
`xla_tpu_enable_async_ragged_all_to_all`.

Letters: M rows here, in the order of experts; R rows that this device has room for; D
width; S = E / n experts here.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int, Num

Axes = tuple[str, ...]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slices:
    """Which rows go where: S slices for each of the n devices, in their order.

    The fields are those of `jax.lax.ragged_all_to_all`.

    Args:
      input_offsets: Where each slice begins in the rows that are sent.
      send_sizes: How many rows it has.
      output_offsets: Where it begins in the rows of the device that receives it.
      recv_sizes: How many rows come in each slice that is received.
    """

    input_offsets: Any  # [E]; JAX also makes trees of placeholders
    send_sizes: Any
    output_offsets: Any
    recv_sizes: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Exchange:
    """The way of rows to their experts, and back to where they came from.

    Rows that come in lie in the order of experts, then of the devices that sent them.
    What is not sent comes back as 0, and so does every row here that no one sends.

    Args:
      there, back: The slices that travel.
      sizes: [S] rows that come in for each expert of this device.
      sent: [E] how many rows of this device each expert takes: the first ones. The
        rest found no room.
      starts: [E] where the rows for each expert begin here.
      axes: Mesh axes that cut the experts.
      rows: M.
      room: R.
    """

    there: Slices
    back: Slices
    sizes: Any
    sent: Any
    starts: Any
    axes: Axes = dataclasses.field(metadata={"static": True})
    rows: int = dataclasses.field(metadata={"static": True})
    room: int = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(
        cls, sizes_E: Int[Array, " E"], rows: int, room: int, axes: Axes
    ) -> "Exchange":
        """Returns the exchange of the `rows` here, `sizes` of them for each expert.

        A device fills its room in the order in which rows lie there.
        """
        here = lax.axis_index(axes)
        sizes_nE = lax.all_gather(sizes_E, axes)
        senders = sizes_nE.shape[0]
        starts_nE = jnp.cumsum(sizes_nE, axis=1) - sizes_nE
        # By receiver, expert there, sender: the order in which rows lie when they come.
        by_place = sizes_nE.reshape(senders, senders, -1).transpose(1, 2, 0)
        flat = by_place.reshape(senders, -1)
        places = jnp.cumsum(flat, axis=1) - flat
        taken = jnp.minimum(flat, jnp.maximum(room - places, 0))

        def by_sender(x):
            return x.reshape(by_place.shape).transpose(2, 0, 1)

        taken, places = by_sender(taken), by_sender(places)
        starts = starts_nE.reshape(taken.shape)
        begin, sent, place = (x[here].reshape(-1) for x in (starts, taken, places))
        of_mine = places[:, here], taken[:, here], starts[:, here]
        theirs, come, begin_there = (x.reshape(-1) for x in of_mine)
        return cls(
            there=Slices(begin, sent, place, come),
            back=Slices(theirs, come, begin_there, sent),
            sizes=jnp.sum(taken[:, here], axis=0),
            sent=sent,
            starts=begin,
            axes=axes,
            rows=rows,
            room=room,
        )

    def send(self, x_MD: Num[Array, "M D"]) -> Num[Array, "R D"]:
        """Returns the rows that come in for the experts of this device."""
        ends = (self.axes, self.room, self.rows)
        return jnp.asarray(_travel(*ends, x_MD, self.there, self.back))

    def bring_back(self, y_RD: Num[Array, "R D"]) -> Num[Array, "M D"]:
        """Returns what experts gave for the rows that were sent from here."""
        ends = (self.axes, self.rows, self.room)
        return jnp.asarray(_travel(*ends, y_RD, self.back, self.there))


# The gradient of a way is the other way. JAX's own rule would send the offsets, too.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _travel(axes: Axes, arriving: int, leaving: int, x: Any, way: Slices, back: Slices):
    """Returns the `arriving` rows that come in when each device sends its own."""
    del leaving, back

    def ragged(x, way):
        out = jnp.zeros((arriving, *x.shape[1:]), x.dtype)
        return lax.ragged_all_to_all(
            x,
            out,
            way.input_offsets,
            way.send_sizes,
            way.output_offsets,
            way.recv_sizes,
            axis_name=axes,
        )

    def gathered(x, way):
        return _by_gather(x, way, arriving, axes)

    # XLA:CPU has no ragged all-to-all.
    return lax.platform_dependent(x, way, cpu=gathered, default=ragged)


def _travel_forward(axes, arriving, leaving, x, way, back):
    return _travel(axes, arriving, leaving, x, way, back), (way, back)


def _travel_backward(axes, arriving, leaving, saved, dy):
    way, back = saved
    return _travel(axes, leaving, arriving, dy, back, way), None, None


_travel.defvjp(_travel_forward, _travel_backward)


def _by_gather(x: jax.Array, way: Slices, arriving: int, axes: Axes) -> jax.Array:
    """Does the same as `ragged_all_to_all`, by an all-gather of the rows of all."""
    swap = functools.partial(
        lax.all_to_all, axis_name=axes, split_axis=0, concat_axis=0, tiled=True
    )
    begin, first = swap(way.output_offsets), swap(way.input_offsets)
    slices = begin.size // lax.axis_size(axes)
    places = jnp.arange(arriving, dtype=begin.dtype)[:, None]
    inside = (places >= begin) & (places < begin + way.recv_sizes)
    of_row = jnp.argmax(inside, axis=1)
    sender = of_row // slices
    row = first[of_row] + places[:, 0] - begin[of_row]
    whole = lax.all_gather(x, axes, tiled=True)
    row = jnp.where(jnp.any(inside, axis=1), sender * x.shape[0] + row, len(whole))
    return whole.at[row].get(mode="fill", fill_value=0)
