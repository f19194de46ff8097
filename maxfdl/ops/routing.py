"""Which experts each token goes to, and with what weight.

Letters: N tokens in any number of dims, D residual width, E experts, k of them chosen.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int


class Choice(NamedTuple):
    """What a router decided.

    Args:
      experts: [N, k] the chosen ones, best first.
      weights: [N, k] what each counts for.
      scores: [N, E] of all experts, before any bias.
    """

    experts: Int[Array, "*N k"]
    weights: Float[Array, "*N k"]
    scores: Float[Array, "*N E"]


def router_logits(
    x: Float[Array, "*N D"],
    kernel: Float[Array, "D E"],
    bias: Float[Array, " E"] | None = None,
) -> Float[Array, "*N E"]:
    """`x kernel + bias` in float32, whatever the type of `x`.

    Scores in bfloat16 tie within 1 part in 256, and which expert wins then depends on
    the order of the sum. Cost: `2 D E` FLOPs per token.
    """
    logits = jnp.matmul(
        x.astype(jnp.float32),
        kernel.astype(jnp.float32),
        precision=lax.Precision.HIGHEST,
    )
    return logits if bias is None else logits + bias.astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class GroupLimit:
    """Leaves a token only the experts of its best groups.

    Experts lie in `groups` of equal size, one per device say. A group scores the sum of
    its `best` highest experts: 1 in DeepSeek-V2 (https://arxiv.org/abs/2405.04434),
    2 in DeepSeek-V3 (https://arxiv.org/abs/2412.19437). The best `kept` groups stay.
    """

    groups: int
    kept: int
    best: int

    @staticmethod
    def check_config(node):
        if not 1 <= node.kept <= node.groups:
            yield (
                f"GroupLimit kept ({node.kept}) must be from 1 to groups"
                f" ({node.groups})."
            )
        if node.best < 1:
            yield f"GroupLimit best ({node.best}) must be at least 1."

    def __call__(self, scores: Float[Array, "*N E"]) -> Float[Array, "*N E"]:
        """Returns the scores with those of the other groups at minus infinity."""
        grouped = scores.reshape(*scores.shape[:-1], self.groups, -1)
        of_group = jnp.sum(lax.top_k(grouped, self.best)[0], axis=-1)
        kept = lax.top_k(of_group, self.kept)[1]
        stays = jnp.any(jax.nn.one_hot(kept, self.groups, dtype=bool), axis=-2)
        return jnp.where(stays[..., None], grouped, -jnp.inf).reshape(scores.shape)


@dataclasses.dataclass(frozen=True)
class TopK:
    """The `k` experts of highest score, weighted by their scores.

    Softmax and one expert is Switch (Fedus et al. 2021,
    https://arxiv.org/abs/2101.03961); softmax, several and `renormalise` is Mixtral
    (https://arxiv.org/abs/2401.04088), and the same as a softmax over the chosen
    logits alone. Sigmoid scores with a bias are DeepSeek-V3's. A bias decides which
    experts are chosen and never what they weigh.

    Args:
      k: Experts per token.
      score: From logits to scores.
      renormalise: Whether a token's weights are divided by their sum.
      scale: Factor on the weights, after that.
      limit: What leaves a token only some experts; None: it may go to any.
    """

    k: int
    score: Literal["softmax", "sigmoid"] = "softmax"
    renormalise: bool = False
    scale: float = 1.0
    limit: GroupLimit | None = None

    @staticmethod
    def check_config(node):
        if node.k < 1:
            yield f"TopK k ({node.k}) must be at least 1."

    def __call__(
        self,
        logits: Float[Array, "*N E"],
        bias: Float[Array, " E"] | None = None,
    ) -> Choice:
        scores = _SCORES[self.score](logits.astype(jnp.float32))
        ranked = lax.stop_gradient(scores)
        if bias is not None:
            ranked = ranked + lax.stop_gradient(bias)
        if self.limit is not None:
            ranked = self.limit(ranked)
        experts = lax.top_k(ranked, self.k)[1]
        weights = jnp.take_along_axis(scores, experts, axis=-1)
        if self.renormalise:
            # Sigmoids may all vanish, and no weights are better than NaN.
            weights = weights / (jnp.sum(weights, axis=-1, keepdims=True) + 1e-20)
        return Choice(experts, weights * self.scale, scores)


_SCORES = {"softmax": jax.nn.softmax, "sigmoid": jax.nn.sigmoid}
