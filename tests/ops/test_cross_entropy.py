"""Cross-entropy and z-loss against their formulas in float64, with gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxfdl.ops.cross_entropy import CrossEntropy
from maxfdl.ops.dot import Dot
from maxfdl.ops.unembedding import Unembedding
from tests.goldens import algorithm

ROWS, TOKENS, WIDTH, VOCAB = 2, 7, 6, 11


def whole_kernel(kernel):
    axes = ("embed", "vocab")
    return Unembedding(weights=kernel, axes=axes, dtype="float32", dot=Dot())


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    return {
        "hidden": rng.normal(size=(ROWS, TOKENS, WIDTH)),
        "kernel": rng.normal(size=(WIDTH, VOCAB)),
        "targets": rng.integers(0, VOCAB, (ROWS, TOKENS)),
        "weights": rng.integers(0, 3, (ROWS, TOKENS)) / 2,
    }


def terms(problem, loss):
    """Returns the loss's terms as a function of hidden vectors and kernel."""

    def run(hidden, kernel):
        return loss(
            hidden,
            whole_kernel(kernel),
            jnp.int32(problem["targets"]),
            jnp.float32(problem["weights"]),
        )

    return run, (jnp.float32(problem["hidden"]), jnp.float32(problem["kernel"]))


def numpy_terms(problem, z_loss):
    logits = problem["hidden"] @ problem["kernel"]
    normaliser = np.log(np.sum(np.exp(logits), axis=-1))
    picked = np.take_along_axis(logits, problem["targets"][..., None], -1)[..., 0]
    return {
        "cross_entropy": np.sum(problem["weights"] * (normaliser - picked)),
        "z_loss": z_loss * np.sum(problem["weights"] * normaliser**2),
    }


def numpy_gradients(problem, z_loss):
    """By hand: d logsumexp = softmax, d target logit = one-hot."""
    logits = problem["hidden"] @ problem["kernel"]
    odds = np.exp(logits)
    total = np.sum(odds, axis=-1, keepdims=True)
    softmax, weights = odds / total, problem["weights"][..., None]
    one_hot = np.eye(VOCAB)[problem["targets"]]
    d_logits = softmax - one_hot + 2 * z_loss * np.log(total) * softmax
    d_logits = weights * d_logits
    return (
        d_logits @ problem["kernel"].T,
        np.einsum("btd,btv->dv", problem["hidden"], d_logits),
    )


@pytest.mark.parametrize("z_loss", [1e-4, 0.3])
def test_both_terms_are_weighted_sums_over_tokens(problem, z_loss):
    run, inputs = terms(problem, CrossEntropy(z_loss=z_loss))
    ours, expected = run(*inputs), numpy_terms(problem, z_loss)
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(ours[name], value, rtol=2e-6)


def test_without_z_loss_there_is_one_term(problem):
    run, inputs = terms(problem, CrossEntropy())
    assert run(*inputs).keys() == {"cross_entropy"}


@pytest.mark.parametrize("z_loss", [0.0, 0.3])
def test_gradients_are_those_worked_out_by_hand(problem, z_loss):
    run, inputs = terms(problem, CrossEntropy(z_loss=z_loss))
    grads = jax.grad(lambda *x: sum(run(*x).values()), argnums=(0, 1))(*inputs)
    for ours, expected in zip(grads, numpy_gradients(problem, z_loss), strict=True):
        np.testing.assert_allclose(ours, expected, atol=5e-6)


@pytest.mark.parametrize("z_loss", [0.0, 0.3])
def test_gradients_are_slopes(problem, z_loss):
    """The formula by hand again, against finite differences in float64."""
    step, direction = 1e-6, np.random.default_rng(1).normal(size=(WIDTH, VOCAB))

    def total(shift):
        moved = problem | {"kernel": problem["kernel"] + shift * direction}
        return sum(numpy_terms(moved, z_loss).values())

    slope = (total(step) - total(-step)) / (2 * step)
    along = np.sum(numpy_gradients(problem, z_loss)[1] * direction)
    assert along == pytest.approx(slope, rel=1e-7)


def test_bfloat16_hidden_vectors_give_a_float32_loss(problem):
    run, (hidden, kernel) = terms(problem, CrossEntropy())
    loss = run(hidden.astype(jnp.bfloat16), kernel)["cross_entropy"]
    assert loss.dtype == jnp.float32
    expected = numpy_terms(problem, 0.0)["cross_entropy"]
    assert float(loss) == pytest.approx(expected, rel=0.01)


def test_logits_of_thousands_do_not_overflow(problem):
    run, (hidden, kernel) = terms(problem, CrossEntropy(z_loss=1e-4))
    grads = jax.grad(lambda *x: sum(run(*x).values()), argnums=(0, 1))
    values = run(1e4 * hidden, kernel), grads(1e4 * hidden, kernel)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(values))


@pytest.mark.parametrize("kind", ["mean", "sum", "z_loss_1e-3"])
def test_agrees_with_torch(kind):
    golden = algorithm("cross_entropy")
    labels = jnp.asarray(golden["in.labels"])
    weights = jnp.float32(labels >= 0)
    scale = 1.0 if kind == "sum" else 1.0 / jnp.sum(weights)
    loss = CrossEntropy(z_loss=1e-3 if "z_loss" in kind else 0.0)

    def objective(logits):
        identity = whole_kernel(jnp.eye(logits.shape[-1]))
        return scale * sum(loss(logits, identity, labels, weights).values())

    value, grad = jax.value_and_grad(objective)(jnp.asarray(golden["in.logits"]))
    value_noise, grad_noise = golden.noise[kind]
    np.testing.assert_allclose(
        value, golden[f"out.loss.{kind}"], rtol=0, atol=max(20 * value_noise, 2e-5)
    )
    np.testing.assert_allclose(
        grad, golden[f"out.grad.{kind}"], rtol=0, atol=max(20 * grad_noise, 2e-5)
    )


def test_refuses_a_negative_z_loss():
    (problem,) = CrossEntropy.check_config(CrossEntropy(z_loss=-1.0))
    assert problem == "CrossEntropy z_loss (-1.0) must not be negative."
