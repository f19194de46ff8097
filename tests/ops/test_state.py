"""State of layers declares itself, and is the same however a batch is cut."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from maxfdl.layers.layer import Layer, Maker, with_parts
from maxfdl.layers.linen.module import Module as LinenModule
from maxfdl.layers.nnx.module import Module as NnxModule
from maxfdl.ops.state import Merge, StateDeclaration, States
from maxfdl.sharding.mesh import MeshShape
from maxfdl.sharding.rules import AxisRules
from maxfdl.sharding.sharding import Sharding
from maxfdl.train.gradients import Accumulate, Parts, WholeBatch
from maxfdl.train.replicas import Shares, on_replicas
from tests.layers.families import FAMILIES, FEATURES, Case, on_vectors, stack

KINDS = ("same", "max", "sum", "mean", "last")
DECLARED = {
    kind: StateDeclaration((2,), ("norm",), initial=7.0, merge=kind) for kind in KINDS
} | {"count": StateDeclaration((), (), dtype="int32", initial=3.0, merge="sum")}


def after(state, x_B2):
    """Returns the state after these rows, as a layer would leave it."""
    return {
        "same": state["same"],
        "max": jnp.maximum(state["max"], jnp.max(x_B2, axis=0)),
        "sum": state["sum"] + jnp.sum(x_B2, axis=0),
        "mean": 0.5 * state["mean"] + 0.5 * jnp.mean(x_B2, axis=0),
        "last": x_B2[-1],
        "count": state["count"] + x_B2.shape[0],
    }


def objective(params, state, rows):
    return jnp.sum(rows["x"] * params), Parts({}, after(state, rows["x"]), {})


@pytest.mark.parametrize("axes", [dict(data=1), dict(data=8), dict(data=2, fsdp=4)])
@pytest.mark.parametrize("way", [WholeBatch(), Accumulate(4)])
def test_a_state_is_the_same_however_the_batch_is_cut(way, axes):
    devices, shape = math.prod(axes.values()), MeshShape(**{"fsdp": 1} | axes)
    sharding = Sharding(shape.build(jax.devices()[:devices]), AxisRules())
    states = States(DECLARED)

    def gradients(sharding, params, state, batch):
        return way(objective, params, state, batch, sharding, states)

    x = np.random.default_rng(0).integers(0, 20, (64, 2)).astype(np.float32)
    before = {name: declared.first() for name, declared in DECLARED.items()}
    whole = Shares(PartitionSpec(), PartitionSpec(), PartitionSpec())
    run = on_replicas(gradients, sharding, whole, states)
    _, parts = jax.jit(run)(jnp.ones(2), before, {"x": x})
    expected = after(before, x)
    for name, value in parts.layer_state.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-6, err_msg=name)
        assert value.dtype == DECLARED[name].dtype


def test_what_the_backward_pass_leaves_is_written_and_so_not_the_same():
    with pytest.raises(ValueError, match="backward pass leaves is declared with merge"):
        StateDeclaration((), (), backward=True)


class Switch(Layer):
    """Multiplies by a number, its state, which grows by 1 before."""

    merge: Merge
    features: int

    def make(self, maker: Maker):
        maker.state("seen", StateDeclaration((), (), initial=7.0, merge=self.merge))

    @with_parts
    def __call__(self, parts, x, context):
        parts.seen.write(parts.seen.read() + 1.0)
        return x * parts.seen.read()


class NnxSwitch(Switch, NnxModule):
    pass


class LinenSwitch(Switch, LinenModule, kw_only=True):
    pass


SWITCHES = {"nnx": NnxSwitch, "linen": LinenSwitch}


def model_of(family, merge):
    layer = functools.partial(SWITCHES[family], merge=merge)
    stacked = functools.partial(stack, FAMILIES[family], layer, repeats=3)
    case = Case(lambda _: stacked(), {"features": FEATURES}, on_vectors)
    return case.model(family)


@pytest.mark.parametrize("family", SWITCHES)
def test_a_state_starts_as_declared_and_goes_on_from_call_to_call(family):
    model = model_of(family, "last")
    declared = StateDeclaration((), (), initial=7.0, merge="last", repeats=3)
    assert model.state() == {"layer": {"layers_0": {"seen": declared}}}
    variables = model.init(jax.random.key(0))
    tokens = jnp.zeros((2, 4), jnp.int32)
    for seen in (7.0, 8.0, 9.0):
        value = variables["state"]["layer"]["layers_0"]["seen"]
        np.testing.assert_array_equal(value, np.full(3, seen, np.float32))
        variables["state"] = model.apply(variables, tokens).state


@pytest.mark.parametrize("family", SWITCHES)
def test_a_layer_may_not_write_state_that_it_declared_to_be_read_only(family):
    model = model_of(family, "same")
    with pytest.raises(ValueError, match="merge 'same', which layers only read"):
        model.apply(model.init(jax.random.key(0)), jnp.zeros((2, 4), jnp.int32))
