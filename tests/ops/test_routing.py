"""Routing against loops over tokens, written anew; `test_moe.py` has transformers'."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxfdl.ops.routing import GroupLimit, TopK, router_logits

RNG = np.random.default_rng(0)
LOGITS = jnp.float32(RNG.normal(size=(3, 5, 8)) * 2)
BIAS = jnp.float32(RNG.normal(size=8))


def scores_of(logits, score):
    logits = np.float64(logits)
    if score == "sigmoid":
        return 1 / (1 + np.exp(-logits))
    odds = np.exp(logits - logits.max())
    return odds / odds.sum()


def route(routing, logits, bias=None):
    """Returns experts and weights of one token, by sorting."""
    scores = scores_of(logits, routing.score)
    ranked = scores if bias is None else scores + np.float64(bias)
    allowed = range(len(scores))
    if routing.limit is not None:
        size = len(scores) // routing.limit.groups
        groups = [range(i, i + size) for i in range(0, len(scores), size)]
        best = routing.limit.best
        value = lambda group: sum(sorted(ranked[e] for e in group)[-best:])  # noqa: E731
        groups = sorted(groups, key=value, reverse=True)[: routing.limit.kept]
        allowed = [expert for group in groups for expert in group]
    experts = sorted(allowed, key=lambda e: -ranked[e])[: routing.k]
    weights = scores[experts]
    if routing.renormalise:
        weights = weights / weights.sum()
    return experts, weights * routing.scale


ROUTINGS = {
    "switch": TopK(1),
    "llama 4": TopK(1, score="sigmoid"),
    "mixtral": TopK(2, renormalise=True),
    "deepseek v2": TopK(3, scale=16.0, limit=GroupLimit(4, 2, best=1)),
    "deepseek v3": TopK(
        3, "sigmoid", renormalise=True, scale=2.5, limit=GroupLimit(4, 2, best=2)
    ),
    "all": TopK(8),
}


@pytest.mark.parametrize("bias", [None, BIAS], ids=["no bias", "bias"])
@pytest.mark.parametrize("name", ROUTINGS)
def test_follows_the_definition(name, bias):
    routing = ROUTINGS[name]
    choice = jax.jit(routing)(LOGITS, bias)
    assert choice.experts.dtype == jnp.int32 and choice.scores.shape == LOGITS.shape
    for place in np.ndindex(LOGITS.shape[:-1]):
        experts, weights = route(routing, LOGITS[place], bias)
        np.testing.assert_array_equal(choice.experts[place], experts)
        np.testing.assert_allclose(choice.weights[place], weights, rtol=3e-6)
        scores = scores_of(LOGITS[place], routing.score)
        np.testing.assert_allclose(choice.scores[place], scores, rtol=3e-6)


def test_a_renormalised_softmax_is_the_softmax_of_the_chosen_logits():
    choice = TopK(3, renormalise=True)(LOGITS)
    chosen = np.take_along_axis(LOGITS, np.asarray(choice.experts), -1)
    np.testing.assert_allclose(choice.weights, jax.nn.softmax(chosen), rtol=2e-6)


def test_a_bias_changes_who_is_chosen_and_no_weight():
    routing = TopK(2, "sigmoid")
    plain, biased = routing(LOGITS), routing(LOGITS, 10 * jnp.eye(8)[5])
    assert np.all(biased.experts[..., 0] == 5) and not np.all(
        plain.experts[..., 0] == 5
    )
    expected = np.take_along_axis(
        np.asarray(plain.scores), np.asarray(biased.experts), -1
    )
    np.testing.assert_array_equal(biased.weights, expected)


def test_experts_below_zero_of_a_kept_group_beat_all_of_the_others():
    """Masking with 0, as some code does, would let the others in."""
    logits = jnp.asarray([[3.0, 3.0, -9.0, -9.0]])
    bias = jnp.asarray([-5.0, -2.0, -4.0, -4.0])
    routing = TopK(2, "sigmoid", limit=GroupLimit(2, 1, best=2))
    np.testing.assert_array_equal(routing(logits, bias).experts, [[1, 0]])


def test_scores_that_all_vanish_give_no_nan():
    choice = TopK(2, "sigmoid", renormalise=True)(jnp.full((1, 4), -200.0))
    np.testing.assert_array_equal(choice.weights, [[0.0, 0.0]])


def test_gradients_reach_logits_through_the_weights_and_never_the_bias():
    routing = ROUTINGS["deepseek v3"]
    slope = jnp.asarray([1.0, 2.0, 3.0])

    def objective(logits, bias):
        return jnp.sum(routing(logits, bias).weights * slope)

    d_logits, d_bias = jax.grad(objective, (0, 1))(LOGITS[0], BIAS)
    assert not np.any(d_bias) and np.all(np.isfinite(d_logits))
    token, step = np.float64(LOGITS[0, 0]), 1e-5
    for expert in range(8):
        ends = []
        for sign in (1, -1):
            moved = token + sign * step * np.eye(8)[expert]
            ends.append(route(routing, moved, BIAS)[1] @ np.float64(slope))
        slope_here = (ends[0] - ends[1]) / (2 * step)
        np.testing.assert_allclose(d_logits[0, expert], slope_here, atol=2e-5)


def test_logits_are_float32_sums_of_what_bfloat16_holds():
    x = jnp.asarray(RNG.normal(size=(2, 7, 300)), jnp.bfloat16)
    kernel, bias = jnp.float32(RNG.normal(size=(300, 8))), BIAS
    logits = router_logits(x, kernel, bias)
    assert logits.dtype == jnp.float32
    expected = np.float64(x.astype(jnp.float32)) @ np.float64(kernel) + np.float64(bias)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=3e-5)


@pytest.mark.parametrize(
    ("node", "problem"),
    [
        (TopK(0), "TopK k (0) must be at least 1."),
        (GroupLimit(2, 3, 1), "GroupLimit kept (3) must be from 1 to groups (2)."),
        (GroupLimit(2, 0, 1), "GroupLimit kept (0) must be from 1 to groups (2)."),
        (GroupLimit(2, 1, 0), "GroupLimit best (0) must be at least 1."),
    ],
)
def test_refuses_what_chooses_nothing(node, problem):
    assert list(type(node).check_config(node)) == [problem]
