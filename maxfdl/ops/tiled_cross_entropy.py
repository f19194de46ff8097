"""Cross-entropy that never holds the logits of more than one tile of tokens.

Letters: B rows, T tokens, D residual width, V vocabulary, n tiles, t tokens of a row in
one tile.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
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

    Rows are cut along their tokens, so on a mesh each device has the tiles of its own
    rows; it gathers the kernel once and reduces its gradient once.

    Args:
      num_tiles: Tiles of a row; None follows from `tokens_per_tile`.
      tokens_per_tile: Tokens of a tile on one device, 1024 to 2048 for speed; None
        follows from `num_tiles`.
    """

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
        tokens = targets, weights
        whole, z_loss = self._sums(unembedding)(
            hidden_BTD, unembedding.weights, *tokens
        )
        if not self.z_loss:
            return {"cross_entropy": whole}
        return {"cross_entropy": whole - z_loss, "z_loss": z_loss}

    def _sums(self, unembedding: Unembedding):
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

        stored_dtype = unembedding.weights.dtype
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
    """Runs `_on_device` where the rows lie, whole kernels in, summed gradients out."""
    sharding = unembedding.sharding
    if sharding is None or not (axes := sharding.batch_axes()):
        kernel = unembedding.as_kernel(stored.astype(unembedding.dtype))
        whole, z_loss, grads = _on_device(
            loss, unembedding, hidden, kernel, targets, weights, gradients
        )
        if grads is not None:
            grads = grads[0], unembedding.as_kernel(grads[1])
        return whole, z_loss, grads

    rows, of_stored = PartitionSpec(axes), sharding.spec(unembedding.axes, only=axes)

    def local(hidden, stored, targets, weights):
        cast = stored.astype(unembedding.dtype)
        for dim, names in _cuts(of_stored):
            cast = lax.all_gather(cast, names, axis=dim, tiled=True)
        kernel = unembedding.as_kernel(cast)
        whole, z_loss, grads = _on_device(
            loss, unembedding, hidden, kernel, targets, weights, gradients
        )
        whole, z_loss = lax.psum((whole, z_loss), axes)
        if grads is None:
            return whole, z_loss, None
        d_hidden, d_kernel = grads
        d_stored = unembedding.as_kernel(d_kernel)
        left = axes
        for dim, names in _cuts(of_stored):
            d_stored = lax.psum_scatter(
                d_stored, names, scatter_dimension=dim, tiled=True
            )
            left = tuple(axis for axis in left if axis not in names)
        d_stored = lax.psum(d_stored, left) if left else d_stored
        return whole, z_loss, (d_hidden, d_stored)

    scalar = PartitionSpec()
    out_specs = scalar, scalar, (rows, of_stored) if gradients else None
    return jax.shard_map(
        local,
        mesh=sharding.mesh,
        in_specs=(rows, of_stored, rows, rows),
        out_specs=out_specs,
        axis_names=set(axes),
        check_vma=False,
    )(hidden, stored, targets, weights)


def _cuts(spec: PartitionSpec) -> list[tuple[int, tuple[str, ...]]]:
    """Returns the dims that a spec cuts, and by which mesh axes."""
    named = [(dim, entry) for dim, entry in enumerate(spec) if entry is not None]
    return [(dim, (e,) if isinstance(e, str) else tuple(e)) for dim, e in named]


def _on_device(loss, unembedding, hidden, kernel, targets, weights, gradients):
    """Scans the tiles of rows; returns both sums, and gradients or None."""
    rows, tokens, width = hidden.shape
    length = loss.tile_length(rows, tokens)
    count = math.ceil(tokens / length)

    def tiles(x):
        padding = [(0, 0), (0, count * length - tokens)] + [(0, 0)] * (x.ndim - 2)
        x = jnp.pad(x, padding).reshape(rows, count, length, *x.shape[2:])
        return x.swapaxes(0, 1)

    def body(carry, tile):
        whole, z_loss, d_kernel = carry
        hidden, targets, weights = tile
        logits = unembedding.logits(hidden, kernel)
        normaliser = jax.nn.logsumexp(logits, axis=-1)
        is_target = jnp.arange(logits.shape[-1]) == targets[..., None]
        of_target = jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
        squares = loss.z_loss * jnp.sum(weights * jnp.square(normaliser))
        whole = whole + jnp.sum(weights * (normaliser - of_target)) + squares
        if d_kernel is None:
            return (whole, z_loss + squares, None), None
        slope = (1.0 + 2.0 * loss.z_loss * normaliser)[..., None]
        odds = jnp.exp(logits - normaliser[..., None])
        d_logits = weights[..., None] * (slope * odds - is_target)
        if unembedding.soft_cap is not None:
            d_logits = d_logits * (1.0 - jnp.square(logits / unembedding.soft_cap))
        if unembedding.scale != 1.0:
            d_logits = d_logits * unembedding.scale
        d_logits = d_logits.astype(hidden.dtype)
        d_hidden = jnp.einsum("btv,dv->btd", d_logits, kernel)
        d_kernel = d_kernel + jnp.einsum(
            "btd,btv->dv", hidden, d_logits, preferred_element_type=jnp.float32
        )
        return (whole, z_loss + squares, d_kernel), d_hidden

    zero = jnp.zeros((), jnp.float32)
    d_kernel = jnp.zeros(kernel.shape, jnp.float32) if gradients else None
    carry, d_hidden = lax.scan(
        body, (zero, zero, d_kernel), (tiles(hidden), tiles(targets), tiles(weights))
    )
    whole, z_loss, d_kernel = carry
    if d_hidden is None:
        return whole, z_loss, None
    d_hidden = d_hidden.swapaxes(0, 1).reshape(rows, count * length, width)
    return whole, z_loss, (d_hidden[:, :tokens], d_kernel)
