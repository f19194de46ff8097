"""Cross-entropy that never holds the logits of more than one tile of tokens.

Letters: B rows, T tokens, D residual width, V vocabulary, n tiles, t tokens of a row in
one tile.
"""

import dataclasses
import functools
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from maxfdl.ops.cross_entropy import CrossEntropy
from maxfdl.ops.unembedding import Unembedding


@dataclasses.dataclass(frozen=True)
class TiledCrossEntropy(CrossEntropy):
    """`CrossEntropy` over tiles of tokens, gradients formed beside the loss.

    The gradients of hidden vectors and kernel are linear in that of the loss, so the
    forward pass forms them while a tile's logits are at hand, and the backward pass
    scales them: `6 D V` FLOPs per token, where forming the logits again would be 8, and
    `2 D V` without gradients. Memory: float32 logits of one tile, one kernel in the
    compute type and its gradient in float32.

    Tiles are cut along the tokens of rows, so on a mesh each device has those of its
    own rows, or of its shards of rows; it gathers the kernel once and reduces its
    gradient once.

    Args:
      num_tiles: Tiles of a row; None follows from `tokens_per_tile`.
      tokens_per_tile: Tokens of a tile on one device, 1024 to 2048 for speed; None
        follows from `num_tiles`.
    """

    equivalent_to: ClassVar[type] = CrossEntropy
    num_tiles: int | None = None
    tokens_per_tile: int | None = None

    @staticmethod
    def check_config(node):
        yield from CrossEntropy.check_config(node)
        if (node.num_tiles is None) == (node.tokens_per_tile is None):
            yield (
                f"TiledCrossEntropy has num_tiles ({node.num_tiles}) and"
                f" tokens_per_tile ({node.tokens_per_tile}); exactly one must be set."
            )
        for name in ("num_tiles", "tokens_per_tile"):
            value = getattr(node, name)
            if value is not None and value < 1:
                yield f"TiledCrossEntropy {name} ({value}) must be at least 1."

    def __call__(
        self,
        hidden_BTD: Float[Array, "B T D"],
        unembedding: Unembedding,
        targets: Int[Array, "B T"],
        weights: Float[Array, "B T"],
    ) -> dict[str, Float[Array, ""]]:
        """Returns each term's weighted sum over the tokens, in nats.

        The gradient of `z_loss` comes with that of `cross_entropy`.
        """
        stored = unembedding.unpacked()
        whole, z_loss = self._sums(unembedding, stored.dtype)(
            hidden_BTD, stored, targets, weights
        )
        if not self.z_loss:
            return {"cross_entropy": whole}
        return {"cross_entropy": whole - z_loss, "z_loss": z_loss}

    def _sums(self, unembedding: Unembedding, stored_dtype: DTypeLike):
        """Returns a function to (sum of all terms, the z-loss in it)."""

        @jax.custom_vjp
        def sums(hidden, stored, targets, weights):
            whole, z_loss, _ = run(hidden, stored, targets, weights, gradients=False)
            return whole, lax.stop_gradient(z_loss)

        def forward(hidden, stored, targets, weights):
            whole, z_loss, grads = run(hidden, stored, targets, weights, gradients=True)
            return (whole, z_loss), grads

        def backward(saved, d_sums):
            d_hidden, d_stored = saved
            scale, _ = d_sums
            d_hidden = (d_hidden * scale).astype(d_hidden.dtype)
            return d_hidden, (d_stored * scale).astype(stored_dtype), None, None

        run = functools.partial(_on_mesh, self, unembedding)
        sums.defvjp(forward, backward)
        return sums

    def tile_length(self, rows: int, tokens: int) -> int:
        """Returns t for rows of this many tokens on one device."""
        if self.num_tiles is not None:
            return math.ceil(tokens / self.num_tiles)
        assert self.tokens_per_tile is not None
        return max(1, min(tokens, self.tokens_per_tile // rows))


def _on_mesh(loss, unembedding, hidden, stored, targets, weights, *, gradients):
    """Runs `_on_device` where the rows lie, whole weights in, summed gradients out."""
    sharding = unembedding.sharding
    on_device = functools.partial(_on_device, loss, unembedding, gradients)
    if sharding is None:
        return on_device(hidden, stored.astype(unembedding.dtype), targets, weights)

    tokens, dims = sharding.spec(("batch", "sequence")), unembedding.cut_axes
    axes = tuple(axis for names in sharding.axes_of_tokens() for axis in names)
    of_stored = sharding.spec(dims, only=axes)

    def local(hidden, stored, targets, weights):
        here = sharding.within(axes) if axes else sharding
        whole_weights = here.gather(stored, dims, unembedding.dtype)
        whole, z_loss, grads = on_device(hidden, whole_weights, targets, weights)
        if axes:
            whole, z_loss = lax.psum((whole, z_loss), axes)
        if grads is None:
            return whole, z_loss, None
        d_hidden, d_stored = grads
        # In float32: of bfloat16 terms, the sum over 8 or 16 devices is 5e-4 off.
        d_stored = here.reduce(d_stored, dims, jnp.float32)
        cut = {name for _, names in here.cuts(dims) for name in names}
        left = tuple(axis for axis in axes if axis not in cut)
        return whole, z_loss, (d_hidden, lax.psum(d_stored, left) if left else d_stored)

    if not axes:
        return local(hidden, stored, targets, weights)
    scalar = PartitionSpec()
    out_specs = scalar, scalar, (tokens, of_stored) if gradients else None
    return jax.shard_map(
        local,
        mesh=sharding.mesh,
        in_specs=(tokens, of_stored, tokens, tokens),
        out_specs=out_specs,
        axis_names=set(axes),
        check_vma=False,
    )(hidden, stored, targets, weights)


def _on_device(loss, unembedding, gradients, hidden, stored, targets, weights):
    """Scans the tiles of rows; returns both sums, and gradients or None."""
    rows, tokens, _ = hidden.shape
    length = loss.tile_length(rows, tokens)
    count = math.ceil(tokens / length)

    def padded(x):
        padding = [(0, 0), (0, count * length - tokens)] + [(0, 0)] * (x.ndim - 2)
        return jnp.pad(x, padding)

    def body(carry, start):
        whole, z_loss, hidden, d_stored = carry
        tile, y, w = (
            lax.dynamic_slice_in_dim(x, start, length, axis=1)
            for x in (hidden, targets, weights)
        )
        kernel = unembedding.as_kernel(stored)
        logits = unembedding.logits(tile, kernel)
        highest = jnp.max(logits, axis=-1, keepdims=True)
        odds = jnp.exp(logits - highest)
        total = jnp.sum(odds, axis=-1, keepdims=True)
        normaliser = jnp.squeeze(highest + jnp.log(total), -1)
        is_target = jnp.arange(logits.shape[-1]) == y[..., None]
        of_target = jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
        squares = loss.z_loss * jnp.sum(w * jnp.square(normaliser))
        whole = whole + jnp.sum(w * (normaliser - of_target)) + squares
        z_loss = z_loss + squares
        if d_stored is None:
            return (whole, z_loss, hidden, None), None
        slope = (1.0 + 2.0 * loss.z_loss * normaliser)[..., None]
        # Not exp(logits - normaliser), which has the rounding of a larger number.
        d_logits = w[..., None] * (slope * odds / total - is_target)
        if unembedding.soft_cap is not None:
            d_logits = d_logits * (1.0 - jnp.square(logits / unembedding.soft_cap))
        if unembedding.scale != 1.0:
            d_logits = d_logits * unembedding.scale
        d_logits = d_logits.astype(hidden.dtype)
        d_tile, d_weights = unembedding.dot.backward(
            tile,
            kernel,
            d_logits,
            kernel_dtype=jnp.float32,
            outputs_first=unembedding.axes[0] != "embed",
        )
        d_tile, d_stored = d_tile.astype(hidden.dtype), d_stored + d_weights
        # A tile is read once, so its gradient can take its place: one array for both.
        hidden = lax.dynamic_update_slice_in_dim(hidden, d_tile, start, axis=1)
        return (whole, z_loss, hidden, d_stored), None

    hidden, targets, weights = padded(hidden), padded(targets), padded(weights)
    zero = jnp.zeros((), jnp.float32)
    d_stored = jnp.zeros(stored.shape, jnp.float32) if gradients else None
    carry, _ = lax.scan(
        body, (zero, zero, hidden, d_stored), jnp.arange(count) * length
    )
    whole, z_loss, d_hidden, d_stored = carry
    if d_stored is None:
        return whole, z_loss, None
    return whole, z_loss, (d_hidden[:, :tokens], d_stored)
