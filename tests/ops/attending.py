"""Rows, inputs and gradients for tests of attention."""

import jax
import jax.numpy as jnp
import numpy as np

from maxfdl.ops.balance import counted
from maxfdl.ops.mask import Places

WHOLE, PACKED = "whole rows", "packed rows"


def places(rows, tokens, packing=WHOLE):
    """Rows of one document, or of three and padding, cut at other places in each."""
    positions = np.tile(np.arange(tokens), (rows, 1))
    if packing == WHOLE:
        return Places(jnp.int32(positions), None)
    segments = np.zeros_like(positions)
    for row in range(rows):
        cuts = [0, tokens // 5 + row, tokens // 2, tokens - tokens // 8, tokens]
        for number, (first, last) in enumerate(zip(cuts, cuts[1:], strict=False)):
            segments[row, first:last] = (number + 1) % 4
            positions[row, first:last] = np.arange(last - first)
    return Places(jnp.int32(positions), jnp.int32(segments))


def inputs(rows, tokens, heads, kv_heads, width, value_width=None):
    rng = np.random.default_rng(tokens)
    shapes = (heads, width), (kv_heads, width), (kv_heads, value_width or width)
    q, k, v = (
        jnp.asarray(rng.normal(size=(rows, tokens, *s)), jnp.float32) for s in shapes
    )
    upstream = rng.normal(size=(rows, tokens, heads, v.shape[-1]))
    return q, k, v, jnp.asarray(upstream, jnp.float32)


def out_and_gradients(op, q, k, v, upstream, mask, sinks=None):
    """Returns output and gradients, without what padding has in them."""
    upstream = upstream * counted(mask.queries)[:, :, None, None]

    @jax.jit
    def run(q, k, v, sinks, mask):
        given = (q, k, v) if sinks is None else (q, k, v, sinks)
        attend = lambda q, k, v, sinks=None: op(q, k, v, mask, sinks)  # noqa: E731
        out, backward = jax.vjp(attend, *given)
        return jnp.where(upstream == 0, 0, out), *backward(upstream)

    return run(q, k, v, sinks, mask)
