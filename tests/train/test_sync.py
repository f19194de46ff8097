"""Syncs by themselves: what they take of replicas that are lost."""

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


def parts_of(made: Syncs):
    """Returns random parts, in which the last replica has lost all it had."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    outer = {"kernel": draw(4, 2)}
    own = {
        "params": {"kernel": draw(R, 4, 2)},
        "masters": {},
        "param_norm": np.ones(R, np.float32),
        "state": {name: draw(R, 2) for name in STATES},
        "errors": {},
        "tokens": np.full((R, 1), 5.0, np.float32),
        "drift": np.zeros((R, 1), np.float32),
    }
    for x in (own["params"]["kernel"], own["param_norm"], *own["state"].values()):
        x[-1] = np.nan
    return {
        "params": outer,
        "masters": {},
        "state": {name: draw(2) for name in STATES},
        "outer": made.init(outer),
        "replicas": own,
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
