"""Next-token cross-entropy with z-loss, as sums over weighted tokens."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from maxfdl.ops.unembedding import Unembedding


@dataclasses.dataclass(frozen=True)
class CrossEntropy:
    """`sum_t w_t (logsumexp(l_t) - l_t[y_t])` and `z_loss sum_t w_t logsumexp(l_t)^2`.

    The second term keeps the softmax normaliser near 1 (Chowdhery et al. 2022,
    https://arxiv.org/abs/2204.02311, section 5). Logits are float32. Cost: `2 D V`
    FLOPs per token forward, `6 D V` with gradients, and all logits in memory.

    Args:
      z_loss: Coefficient of the second term; 1e-4 is usual, 0 leaves it out.
    """

    z_loss: float = 0.0

    @staticmethod
    def check_config(node):
        if node.z_loss < 0:
            yield f"CrossEntropy z_loss ({node.z_loss}) must not be negative."

    def __call__(
        self,
        hidden_BTD: Float[Array, "B T D"],
        unembedding: Unembedding,
        targets: Int[Array, "B T"],
        weights: Float[Array, "B T"],
    ) -> dict[str, Float[Array, ""]]:
        """Returns each term's weighted sum over the tokens, in nats."""
        logits = unembedding(hidden_BTD)
        normaliser = jax.nn.logsumexp(logits, axis=-1)
        # A comparison and not a gather: its gradient fuses with the softmax's, where
        # a gather's is a scatter into a second array of logits.
        is_target = jnp.arange(logits.shape[-1]) == targets[..., None]
        target_logit = jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
        sums = {"cross_entropy": jnp.sum(weights * (normaliser - target_logit))}
        if self.z_loss:
            sums["z_loss"] = self.z_loss * jnp.sum(weights * jnp.square(normaliser))
        return sums
