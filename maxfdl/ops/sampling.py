"""From logits to the next token.

The steps and their order are those of Hugging Face transformers: repetition penalty,
temperature, top-k, top-p, min-p. What a step removes becomes minus infinity; the most
likely token always stays. Letters: V tokens of the vocabulary.
"""

import dataclasses
from collections.abc import Iterable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key


def penalised(
    logits: Float[Array, "... V"], seen: Bool[Array, "... V"], penalty: float
) -> Float[Array, "... V"]:
    """Makes what was `seen` less likely (Keskar et al. 2019).

    A positive logit is divided by the penalty, a negative one multiplied.
    """
    lowered = jnp.where(logits > 0, logits / penalty, logits * penalty)
    return jnp.where(seen, lowered, logits)


def keep_top_k(logits: Float[Array, "... V"], k: int) -> Float[Array, "... V"]:
    """Keeps the `k` highest, and what is equal to the last of them."""
    highest, _ = jax.lax.top_k(logits, min(k, logits.shape[-1]))
    return jnp.where(logits < highest[..., -1:], -jnp.inf, logits)


def keep_top_p(logits: Float[Array, "... V"], p: float) -> Float[Array, "... V"]:
    """Keeps the likeliest tokens that reach `p` together (Holtzman et al. 2019).

    The least likely are removed as long as they hold `1 - p` or less; what is equal
    to the last one kept stays too.
    """
    ascending = jnp.sort(logits, axis=-1)
    reached = jnp.cumsum(jax.nn.softmax(ascending, axis=-1), axis=-1)
    stays = (reached > 1.0 - p).at[..., -1].set(True)
    lowest = jnp.min(jnp.where(stays, ascending, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits < lowest, -jnp.inf, logits)


def keep_min_p(logits: Float[Array, "... V"], p: float) -> Float[Array, "... V"]:
    """Keeps what is at least `p` times as likely as the likeliest (Nguyen et al. 2024).

    https://arxiv.org/abs/2407.01082
    """
    probabilities = jax.nn.softmax(logits, axis=-1)
    highest = jnp.max(probabilities, axis=-1, keepdims=True)
    return jnp.where(probabilities < p * highest, -jnp.inf, logits)


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Chooses the next token of each row.

    Args:
      temperature: Logits are divided by it; 0 takes the highest, of equals the first.
      top_k: See `keep_top_k`; None keeps all, as with the next two.
      top_p: See `keep_top_p`.
      min_p: See `keep_min_p`.
      repetition_penalty: See `penalised`; of prompt and new tokens. None: no penalty.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None

    @staticmethod
    def check_config(node) -> Iterable[str]:
        if node.temperature < 0:
            yield (
                f"Sampler temperature ({node.temperature}) must not be negative; 0"
                " takes the likeliest token."
            )
        if node.top_k is not None and node.top_k < 1:
            yield f"Sampler top_k ({node.top_k}) must be at least 1."
        if node.top_p is not None and not 0 < node.top_p <= 1:
            yield f"Sampler top_p ({node.top_p}) must be above 0 and at most 1."
        if node.min_p is not None and not 0 <= node.min_p <= 1:
            yield f"Sampler min_p ({node.min_p}) must be from 0 to 1."
        if node.repetition_penalty is not None and node.repetition_penalty <= 0:
            yield (
                f"Sampler repetition_penalty ({node.repetition_penalty}) must be"
                " positive; 1 changes nothing."
            )

    def kept(
        self,
        logits: Float[Array, "... V"],
        seen: Bool[Array, "... V"] | None = None,
    ) -> Float[Array, "... V"]:
        """Returns the logits of what may be chosen, minus infinity for the rest."""
        if self.repetition_penalty is not None:
            assert seen is not None, "a repetition penalty needs what was seen"
            logits = penalised(logits, seen, self.repetition_penalty)
        if not self.temperature:
            return logits
        logits = logits / self.temperature
        if self.top_k is not None:
            logits = keep_top_k(logits, self.top_k)
        if self.top_p is not None and self.top_p < 1:
            logits = keep_top_p(logits, self.top_p)
        if self.min_p is not None:
            logits = keep_min_p(logits, self.min_p)
        return logits

    def __call__(
        self,
        logits: Float[Array, "B V"],
        keys: Key[Array, " B"],
        seen: Bool[Array, "B V"] | None = None,
    ) -> Int[Array, " B"]:
        """Draws a token for each row, with the key of the row and nothing else.

        Args:
          logits: In float32.
          keys: One per row; not looked at if the temperature is 0.
          seen: The tokens that the penalty is for.
        """
        logits = self.kept(logits, seen)
        if not self.temperature:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)
