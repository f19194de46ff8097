"""Syncs by themselves: what they take of replicas that are lost."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxfdl.layers.parameter import Parameter
from maxfdl.ops.initializers import Constant
from maxfdl.ops.state import StateDeclaration
from maxfdl.optim.transforms import Sgd
from maxfdl.sharding.mesh import MeshShape
from maxfdl.sharding.rules import AxisRules
from maxfdl.sharding.sharding import Sharding
from maxfdl.train.fragments import Streaming
from maxfdl.train.outer import Outer
from maxfdl.train.placement import Placement
from maxfdl.train.sync import Syncs

R = 3
PARAMETERS = {"kernel": Parameter((4, 2), ("embed", "mlp"), Constant(), "kernel", 1)}
STATES = {
    "bias": StateDeclaration((2,), ("norm",)),
    "most": StateDeclaration((2,), ("norm",), merge="max"),
    "seen": StateDeclaration((2,), ("norm",), merge="sum"),
}


def syncs(**fields) -> Syncs:
    mesh = MeshShape(data=1, fsdp=1, tensor=1).build(jax.devices()[:1])
    return Syncs(
        num_replicas=R,
        period=2,
        streaming=Streaming(**fields),
        outer=Outer(Sgd(momentum=0.0), learning_rate=1.0),
        exchange=None,
        by_tokens=False,
        parameters=PARAMETERS,
        states=STATES,
        placement=Placement(),
        sharding=Sharding(mesh, AxisRules()),
    )


def parts_of(made: Syncs, is_lost: bool = True):
    """Returns random parts, in which the last replica may have lost all it had."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    outer = {"kernel": draw(4, 2)}
    own = {
        "params": {"kernel": draw(R, 4, 2)},
        "masters": {},
        "param_norm": np.ones(R, np.float32),
        "state": {name: draw(R, 2) for name in STATES},
    }
    for x in (own["params"]["kernel"], own["param_norm"], *own["state"].values()):
        x[-1] = np.nan if is_lost else x[-1]
    states = made.init(outer)
    syncs = jax.tree.map(
        lambda x: np.stack([x] * R), made.nothing_learnt(outer, states)
    )
    return {
        "params": outer,
        "masters": {},
        "state": {name: draw(2) for name in STATES},
        "outer": states,
        "replicas": own | syncs | {"tokens": syncs["tokens"] + 5.0},
    }


@pytest.mark.parametrize("mix", [0.0, 0.25])
def test_nothing_is_taken_of_a_replica_that_is_lost_and_it_goes_on_from_the_others(mix):
    made = syncs(mix=mix)
    before = parts_of(made)
    step = jnp.int32(2)
    sync = jax.jit(lambda parts: made.taken_over(made.averaged(parts, step, 0), 0))
    after = jax.device_get(sync(before))
    own = before["replicas"]["params"]["kernel"]
    mean = own[:2].mean(axis=0)
    np.testing.assert_allclose(after["params"]["kernel"], mean, rtol=1e-6)
    found = after["replicas"]["params"]["kernel"]
    np.testing.assert_allclose(found[:2], mix * own[:2] + (1 - mix) * mean, rtol=1e-5)
    np.testing.assert_allclose(found[2], mean, rtol=1e-6)
    assert np.all(np.isfinite(after["replicas"]["param_norm"]))

    old, new = before["state"], before["replicas"]["state"]
    expected = {
        "bias": (new["bias"][0] + new["bias"][1] + old["bias"]) / 3,
        "most": np.maximum(np.maximum(*new["most"][:2]), old["most"]),
        "seen": new["seen"][0] + new["seen"][1] - old["seen"],
    }
    for name, value in expected.items():
        np.testing.assert_allclose(after["state"][name], value, rtol=1e-5)
        np.testing.assert_allclose(after["replicas"]["state"][name][2], value, 1e-5)


def momentum_of(state):
    (trace,) = (x for x in jax.tree.leaves(state) if x.shape[-2:] == (4, 2))
    return trace


def test_eager_updates_move_a_replica_by_its_own_delta_at_once_and_others_one_later():
    """Against the algorithm in NumPy: three syncs, with Nesterov momentum."""
    nesterov = Outer(Sgd(momentum=0.9, nesterov=True), learning_rate=0.7)
    made = dataclasses.replace(syncs(overlap=1, eager=True), outer=nesterov)
    parts = parts_of(made, is_lost=False)
    early = jax.jit(lambda parts, step: made.moved_early(parts, step, 0))
    sync = jax.jit(lambda parts, step: made.averaged(parts, step, 0))

    def moved(outer, direction, m):
        m = 0.9 * m + direction
        return outer - 0.7 * (direction + 0.9 * m), m

    whole = parts["params"]["kernel"]
    copies = np.stack([whole] * R)
    m_whole, m_copies, others = (np.zeros_like(x) for x in (whole, copies, copies))
    rng = np.random.default_rng(1)
    for number in range(1, 4):
        own = copies + rng.normal(size=copies.shape).astype(np.float32)
        parts["replicas"]["params"] = {"kernel": own}
        parts["replicas"]["tokens"] = np.ones((R, 1), np.float32)
        step = jnp.int32(2 * number)
        after, heard = early(parts, step), sync(parts, step)
        known = {"others": heard["replicas"]["eager"]["others"]}
        eager = after["replicas"]["eager"] | known
        parts = jax.device_get(
            {**heard, "replicas": {**after["replicas"], "eager": eager}}
        )
        deltas = copies - own
        copies, m_copies = moved(copies, deltas / R + others, m_copies)
        whole, m_whole = moved(whole, deltas.mean(axis=0), m_whole)
        others = deltas.mean(axis=0) - deltas / R

        close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
        close(parts["replicas"]["params"]["kernel"], copies)
        close(eager["outer"]["kernel"], copies)
        close(eager["others"]["kernel"], others)
        close(parts["params"]["kernel"], whole)
        close(momentum_of(parts["replicas"]["eager"]["optimizer"]), m_copies)
        close(momentum_of(parts["outer"]["optimizer"]), m_whole)


def test_an_eager_replica_that_is_lost_moves_with_the_others():
    made = syncs(overlap=1, eager=True)
    parts = parts_of(made)
    parts["replicas"]["eager"]["others"]["kernel"] += 1.0
    after = jax.jit(lambda parts: made.moved_early(parts, jnp.int32(2), 0))(parts)
    heard = jax.jit(lambda parts: made.averaged(parts, jnp.int32(2), 0))(parts)
    outer = parts["params"]["kernel"]
    lost = after["replicas"]["params"]["kernel"][2]
    np.testing.assert_allclose(lost, outer - 1.0, rtol=1e-6)
    deltas = outer - parts["replicas"]["params"]["kernel"]
    others = heard["replicas"]["eager"]["others"]["kernel"]
    np.testing.assert_allclose(others[2], deltas[:2].mean(axis=0), rtol=1e-5)
