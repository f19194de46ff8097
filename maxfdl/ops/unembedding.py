"""From hidden vectors to logits: the head's weights as one value.

The loss takes it and may never form the whole [B, T, V] logits.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from maxfdl.ops.codec import PackedKernel
from maxfdl.ops.dot import MatrixProduct


def _static(**kwargs: Any) -> Any:
    return dataclasses.field(metadata={"static": True}, **kwargs)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Unembedding:
    """`logits = cap(scale hidden @ kernel)`, in float32.

    Args:
      weights: The parameter as it is stored: the kernel [D, V] of a head of its own,
        or the embedding table [V, D]. If the kernel is packed, gathered.
      axes: Logical names of its dims, `embed` and `vocab` in their order.
      dtype: Type that the product is formed in.
      dot: The matrix product, which keeps no state.
      scale: Factor of the logits.
      soft_cap: Logits become `soft_cap tanh(logit / soft_cap)`; None leaves them.
      sharding: Where arrays lie, a `maxfdl.sharding.Sharding`; None on one device.
    """

    weights: jax.Array | PackedKernel
    axes: tuple[str, ...] = _static()
    dtype: str = _static()
    dot: MatrixProduct = _static()
    scale: float = _static(default=1.0)
    soft_cap: float | None = _static(default=None)
    sharding: Any = _static(default=None)

    def kernel(self) -> Float[Array, "D V"]:
        """Returns the weights ready for use: cast, then gathered over the batch."""
        return self.as_kernel(self._ready())

    def unpacked(self) -> jax.Array:
        """Returns the weights as one array, in the type that they are stored in."""
        if isinstance(self.weights, PackedKernel):
            return self.weights.unpacked(self.dtype)
        return self.weights

    def _ready(self) -> jax.Array:
        if self.sharding is None:
            return self.unpacked().astype(self.dtype)
        return self.sharding.gather(self.unpacked(), self.cut_axes, self.dtype)

    @property
    def cut_axes(self) -> tuple[str | None, ...]:
        """Logical names of the dims along which a mesh may cut `weights`: of packed
        ones none, for they are whole."""
        return (None, None) if isinstance(self.weights, PackedKernel) else self.axes

    def as_kernel(self, weights: jax.Array) -> Float[Array, "D V"]:
        return weights if self._is_kernel else weights.T

    @property
    def _is_kernel(self) -> bool:
        return self.axes[0] == "embed"

    def __call__(self, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
        return self.logits(hidden, self.kernel())

    def of_vectors(self, hidden_BD: Float[Array, "B D"]) -> Float[Array, "B V"]:
        """Returns the logits of a few vectors, without gradients: for decoding.

        A table is read as it lies. Transposed, XLA:CPU of JAX 0.12 reads it number by
        number for a single vector, which quadruples the time of a token.
        """
        if isinstance(self.weights, PackedKernel) and self.sharding is None:
            logits, _ = self.dot.of_packed(
                hidden_BD, self.weights, {}, out_dtype=jnp.float32
            )
            return self._bounded(logits)
        if self._is_kernel:
            return self(hidden_BD)
        equation = "bd,vd->bv"
        logits, _ = self.dot(
            hidden_BD, self._ready(), {}, equation=equation, out_dtype=jnp.float32
        )
        return self._bounded(logits)

    def logits(
        self, hidden: Float[Array, "... D"], kernel_DV: Float[Array, "D V"]
    ) -> Float[Array, "... V"]:
        """Returns the logits by a kernel that is ready for use."""
        logits, _ = self.dot(hidden, kernel_DV, {}, out_dtype=jnp.float32)
        return self._bounded(logits)

    def _bounded(self, logits: jax.Array) -> jax.Array:
        logits = logits if self.scale == 1.0 else logits * self.scale
        if self.soft_cap is None:
            return logits
        return self.soft_cap * jnp.tanh(logits / self.soft_cap)
