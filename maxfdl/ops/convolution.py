"""Causal depthwise convolution over packed rows.

Letters: B rows, T tokens, W taps; `...` the channels, in as many dims as they have.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from maxfdl.ops.documents import document_numbers, is_token, places_of_shard
from maxfdl.ops.mask import Places
from maxfdl.ops.ring import Ring, names_of


def causal_convolution(
    x: Float[Array, "B T ..."],
    kernel: Float[Array, "W ..."],
    places: Places,
    before: Float[Array, "B W-1 ..."] | None = None,
) -> tuple[Float[Array, "B T ..."], Float[Array, "B W-1 ..."]]:
    """`y_t = sum_j kernel[W - 1 - j] x_{t - j}` over the `W` tokens up to t.

    Channels do not mix, and no tap reaches into another document. Sums are float32 and
    results are in the type of `x`. Costs `2 W` FLOPs per token and channel, none of
    them in matrix products.

    Args:
      x: Inputs; padding, if any, is on the right.
      kernel: Taps, that of the token itself last.
      places: Where the tokens stand.
      before: The `W - 1` inputs before this call; None: zeros.

    Returns:
      The outputs, and `before` of the next call: the last `W - 1` inputs of each row
      that are no padding, zeros in place of those of an earlier document.
    """
    rows, tokens = x.shape[:2]
    taps = kernel.shape[0]
    if before is None:
        before = jnp.zeros((rows, taps - 1, *x.shape[2:]), x.dtype)
    inputs = jnp.concatenate([before.astype(x.dtype), x], axis=1)
    document = jnp.pad(document_numbers(places), ((0, 0), (taps - 1, 0)))

    def of_document(values, ids, now):
        same = (ids == now).reshape(ids.shape + (1,) * (values.ndim - 2))
        return jnp.where(same, values, 0)

    y = jnp.zeros(x.shape, jnp.float32)
    for tap in range(taps):
        reached = slice(tap, tap + tokens)
        values = of_document(
            inputs[:, reached], document[:, reached], document[:, taps - 1 :]
        )
        y = y + values.astype(jnp.float32) * kernel[tap].astype(jnp.float32)

    seen = jnp.sum(is_token(places), axis=1)
    cut = jax.vmap(lambda row, at: lax.dynamic_slice_in_dim(row, at, taps - 1))
    last, ids = cut(inputs, seen), cut(document, seen)
    return y.astype(x.dtype), of_document(last, ids, ids[:, -1:])


def convolution_of_shards(
    x: Float[Array, "B T ..."],
    kernel: Float[Array, "W ..."],
    places: Places,
    sharding: Any | None,
    channels: Sequence[str],
) -> Float[Array, "B T ..."]:
    """Returns what `causal_convolution` does for rows that begin here.

    Where a mesh cuts the rows along their tokens, each device sends its last `W - 1`
    inputs to the next; if a shard has fewer, so often that those of several come by.

    Args:
      x, kernel, places: As there.
      sharding: Where arrays lie, a `maxfdl.sharding.Sharding`; None on one device.
      channels: Logical names of the channels' dims.
    """
    if sharding is None:
        return causal_convolution(x, kernel, places)[0]
    rows, *cuts, tokens = sharding.spec(("batch", *channels, "sequence"))
    if tokens is None:
        return causal_convolution(x, kernel, places)[0]
    size = math.prod(map(sharding.size, names_of(tokens)))
    of_x, of_kernel = PartitionSpec(rows, tokens, *cuts), PartitionSpec(None, *cuts)
    on_shard = functools.partial(_of_shard, Ring(tokens, size))
    in_specs = of_x, of_kernel, PartitionSpec(rows, tokens)
    spread = sharding.on_each(on_shard, in_specs, of_x)
    return spread(x, kernel.astype(jnp.float32), places)


def _of_shard(ring, x, kernel, places):
    places = places_of_shard(places, ring)
    before = None
    for _ in range(math.ceil((kernel.shape[0] - 1) / x.shape[1])):
        _, last = causal_convolution(x, kernel, places, before)
        before = ring.before(last)
    return causal_convolution(x, kernel, places, before)[0]
