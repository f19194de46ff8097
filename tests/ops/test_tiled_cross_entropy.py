"""Tiles of tokens against all logits at once, in float64 and on a mesh."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from maxfdl.ops.cost import count_flops
from maxfdl.ops.cross_entropy import CrossEntropy
from maxfdl.ops.dot import Dot
from maxfdl.ops.tiled_cross_entropy import TiledCrossEntropy
from maxfdl.ops.unembedding import Unembedding
from maxfdl.sharding.mesh import MeshShape
from maxfdl.sharding.rules import AxisRules
from maxfdl.sharding.sharding import Sharding

ROWS, TOKENS, WIDTH, VOCAB = 8, 13, 16, 37  # 37 is divisible by nothing


def problem(dtype=jnp.float32, vocab=VOCAB, rows=ROWS, tokens=TOKENS):
    rng = np.random.default_rng(0)
    return {
        "hidden": jnp.asarray(rng.normal(size=(rows, tokens, WIDTH)), dtype),
        "weights": jnp.float32(rng.normal(size=(WIDTH, vocab))),
        "targets": jnp.int32(rng.integers(0, vocab, (rows, tokens))),
        "token_weights": jnp.float32(rng.integers(0, 3, (rows, tokens)) / 2),
    }


def value_and_gradients(loss, inputs, *, tied=False, **head):
    """Returns the sum of all terms, and its gradients of hidden vectors and weights."""
    dtype = str(inputs["hidden"].dtype)
    axes = ("vocab", "embed") if tied else ("embed", "vocab")

    def objective(hidden, weights):
        unembedding = Unembedding(
            weights=weights, axes=axes, dtype=dtype, dot=Dot(), **head
        )
        terms = loss(hidden, unembedding, inputs["targets"], inputs["token_weights"])
        return 0.3 * sum(terms.values())

    weights = inputs["weights"].T if tied else inputs["weights"]
    return jax.jit(jax.value_and_grad(objective, argnums=(0, 1)))(
        inputs["hidden"], weights
    )


def in_float64(inputs, z_loss, scale=1.0, soft_cap=None):
    """The formula, and its gradients by hand."""
    hidden, weights = (np.float64(inputs[name]) for name in ("hidden", "weights"))
    logits = scale * hidden @ weights
    if soft_cap is not None:
        logits = soft_cap * np.tanh(logits / soft_cap)
    odds = np.exp(logits)
    normaliser = np.log(odds.sum(-1, keepdims=True))
    softmax = odds / odds.sum(-1, keepdims=True)
    one_hot = np.arange(weights.shape[1]) == np.asarray(inputs["targets"])[..., None]
    each = normaliser[..., 0] - (logits * one_hot).sum(-1)
    each = each + z_loss * normaliser[..., 0] ** 2
    w = np.float64(inputs["token_weights"])
    d_logits = softmax * (1 + 2 * z_loss * normaliser) - one_hot
    d_logits = 0.3 * w[..., None] * d_logits * scale
    if soft_cap is not None:
        d_logits = d_logits * (1 - (logits / soft_cap) ** 2)
    d_weights = np.einsum("btd,btv->dv", hidden, d_logits)
    return 0.3 * np.sum(w * each), d_logits @ weights.T, d_weights


def on_mesh(**sizes):
    devices = jax.devices()[: math.prod(sizes.values())]
    return Sharding(MeshShape(**sizes).build(devices), AxisRules())


def placed(inputs, sharding):
    """Returns the arrays where a trainer would have them."""
    axes = {"weights": ("embed", "vocab")}
    return {
        name: jax.device_put(x, sharding.named(axes.get(name, ("batch", "sequence"))))
        for name, x in inputs.items()
    }


def relative(ours, theirs):
    ours, theirs = np.float64(ours), np.float64(theirs)
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


def assert_same(ours, theirs):
    close = functools.partial(np.testing.assert_allclose, rtol=2e-6, atol=2e-6)
    jax.tree.map(close, ours, theirs)


TILES = [
    TiledCrossEntropy(num_tiles=1),
    TiledCrossEntropy(num_tiles=4),
    TiledCrossEntropy(num_tiles=TOKENS, z_loss=0.1),
    TiledCrossEntropy(num_tiles=3 * TOKENS, z_loss=0.1),
    TiledCrossEntropy(tokens_per_tile=24 * 8),
    TiledCrossEntropy(tokens_per_tile=10_000),
]
HEADS = [{}, {"tied": True}, {"scale": 0.25}, {"soft_cap": 2.0, "scale": 3.0}]


@pytest.mark.parametrize("head", HEADS, ids=str)
@pytest.mark.parametrize("loss", TILES, ids=str)
def test_tiles_are_as_good_as_the_whole(loss, head):
    inputs = problem(rows=8 * ROWS)  # in which a token's luck with rounding is small
    value, (d_hidden, d_weights) = value_and_gradients(loss, inputs, **head)
    numbers = {k: v for k, v in head.items() if k != "tied"}
    expected = in_float64(inputs, loss.z_loss, **numbers)
    np.testing.assert_allclose(value, expected[0], rtol=1e-6)
    # The floor of float32 is where untiled gradients are.
    whole = CrossEntropy(z_loss=loss.z_loss)
    _, untiled = value_and_gradients(whole, inputs, **numbers)
    ours = d_hidden, d_weights.T if "tied" in head else d_weights
    for tiled, floor, exact in zip(ours, untiled, expected[1:], strict=True):
        assert relative(tiled, exact) < max(1e-6, 1.1 * relative(floor, exact))


@pytest.mark.parametrize("fsdp", [1, 8])
def test_bfloat16_sums_in_float32(fsdp):
    inputs = problem(jnp.bfloat16, vocab=32_001)
    inputs["hidden"] *= 0.1  # a fresh model: no token is likely
    inputs["weights"] = jnp.float32(inputs["weights"].astype(jnp.bfloat16))
    loss = TiledCrossEntropy(num_tiles=4)
    sharding = on_mesh(fsdp=fsdp)
    value, (d_hidden, d_weights) = value_and_gradients(
        loss, placed(inputs, sharding), sharding=sharding
    )
    expected = in_float64(inputs, 0.0)
    np.testing.assert_allclose(value, expected[0], rtol=1e-6)
    assert d_weights.dtype == jnp.float32
    assert relative(d_weights, expected[2]) < 2e-4
    # These are bfloat16 themselves, and rounded twice: 2^-9 each.
    assert d_hidden.dtype == jnp.bfloat16
    assert relative(d_hidden, expected[1]) < 2 * 2**-9


@pytest.mark.parametrize(
    "mesh", [(8, 1, 1, 1), (1, 8, 1, 1), (2, 2, 1, 2), (1, 2, 2, 2)], ids=str
)
@pytest.mark.parametrize("tied", [False, True], ids=["own", "tied"])
def test_a_mesh_changes_nothing(mesh, tied):
    loss = TiledCrossEntropy(num_tiles=4, z_loss=0.1)
    data, fsdp, context, tensor = mesh
    sharding = on_mesh(data=data, fsdp=fsdp, context=context, tensor=tensor)
    inputs = problem(vocab=38, tokens=TOKENS + 1)
    alone = value_and_gradients(loss, inputs, tied=tied)
    inputs = placed(inputs, sharding)
    spread = value_and_gradients(loss, inputs, tied=tied, sharding=sharding)
    assert_same(spread, alone)


@pytest.mark.parametrize("tied", [False, True], ids=["own", "tied"])
def test_replicas_that_run_apart_change_nothing(tied):
    loss = TiledCrossEntropy(num_tiles=4, z_loss=0.1)
    sharding = on_mesh(data=2, fsdp=2, tensor=2)
    inputs = problem(vocab=38)
    alone = value_and_gradients(loss, inputs, tied=tied)

    def replica(inputs):
        value, (d_hidden, d_weights) = value_and_gradients(
            loss, inputs, tied=tied, sharding=sharding.within(("data",))
        )
        value, d_weights = jax.lax.psum((value, d_weights), "data")
        return value, (d_hidden, d_weights)

    rows, whole = PartitionSpec("data"), PartitionSpec()
    apart = jax.shard_map(
        replica,
        mesh=sharding.mesh,
        in_specs=({name: whole if name == "weights" else rows for name in inputs},),
        out_specs=(whole, (rows, whole)),
        axis_names={"data"},
        check_vma=False,
    )
    assert_same(jax.jit(apart)(placed(inputs, sharding)), alone)


def test_the_floor_of_flops_is_reached():
    inputs = problem()
    shape = ROWS * TOKENS * WIDTH * VOCAB
    loss = TiledCrossEntropy(num_tiles=TOKENS)

    def objective(hidden, weights):
        axes = ("embed", "vocab")
        unembedding = Unembedding(
            weights=weights, axes=axes, dtype="float32", dot=Dot()
        )
        terms = loss(hidden, unembedding, inputs["targets"], inputs["token_weights"])
        return terms["cross_entropy"]

    arrays = inputs["hidden"], inputs["weights"]
    assert count_flops(objective, *arrays) == 2 * shape
    assert count_flops(jax.grad(objective, argnums=(0, 1)), *arrays) == 6 * shape
