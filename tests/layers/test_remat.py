"""What the backward pass of a stack keeps, and where: by names of tensors.

Tensors are named in both families at the same places. However many are kept, and in
whichever memory, outputs and gradients are the same.
"""

import functools
import re
from collections import Counter
from typing import get_args

import fiddle as fdl
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from maxfdl import graph
from maxfdl.errors import ConfigError
from maxfdl.layers.execution import Name, SaveNamed, Scan, Unroll
from maxfdl.layers.linen.stack import Stack
from tests.layers import families
from tests.layers.families import (
    CASES,
    FAMILIES,
    FEATURES,
    Case,
    assert_same_bits,
    on_vectors,
    packed_tokens,
    value_and_gradients,
)

KEY = jax.random.key(5)
REPEATS = 2
NAMES = get_args(Name)
EXECUTIONS = {"scan": Scan(), "unroll": Unroll()}
POLICIES = {
    "one saved": SaveNamed(save=("attention_out",)),
    "all saved": SaveNamed(save=NAMES),
    "input offloaded": SaveNamed(offload=("layer_in",)),
    "all offloaded": SaveNamed(offload=NAMES),
    "some of each": SaveNamed(save=NAMES[1::2], offload=NAMES[::2]),
}
SLOW = POLICIES.keys() - {"some of each"}


def layer_of_experts(family):
    """A layer in which every name occurs."""
    return functools.partial(families.decoder_layer(family), mlp=families.moe(family))


def model(family, remat, execution, layer=families.decoder_layer, repeats=REPEATS):
    """A stack of `layer`."""
    factory = functools.partial(
        families.stack, repeats=repeats, execution=execution, remat=remat
    )
    case = Case(lambda f: factory(f, layer(f)), {"features": FEATURES}, on_vectors)
    return case.model(family)


def inner_jaxprs(value):
    """Yields the programs among the parameters of an equation."""
    for each in value if isinstance(value, (list, tuple)) else [value]:
        if hasattr(each, "jaxpr"):
            yield each.jaxpr
        elif hasattr(each, "eqns"):
            yield each


def named_tensors(jaxpr):
    """Returns name and shape of each named tensor, in the order of the program."""
    found = []
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "name":
            found.append((eqn.params["name"], eqn.outvars[0].aval.shape))
        for value in eqn.params.values():
            for inner in inner_jaxprs(value):
                found += named_tensors(inner)
    return found


def names_in(case, family):
    made = CASES[case].model(family)
    variables = jax.eval_shape(made.init, KEY)
    apply = lambda v: made.apply(v, **packed_tokens()).hidden  # noqa: E731
    return named_tensors(jax.make_jaxpr(apply)(variables).jaxpr)


def test_both_families_name_the_same_tensors_and_use_every_name():
    used = set()
    for case in CASES:
        ours, theirs = (names_in(case, family) for family in FAMILIES)
        assert ours == theirs, case
        used.update(name for name, _ in ours)
    assert used == set(NAMES)


@functools.cache
def reference(execution):
    """Returns variables, results and gradients where all intermediates are kept."""
    made = model("nnx", "none", EXECUTIONS[execution], layer_of_experts)
    variables = made.init(KEY)
    return variables, value_and_gradients(made, variables, **packed_tokens())


@pytest.mark.parametrize(
    "policy",
    [pytest.param(p, marks=[pytest.mark.slow] * (p in SLOW)) for p in POLICIES],
)
@pytest.mark.parametrize(
    "execution",
    [pytest.param(e, marks=[pytest.mark.slow] * (e != "scan")) for e in EXECUTIONS],
)
def test_gradients_are_the_same_whatever_is_kept(execution, policy):
    variables, expected = reference(execution)

    def run(family):
        remat = POLICIES[policy]
        made = model(family, remat, EXECUTIONS[execution], layer_of_experts)
        return value_and_gradients(made, variables, **packed_tokens())

    ours, theirs = run("nnx"), run("linen")
    assert_same_bits(ours, theirs)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, atol=5e-6), ours, expected
    )


def kept(capsys, remat, execution):
    """Returns how many arrays of each type and memory the backward pass is given."""
    made = model("nnx", remat, execution)
    variables = made.init(KEY)

    def objective(params):
        return made.apply({**variables, "params": params}, **packed_tokens()).hidden

    jax.ad_checkpoint.print_saved_residuals(objective, variables["params"])
    return Counter(line.split()[0] for line in capsys.readouterr().out.splitlines())


def stacked(types, execution):
    """Returns `types` as a loop keeps them, with a dim more, or one for each repeat."""
    if execution.in_loop:
        return {re.sub(r"\[", f"[{REPEATS},", name): n for name, n in types.items()}
    return {name: n * REPEATS for name, n in types.items()}


@pytest.mark.parametrize("execution", EXECUTIONS.values(), ids=EXECUTIONS)
def test_named_tensors_are_kept_on_the_device_beside_the_input(execution, capsys):
    full = kept(capsys, "full", execution)
    found = kept(capsys, SaveNamed(save=("query", "mlp_gate", "mlp_up")), execution)
    more = {"f32[2,12,4,8]": 1, "f32[2,12,24]": 2}
    assert found - full == Counter(stacked(more, execution))
    assert not full - found


@pytest.mark.parametrize("execution", EXECUTIONS.values(), ids=EXECUTIONS)
def test_an_offloaded_input_is_kept_on_the_host_and_not_on_the_device(
    execution, capsys
):
    full = kept(capsys, "full", execution)
    remat = SaveNamed(save=("attention_out",), offload=("layer_in", "query"))
    found = kept(capsys, remat, execution)
    more = {"f32<host>[2,12,16]": 1, "f32<host>[2,12,4,8]": 1, "f32[2,12,4,8]": 1}
    assert found - full == Counter(stacked(more, execution))
    assert full - found == Counter(stacked({"f32[2,12,16]": 1}, execution))


def test_a_name_is_given_once_and_at_least_one_is():
    def problem(**names):
        stack = fdl.Partial(
            Stack,
            layers=[fdl.Partial(families.linen.RMSNorm)],
            repeats=1,
            execution=fdl.Config(Scan),
            remat=fdl.Config(SaveNamed, **names),
        )
        with pytest.raises(ConfigError) as error:
            graph.validate(stack)
        return str(error.value).removeprefix("invalid config: ")

    assert problem() == (
        "remat: SaveNamed save and offload must name a tensor; 'full' keeps none."
    )
    assert problem(save=("key", "query"), offload=("query",)) == (
        "remat: SaveNamed save and offload must name 'query' once only."
    )
    assert problem(save=("querry",)).startswith("remat.save[0] = 'querry' is not")


@pytest.mark.slow
def test_on_a_tpu_offloading_moves_bytes_from_the_device_to_the_host(monkeypatch):
    """In a loop: layers one after the other are fetched as early as memory allows."""
    pytest.importorskip("libtpu")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    chips = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
    place = functools.partial(
        jax.ShapeDtypeStruct, sharding=SingleDeviceSharding(chips.devices[0])
    )
    rows, length, repeats = 64, 128, 1024  # more than fits beside the cores

    def memory(remat):
        made = model("nnx", remat, Scan(), repeats=repeats)
        variables = jax.tree.map(
            lambda leaf: place(leaf.shape, leaf.dtype), jax.eval_shape(made.init, KEY)
        )
        tokens = place((rows, length), jnp.int32)

        def objective(variables, tokens):
            return jnp.sum(made.apply(variables, tokens).hidden ** 2)

        compiled = jax.jit(jax.grad(objective)).lower(variables, tokens).compile()
        return compiled.memory_analysis()

    full, offloaded = memory("full"), memory(SaveNamed(offload=("layer_in",)))
    moved = repeats * rows * length * FEATURES * 4
    assert full.host_temp_size_in_bytes == 0
    assert offloaded.host_temp_size_in_bytes == moved
    # Two layers are on their way at a time, their features padded to 128 lanes.
    arriving = 2 * rows * length * 128 * 4
    kept = full.temp_size_in_bytes - moved
    assert offloaded.temp_size_in_bytes <= kept + arriving <= 0.1 * moved
