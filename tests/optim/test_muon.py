"""Muon against torch, and what it takes for a matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maxfdl.layers.parameter import Parameter
from maxfdl.ops.initializers import Constant
from maxfdl.optim.adafactor import Adafactor
from maxfdl.optim.matrices import is_matrix, matrix_shape
from maxfdl.optim.muon import (
    DEEPSEEK_V4,
    DION,
    STANDARD,
    CorrectedMuon,
    Muon,
    orthogonalised,
)
from maxfdl.optim.optimizer import Optimizer
from maxfdl.optim.schedules import WarmupConstant
from maxfdl.optim.transforms import Adam, WeightDecay
from tests import goldens

GOLDEN = goldens.algorithm("optimizers")
MATRICES = ("w0", "w1", "w2")


def kernel(*shape, contracted=1, **fields):
    axes = fields.pop("axes", ("embed",) * len(shape))
    return Parameter(shape, axes, Constant(), "kernel", contracted, **fields)


@pytest.mark.parametrize(
    ("run", "fields"),
    [
        ("muon_f32", {}),
        ("muon_f32_plain", {"momentum": 0.9, "nesterov": False}),
        ("muon_f32_match_rms", {"scale": "rms"}),
    ],
)
def test_five_steps_agree_with_torch(run, fields):
    settings = GOLDEN.info["params"][run]["all_settings"]
    assert fields.get("momentum", 0.95) == settings["momentum"]
    # torch keeps [out, in].
    params = {name: jnp.asarray(GOLDEN[f"in.init.{name}"].T) for name in MATRICES}
    optimizer = Optimizer(
        clip=None,
        rule=Muon(rest=Adam(), **fields),
        weight_decay=WeightDecay(rate=settings["weight_decay"]),
        schedule=WarmupConstant(peak=settings["lr"]),
        parameters={name: kernel(*x.shape) for name, x in params.items()},
        steps=5,
    )
    state = optimizer.init(params)
    for step in range(5):
        grads = {n: jnp.asarray(GOLDEN[f"in.grads.{n}"][step].T) for n in MATRICES}
        params, state = optimizer.update(grads, state, params, jnp.int32(step))
        for name in MATRICES:
            expected = GOLDEN[f"out.{run}.{name}"][step].T
            atol = GOLDEN.tolerance(run)
            np.testing.assert_allclose(params[name], expected, rtol=0, atol=atol)


# The ranges that shared/facts/methods.md, section 3, measured.
@pytest.mark.parametrize(
    ("coefficients", "low", "high"),
    [(STANDARD, 0.67, 1.15), (DION, 0.97, 1.04), (DEEPSEEK_V4, 0.9999, 1.001)],
)
@pytest.mark.parametrize("shape", [(24, 24), (16, 40), (40, 16)])
def test_singular_values_end_near_one(coefficients, low, high, shape):
    # Singular values of the start from 0.1 to 1 of the largest.
    rng = np.random.default_rng(0)
    u, _ = np.linalg.qr(rng.normal(size=(shape[0], min(shape))))
    v, _ = np.linalg.qr(rng.normal(size=(shape[1], min(shape))))
    x = (u * np.linspace(0.1, 1.0, min(shape))) @ v.T
    out = orthogonalised(jnp.float32(x)[None], coefficients)[0]
    values = np.linalg.svd(np.float64(out), compute_uv=False)
    assert low < values.min() and values.max() < high


def test_stacked_layers_and_experts_are_taken_one_by_one():
    rng = np.random.default_rng(0)
    grads = jnp.float32(rng.normal(size=(3, 4, 6, 2, 5)))  # layers, experts, D, H, K
    declared = kernel(4, 6, 2, 5, batched=1, repeats=3)
    muon = Muon(rest=Adam())

    def direction(parameter, grads):
        transform = muon.transform({"w": parameter})
        state = transform.init({"w": jnp.zeros_like(grads)})
        return jax.jit(transform.update)({"w": grads}, state)[0]["w"]

    whole = direction(declared, grads)
    alone = [
        [direction(kernel(6, 2, 5), grads[layer, expert]) for expert in range(4)]
        for layer in range(3)
    ]
    np.testing.assert_array_equal(whole, np.array(alone))


# Sizes at which sums over one matrix are not the same in a batch.
@pytest.mark.parametrize(
    "shape", [(24, 16, 40), (7, 5, 48, 48), (32, 100, 20), (4, 256, 256)]
)
def test_a_matrix_comes_out_the_same_however_many_there_are(shape):
    x = jnp.float32(np.random.default_rng(0).normal(size=shape))
    orthogonal = jax.jit(lambda x: orthogonalised(x, STANDARD))
    whole = orthogonal(x)
    for index in np.ndindex(shape[:-2]):
        np.testing.assert_array_equal(whole[index], orthogonal(x[index]))


def test_another_rule_sees_only_the_parameters_that_are_its_own():
    parameters = {
        "matrix": kernel(4, 6),
        "table": Parameter((8, 4), ("vocab", "embed"), Constant(), "embedding"),
    }
    params = {"matrix": jnp.ones((4, 6)), "table": jnp.ones((8, 4))}
    one, other = Muon(rest=Adafactor()), Adafactor()
    directions = {}
    for rule in (one, other):
        transform = rule.transform(parameters)
        state = transform.init(params)
        directions[rule], _ = transform.update(params, state, params)
    np.testing.assert_array_equal(directions[one]["table"], directions[other]["table"])


def test_a_kernel_is_a_matrix_from_its_inputs_to_its_outputs():
    assert matrix_shape(kernel(6, 2, 5)) == (6, 10)
    assert matrix_shape(kernel(2, 5, 6, contracted=2)) == (10, 6)
    assert matrix_shape(kernel(4, 6, 8, batched=1)) == (6, 8)


def test_embeddings_heads_vectors_and_convolutions_are_not():
    table = Parameter((8, 4), ("vocab", "embed"), Constant(), "embedding")
    scale = Parameter((4,), ("norm",), Constant(), "scale")
    head = kernel(4, 8, axes=("embed", "vocab"))
    taps = kernel(4, 2, 8, axes=("taps", "heads", "head_dim"))
    to_one = kernel(4)
    assert not any(map(is_matrix, (table, scale, head, taps, to_one)))
    assert is_matrix(kernel(4, 8))


@pytest.mark.parametrize("nesterov", [True, False])
def test_the_corrected_average_is_that_of_optax(nesterov):
    parameters = {"kernel": kernel(6, 4)}
    rng = np.random.default_rng(0)
    ours = CorrectedMuon(rest=Adam(), nesterov=nesterov).transform(parameters)
    dims = {"kernel": optax.contrib.MuonDimensionNumbers()}
    theirs = optax.contrib.scale_by_muon(
        nesterov=nesterov, weight_dimension_numbers=dims
    )
    params = {"kernel": jnp.zeros((6, 4))}
    states = ours.init(params), theirs.init(params)
    for _ in range(3):
        grads = {"kernel": jnp.asarray(rng.normal(size=(6, 4)), jnp.float32)}
        directions, our_state = ours.update(grads, states[0], params)
        expected, their_state = theirs.update(grads, states[1], params)
        states = our_state, their_state
        scale = max(1.0, 4 / 6) ** 0.5
        np.testing.assert_allclose(
            directions["kernel"], scale * expected["kernel"], atol=2e-6
        )


def test_matrices_may_decay_by_a_share_of_their_own():
    parameters = {"kernel": kernel(6, 4), "head": kernel(4, 8, axes=("embed", "vocab"))}
    decay = WeightDecay(rate=0.1, matrix=0.5)
    assert decay.of(parameters) == {"kernel": 0.5, "head": 1.0}
    assert WeightDecay(rate=0.1).of(parameters) == {"kernel": 1.0, "head": 1.0}
