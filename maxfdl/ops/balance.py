"""How evenly a router spreads tokens over its experts.

Each function gives sums over tokens that count, so that rows, microbatches and layers
can be added up before anything is divided. Letters: B rows, T tokens, E experts, k of
them chosen.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Num

from maxfdl.ops.mask import NOWHERE, Places


def counted(places: Places) -> Bool[Array, "B T"]:
    """Returns which tokens count: not padding, whose segment is 0 or place nowhere."""
    real = places.positions < NOWHERE
    return real if places.segment_ids is None else real & (places.segment_ids != 0)


def expert_counts(
    experts: Int[Array, "B T k"], mask: Bool[Array, "B T"], num_experts: int
) -> Int[Array, " E"]:
    """Returns how often each expert was chosen."""
    chosen = _chosen(experts, mask, num_experts)
    return jnp.sum(chosen, axis=(0, 1, 2), dtype=jnp.int32)


def _chosen(
    experts_BTk: jax.Array, mask_BT: jax.Array, num_experts: int
) -> Bool[Array, "B T k E"]:
    """Returns which expert each choice of a token that counts is.

    Summed up, it is never formed. A scatter would count the same, but on a mesh XLA
    gathers all choices for it.
    """
    numbers = jnp.arange(num_experts, dtype=experts_BTk.dtype)
    return (experts_BTk[..., None] == numbers) & mask_BT[..., None, None]


def probabilities(scores: Float[Array, "*N E"]) -> Float[Array, "*N E"]:
    """Returns each token's scores as shares of their sum: no change to a softmax."""
    return scores / (jnp.sum(scores, axis=-1, keepdims=True) + 1e-20)


def probability_sums(
    scores: Float[Array, "B T E"], mask: Bool[Array, "B T"]
) -> Float[Array, " E"]:
    """Returns the sum over tokens of the probability of each expert."""
    return jnp.sum(jnp.where(mask[..., None], probabilities(scores), 0.0), axis=(0, 1))


def load_balance(
    counts: Num[Array, "*L E"],
    probability: Float[Array, "*L E"],
    tokens: Float[Array, "*L"],
) -> Float[Array, ""]:
    """`E sum_e f_e P_e`: k when even, up to E when all go to one expert.

    f_e is the number of times that a token chose expert e and P_e its probability,
    both means over tokens. Layers, if there is a leading dim, are taken together. From
    Fedus et al. 2021, https://arxiv.org/abs/2101.03961, equations 4 to 6, with f
    counting all k choices as Mixtral's reference code does.

    Args:
      counts: As `expert_counts`.
      probability: As `probability_sums`.
      tokens: How many these are sums of.
    """
    num_experts = counts.shape[-1]
    total = jnp.maximum(jnp.sum(tokens), 1.0)
    f_E = jnp.sum(counts.reshape(-1, num_experts), axis=0) / total
    p_E = jnp.sum(probability.reshape(-1, num_experts), axis=0) / total
    return num_experts * jnp.sum(f_E * p_E)


def router_z(
    logits: Float[Array, "B T E"], mask: Bool[Array, "B T"]
) -> Float[Array, ""]:
    """Returns the sum over tokens of `logsumexp(logits)^2`.

    Keeps router logits small (Zoph et al. 2022, https://arxiv.org/abs/2202.08906,
    equation 5).
    """
    z = jax.nn.logsumexp(logits.astype(jnp.float32), axis=-1)
    return jnp.sum(jnp.where(mask, jnp.square(z), 0.0))


def sequence_balance(
    scores: Float[Array, "B T E"], k: int, mask: Bool[Array, "B T"]
) -> Float[Array, " B"]:
    """`sum_e f_e P_e` of each row: 1 when even. A row where nothing counts gives 0.

    `f_e = E / (k T)` times the number of tokens that have e among their k highest
    scores, and P_e is the mean probability of e. Neither a selection bias nor groups
    enter. DeepSeek-V3, https://arxiv.org/abs/2412.19437, equations 17 to 20.
    """
    num_experts = scores.shape[-1]
    highest = lax.top_k(lax.stop_gradient(scores), k)[1]
    chosen = _chosen(highest, mask, num_experts)
    chosen_BE = jnp.sum(chosen, axis=(1, 2), dtype=jnp.float32)
    tokens_B1 = jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)
    f_BE = chosen_BE * num_experts / (k * tokens_B1)
    shares = jnp.where(mask[..., None], probabilities(scores), 0.0)
    return jnp.sum(f_BE * jnp.sum(shares, axis=1) / tokens_B1, axis=-1)
