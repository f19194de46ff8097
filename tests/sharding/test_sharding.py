"""Rules on a mesh: who is cut by what, and which sizes are refused."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from maxfdl import graph
from maxfdl.errors import ConfigError, UserError
from maxfdl.report import hlo
from maxfdl.sharding.mesh import MeshShape
from maxfdl.sharding.rules import AxisRules
from maxfdl.sharding.sharding import Sharding, cast_in_loop
from maxfdl.sharding.shares import Shares
from tests import tiny


@pytest.fixture
def on():
    """Makes a Sharding on a mesh of eight devices."""

    def make(rules=None, **axes):
        mesh = MeshShape(**axes).build(jax.devices()[:8])
        return Sharding(mesh, rules or AxisRules())

    return make


def test_a_dim_is_cut_by_the_axes_that_its_rule_names(on):
    sharding = on(fsdp=4, tensor=2)
    assert sharding.spec(("embed", "heads", "head_dim")) == P("fsdp", "tensor", None)
    assert sharding.spec(("vocab", "embed")) == P("tensor", "fsdp")
    assert sharding.spec(("layers", "norm")) == P(None, None)


def test_rows_that_are_whole_are_cut_along_their_tokens_by_no_axis(on):
    rules = AxisRules(residual=("context", "tensor"))
    sharding = on(rules, fsdp=2, context=2, tensor=2)
    dims = "batch", "sequence", "embed", "heads"
    between = "batch", "residual", "embed"
    assert sharding.spec(dims) == P("fsdp", "context", None, "tensor")
    assert sharding.spec(between) == P("fsdp", ("context", "tensor"), None)
    assert sharding.spec(("embed",)) == P(("fsdp", "context"))
    whole = sharding.with_whole_rows()
    assert whole.spec(dims) == P("fsdp", None, None, "tensor")
    assert whole.spec(between) == P("fsdp", None, None)
    assert whole.spec(("embed",)) == P("fsdp")


def test_axes_of_size_one_are_left_out(on):
    assert on(data=8, fsdp=1).spec(("embed", "mlp")) == P(None, None)
    assert on(data=2, fsdp=4).spec(("batch", "sequence")) == P(("data", "fsdp"), None)
    assert on(data=8, fsdp=1).spec(("batch", "sequence")) == P("data", None)


def test_a_mesh_axis_serves_the_first_dim_that_asks(on):
    assert on(fsdp=8).spec(("batch", "sequence", "embed")) == P("fsdp", None, None)
    both = on(AxisRules(embed=("fsdp", "tensor")), fsdp=4, tensor=2)
    assert both.spec(("embed", "mlp")) == P(("fsdp", "tensor"), None)
    assert both.spec(("mlp", "embed")) == P("tensor", "fsdp")


def test_a_weight_is_whole_for_use_but_for_its_tensor_parts(on):
    sharding = on(fsdp=4, tensor=2)
    stored = jax.device_put(jnp.ones((8, 6)), sharding.named(("embed", "mlp")))
    assert stored.addressable_shards[0].data.shape == (2, 3)
    used = jax.jit(lambda x: sharding.gather(x, ("embed", "mlp")))(stored)
    assert used.addressable_shards[0].data.shape == (8, 3)


def test_a_weight_is_gathered_over_all_axes_that_cut_the_tokens(on):
    rules = AxisRules(sequence=("tensor",), embed=("fsdp", "data"), vocab=("tensor",))
    sharding = on(rules, data=2, fsdp=2, tensor=2)
    assert sharding.spec(("vocab", "embed")) == P("tensor", ("fsdp", "data"))
    assert sharding.spec_in_use(("vocab", "embed")) == P(None, None)
    assert on(fsdp=4, tensor=2).spec_in_use(("vocab", "embed")) == P("tensor", None)


def test_dims_that_cut_in_use_are_not_gathered(on):
    axes = ("experts", "embed", "expert_mlp")
    rules = AxisRules(experts=("fsdp",))
    assert on(rules, fsdp=4, tensor=2).spec_in_use(axes) == P("fsdp", None, "tensor")
    # Of an axis that another dim has taken, they do not get a part in use either.
    assert on(rules, fsdp=8).spec_in_use(("embed", "experts")) == P(None, None)
    whole = AxisRules(experts=("fsdp",), cut_in_use=())
    assert on(whole, fsdp=4, tensor=2).spec_in_use(axes) == P(None, None, "tensor")
    mixed = AxisRules(embed=("fsdp", "tensor"), cut_in_use=("embed",))
    assert on(mixed, fsdp=4, tensor=2).spec_in_use(("embed",)) == P(("fsdp", "tensor"))


def test_axes_that_run_apart_add_up(on):
    """One `shard_map` in another: a sum is over the axes of both."""
    sharding = on(data=2, fsdp=2, tensor=2)

    def outer(x):
        here = sharding.within(("data",))
        assert here.spec(("batch", "heads")) == P("fsdp", "tensor")
        return apart(functools.partial(inner, here), here, "tensor")(x)

    def inner(here, x):
        here = here.within(("tensor",))
        assert here.spec(("batch", "heads")) == P("fsdp", None)
        return here.psum(x)

    def apart(function, sharding, axis):
        return jax.shard_map(
            function,
            mesh=sharding.mesh,
            in_specs=P(axis),
            out_specs=P(),
            axis_names={axis},
            check_vma=False,
        )

    total = jax.jit(apart(outer, sharding, "data"))(jnp.arange(4.0))
    np.testing.assert_array_equal(total, [6.0])


def test_rules_name_mesh_axes_and_dims_that_there_are():
    config = tiny.experiment()
    config.sharding.mlp, config.sharding.cut_in_use = ("model",), ("expert",)
    with pytest.raises(ConfigError) as error:
        graph.build(config)
    assert "AxisRules mlp names the mesh axis 'model', which must be one of data" in (
        str(error.value)
    )
    assert (
        "AxisRules cut_in_use names the dim 'expert', which must be one of batch"
        in (str(error.value))
    )


def test_activations_lie_where_their_rows_do(on):
    sharding = on(data=2, fsdp=2, tensor=2)
    x = jnp.ones((4, 3, 8))
    y = jax.jit(lambda x: sharding.constrain(x, ("batch", "sequence", "embed")))(x)
    assert y.addressable_shards[0].data.shape == (1, 3, 8)
    np.testing.assert_array_equal(y, x)


def test_check_accepts_what_can_be_cut(on):
    on(fsdp=4, tensor=2).check("w", (8, 6), ("embed", "mlp"))


@pytest.mark.parametrize(
    ("shape", "axes", "problem"),
    [
        (
            (6, 8),
            ("embed", "mlp"),
            "'embed' of size 6 cannot be cut into 4 by mesh axis fsdp; 1, 2 or 3 would"
            " fit: change the mesh, the size, or sharding.embed.",
        ),
        (
            (8, 5),
            ("embed", "heads"),
            "'heads' of size 5 cannot be cut into 2 by mesh axis tensor; 1 would fit:"
            " change the mesh, the size, or sharding.heads.",
        ),
    ],
)
def test_check_says_what_cannot_be_cut(on, shape, axes, problem):
    with pytest.raises(UserError) as error:
        on(fsdp=4, tensor=2).check("mlp/up/kernel", shape, axes)
    assert str(error.value) == f"mlp/up/kernel: dim {problem}"


def test_check_names_all_axes_that_cut_a_dim(on):
    with pytest.raises(UserError, match="into 8 by mesh axis data x fsdp"):
        on(data=2, fsdp=4).check("batch", (4,), ("batch",))


def mesh(**axes):
    def mutate(config):
        config = graph.copy(config)
        for name, size in axes.items():
            setattr(config.mesh, name, size)
        return config

    return mutate


def test_an_experiment_refuses_a_parameter_that_its_mesh_cannot_cut():
    program = tiny.program(tiny.experiment(mesh(fsdp=1, tensor=8), mlp=64), 8)
    with pytest.raises(UserError) as error:
        program.init()
    assert str(error.value) == (
        "decoder/stacks_0/layers_0/attention/key/kernel: dim 'kv_heads' of size 2"
        " cannot be cut into 8 by mesh axis tensor; 1 or 2 would fit: change the mesh,"
        " the size, or sharding.kv_heads."
    )


def test_an_experiment_refuses_a_batch_that_its_mesh_cannot_cut():
    config = tiny.experiment()
    config.batch_size = 6
    with pytest.raises(UserError) as error:
        tiny.program(config, 8)
    assert str(error.value) == (
        "batch_size, sequence_length: dim 'batch' of size 6 cannot be cut into 8 by"
        " mesh axis fsdp; 1, 2, 3 or 6 would fit: change the mesh, the size, or"
        " sharding.batch."
    )


@pytest.mark.parametrize(
    "axes, devices, shares",
    [
        (dict(fsdp=8), range(8), Shares((0,), 1)),
        (dict(fsdp=8), range(4, 8), Shares((1,), 2)),
        (dict(data=2, fsdp=4), [6, 7], Shares((3,), 4)),
        (dict(data=2, tensor=4), range(4), Shares((0,), 2)),
        (dict(data=2, tensor=4), [5], Shares((1,), 2)),
        (dict(tensor=8), [5], Shares((0,), 1)),
        (dict(fsdp=8), [6, 1, 2], Shares((1, 2, 6), 8)),
        (dict(fsdp=8), [0, 1, 6, 7], Shares((0, 3), 4)),
        (dict(fsdp=4, stage=2), range(2, 6), Shares((1, 2, 5, 6), 8)),
    ],
)
def test_a_process_feeds_the_rows_that_its_devices_hold(
    on, monkeypatch, axes, devices, shares
):
    sharding = on(**{"fsdp": 1} | axes)
    local = [jax.devices()[index] for index in devices]
    monkeypatch.setattr(jax, "local_devices", lambda: local)
    assert sharding.shares_of_rows() == shares


def test_rows_of_a_device_are_found_among_those_of_its_process():
    shares = Shares((1, 4), 8)
    assert shares.local(slice(2, 4), 16) == slice(0, 2)
    assert shares.local(slice(8, 10), 16) == slice(2, 4)
    assert shares.local(slice(9, 10), 16) == slice(3, 4)
    assert shares.rows(16) == [2, 3, 8, 9]
    assert Shares((0,), 1).local(slice(None), 16) == slice(0, 16)


def test_a_cast_in_a_loop_rounds_as_any_cast():
    drawn = np.random.default_rng(0).integers(0, 2**32, 10_000, dtype=np.uint32)
    special = np.float32([0.0, -0.0, np.inf, -np.inf, np.nan, 3.4e38, 1.00390625])
    x = jnp.concatenate([drawn.view(np.float32), special])
    for dtype in (jnp.bfloat16, jnp.float16, jnp.float32):
        cast, expected = cast_in_loop(x, dtype), x.astype(dtype)
        assert cast.dtype == dtype
        np.testing.assert_array_equal(*[np.float32(each) for each in (cast, expected)])


def test_a_cast_in_a_loop_keeps_every_nan():
    bits = [0x7F800001, 0xFF800001, 0x7F80FFFF, 0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF]
    nans = jnp.asarray(np.array(bits, np.uint32).view(np.float32))
    assert jnp.all(jnp.isnan(cast_in_loop(nans, jnp.dtype(jnp.bfloat16))))


@pytest.mark.parametrize(
    "axes", [dict(fsdp=2, expert=4), dict(fsdp=2, tensor=4)], ids=str
)
def test_a_weight_is_gathered_and_reduced_for_the_part_that_a_device_uses(on, axes):
    dims, shape = ("experts", "embed", "expert_mlp"), (8, 16, 256)
    whole = on(**axes)

    def gradient(weight):
        sharding = whole.within(("fsdp",))

        def objective(weight):
            return jnp.sum(jnp.sin(sharding.gather(weight, dims)))

        return jax.grad(objective)(weight)

    spec = whole.spec(dims, only=("fsdp",))
    run = jax.shard_map(
        gradient,
        mesh=whole.mesh,
        in_specs=spec,
        out_specs=spec,
        axis_names={"fsdp"},
        check_vma=False,
    )
    weight = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=whole.named(dims))
    found = hlo.read(jax.jit(run).lower(weight).compile().as_text() or "").collectives
    part = 4 * math.prod(shape) // 4  # bytes of a fourth
    assert {c.kind for c in found} == {"all-gather", "reduce-scatter"}
    assert [c.payload for c in found] == [part, part]
    assert {hlo.axes_of(c.groups, whole.mesh.shape) for c in found} == {("fsdp",)}
