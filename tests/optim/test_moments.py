"""Moments in fewer bytes: their numbers, their places, and what they take."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import load_file

from maxfdl import graph
from maxfdl.errors import ConfigError, MutationError
from maxfdl.layers.parameter import Parameter
from maxfdl.mutations import moment_storage
from maxfdl.ops.initializers import Constant
from maxfdl.optim.adafactor import Adafactor
from maxfdl.optim.moments import Bfloat16, Blocks, EightBit, Moment
from maxfdl.optim.muon import Muon
from maxfdl.optim.optimizer import Optimizer
from maxfdl.optim.owners import Owners
from maxfdl.optim.schedules import WarmupCosine
from maxfdl.optim.transforms import Adam, AdamPax, Lion, Sgd
from maxfdl.sharding.mesh import MeshShape
from tests import tiny
from tests.golden import FOLDER

RULES = [Adam(), AdamPax(), Sgd(momentum=0.9), Lion(), Adafactor(), Muon(rest=Adam())]
EITHER = pytest.mark.parametrize("moments", [Bfloat16(), EightBit()], ids=str)
RATE = 0.01


def kernel(*shape, **fields):
    axes = ("embed", "mlp")[: len(shape)]
    return Parameter(shape, axes, Constant(), "kernel", 1, **fields)


def make(parameters, **parts):
    parts = dict(rule=Adam(), clip=None, weight_decay=None) | parts
    schedule = WarmupCosine(peak=RATE, final_fraction=1.0)
    return Optimizer(parameters=parameters, schedule=schedule, steps=10, **parts)


def drawn(parameters, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda p: jnp.float32(rng.normal(size=p.full_shape)), parameters
    )


def trajectory(optimizer, parameters, steps=3):
    params, update = drawn(parameters), jax.jit(optimizer.update)
    state = optimizer.init(params)
    for step in range(steps):
        params, state = update(drawn(parameters, 9 + step), state, params, step)
    return params, state


class PlainBlocks:
    """The paper's quantisation of one array, in loops over its blocks."""

    def __init__(self, kind, sides):
        table = load_file(FOLDER / "dynamic_map.safetensors")[f"table.{kind}"]
        self.table, self.sides = np.float64(table), sides
        self.never_zero = kind == "unsigned"

    def blocks(self, shape):
        counts = [-(-n // side) for n, side in zip(shape, self.sides, strict=True)]
        for place in itertools.product(*map(range, counts)):
            pairs = zip(place, self.sides, strict=True)
            yield tuple(slice(i * side, (i + 1) * side) for i, side in pairs)

    def __call__(self, x):
        """Returns the codes, and the numbers that they stand for."""
        codes, numbers = np.zeros(x.shape, np.int32), np.zeros(x.shape)
        for block in self.blocks(x.shape):
            scale = np.max(np.abs(x[block]))
            distance = np.abs(x[block][..., None] / scale - self.table)
            codes[block] = np.argmin(distance, axis=-1)
            if self.never_zero:
                codes[block] = np.maximum(codes[block], x[block] > 0)
            numbers[block] = scale * self.table[codes[block]]
        return codes, numbers


@pytest.mark.parametrize(
    ("shape", "sides"), [((64, 96), (16, 16)), ((5003,), (256,))], ids=str
)
def test_three_steps_of_8_bit_adam_are_those_of_the_papers_formulas(shape, sides):
    parameters = {"w": kernel(*shape)}
    params, state = trajectory(make(parameters, moments=EightBit()), parameters)
    signed, unsigned = PlainBlocks("signed", sides), PlainBlocks("unsigned", sides)
    p, m, v = np.float64(drawn(parameters)["w"]), 0.0, 0.0
    for step in range(3):
        g = np.float64(drawn(parameters, 9 + step)["w"])
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g**2
        first, second = m / (1 - 0.9 ** (step + 1)), v / (1 - 0.95 ** (step + 1))
        p = p - RATE * first / (np.sqrt(second) + 1e-8)
        (mu, m), (nu, v) = signed(m), unsigned(v)
    for stored, codes in ((state[1].mu["w"], mu), (state[1].nu["w"], nu)):
        away = np.abs(np.int32(stored.codes) - codes)
        # float32 and float64 may round a number midway between two to either.
        assert np.max(away) <= 1 and np.mean(away) < 1e-3
    assert np.mean(np.abs(params["w"] - p) > 1e-6) < 1e-3


def test_an_average_of_bfloat16_moments_is_right_in_the_mean():
    """To nearest it would stay at 0.33 to 0.4: then a step changes it too little."""
    numbers, steps, b2 = 2**14, 600, 0.999
    parameters = {"w": kernel(numbers)}
    optimizer = make(parameters, rule=Adam(b2=b2), moments=Bfloat16())
    ones = jax.tree.map(jnp.ones_like, drawn(parameters))
    params, state = jax.jit(
        lambda params: jax.lax.fori_loop(
            0,
            steps,
            lambda i, carry: optimizer.update(ones, carry[1], carry[0], i),
            (params, optimizer.init(params)),
        )
    )(ones)
    second = state[1].nu["w"]
    assert second.dtype == state[1].mu["w"].dtype == jnp.bfloat16
    expected = 1 - b2**steps
    # A rounding is off by at most 2^-8 of the number in root mean square.
    deviation = 2**-8 * expected * math.sqrt(steps / numbers)
    assert abs(np.mean(np.float64(second)) - expected) < 5 * deviation


def state_of(parameters, **parts):
    """Returns the abstract state of the rule."""
    params = jax.tree.map(lambda p: p.abstract("float32"), parameters)
    return jax.eval_shape(make(parameters, **parts).init, params)[1]


def num_bytes(tree):
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("rule", "averages"), [*zip(RULES, (2, 2, 1, 1, 0, 1), strict=True)], ids=str
)
def test_a_number_takes_4_or_2_or_about_1_bytes_whatever_the_rule(rule, averages):
    """The factors of Adafactor are few, and stay float32."""
    parameters, count = {"w": kernel(64, 128, repeats=3)}, 3 * 64 * 128
    plain, half, quarter = (
        num_bytes(state_of(parameters, rule=rule, moments=moments))
        for moments in (None, Bfloat16(), EightBit())
    )
    assert plain - half == averages * 2 * count
    assert plain - quarter == averages * (3 * count - 4 * count // 256)


def test_parameters_with_few_numbers_in_a_layer_keep_float32():
    few, enough = kernel(63, 65, repeats=8), kernel(64, 64)
    state = state_of({"few": few, "enough": enough}, moments=EightBit())
    assert state.mu["few"].dtype == jnp.float32
    assert state.mu["enough"].codes.dtype == jnp.uint8


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_rules_say_which_of_their_moments_are_averages_of_squares(rule):
    scale = Parameter((64,), ("norm",), Constant(), "scale")
    parameters = {"w": kernel(8, 8), "b": scale}
    params, state = trajectory(make(parameters, rule=rule), parameters, steps=2)
    owners, seen = Owners(params), set()
    for path, x in jax.tree.leaves_with_path(state):
        if owners(path, x):
            fields = {getattr(step, "name", None) for step in path}
            named = fields & rule.squares
            seen |= named
            assert bool(named) == bool(np.all(x >= 0))
    assert seen == rule.squares


def test_a_block_is_of_one_layer_one_expert_and_one_token():
    axes = {"experts": 2, "embed": 64, "mlp": 64}
    experts = Parameter.of_dims(axes, init=Constant(), role="kernel", batched=1)
    table = Parameter((100, 64), ("vocab", "embed"), Constant(), "embedding")
    for parameter, blocks in [
        (kernel(64, 64, repeats=3), (3, 4, 4)),
        (experts.stacked(3), (3, 2, 4, 4)),
        (table, (100, 1)),
    ]:
        stored = state_of({"w": parameter}, moments=EightBit()).mu["w"]
        assert stored.greatest.shape == blocks
        assert stored.codes.shape == parameter.full_shape


@pytest.mark.parametrize("fault", [np.nan, np.inf])
def test_what_is_not_finite_is_not_hidden(fault):
    moment = Moment(kernel(64, 64), False, None)
    x = jnp.ones((64, 64)).at[20, 20].set(fault)
    found = jax.jit(
        lambda x: EightBit().decoded(EightBit().encoded(x, moment), moment)
    )(x)
    block = slice(16, 32), slice(16, 32)
    assert not np.any(np.isfinite(found[block]))
    assert np.all(found.at[block].set(1.0) == 1.0)


@functools.cache
def on_one_device(moments, rows):
    parameters = layers(rows)
    return trajectory(make(parameters, moments=moments), parameters, steps=2)


def layers(rows):
    return {"w": kernel(rows, 96, repeats=2), "b": kernel(512)}


def moved(moments, rows=256, memory="device"):
    """Returns parameters and state after two updates on eight devices, and the HLO."""
    parameters = layers(rows)
    optimizer, params = make(parameters, moments=moments), drawn(parameters)
    mesh = MeshShape(data=1, fsdp=8, tensor=1).build(jax.devices()[:8])
    specs = {"w": PartitionSpec(None, "fsdp"), "b": PartitionSpec()}
    places = {k: NamedSharding(mesh, s, memory_kind=memory) for k, s in specs.items()}
    on_device = jax.tree.map(lambda s: s.with_memory_kind("device"), places)
    of_state = optimizer.shardings(params, places, NamedSharding(mesh, PartitionSpec()))
    shardings = on_device, of_state
    state = jax.device_put(optimizer.init(params), of_state)
    params = jax.device_put(params, on_device)
    run = jax.jit(optimizer.update, out_shardings=shardings)
    for step in range(2):
        grads = jax.device_put(drawn(parameters, 9 + step), on_device)
        params, state = run(grads, state, params, jnp.int32(step))
    text = run.lower(grads, state, params, jnp.int32(0)).compile().as_text()
    return params, state, text


@EITHER
def test_eight_devices_and_one_give_the_same_bits(moments):
    params, state, text = moved(moments)
    assert "all-gather" not in text and "all-to-all" not in text
    if isinstance(moments, EightBit):
        blocks = state[1].mu["w"]
        assert isinstance(blocks, Blocks)
        for array in blocks:
            assert array.sharding.spec == PartitionSpec(None, "fsdp")
    expected = jax.device_get(on_one_device(moments, 256))
    jax.tree.map(np.testing.assert_array_equal, (params, state), expected)


@pytest.mark.slow
@EITHER
def test_so_they_do_where_a_mesh_cuts_blocks(moments):
    """Of 200 rows a device has 25, and a block 16."""
    params, state, _ = moved(moments, rows=200)
    expected = jax.device_get(on_one_device(moments, 200))
    jax.tree.map(np.testing.assert_array_equal, (params, state), expected)


@pytest.mark.slow
@EITHER
def test_layers_that_are_updated_one_after_the_other_are_rounded_as_together(moments):
    """Up to the rounding of float32, which may turn one in some thousands."""
    params, state, _ = moved(moments, memory="pinned_host")
    kinds = {x.sharding.memory_kind for x in jax.tree.leaves(state[1].mu)}
    assert kinds == {"pinned_host"}
    pairs = zip(
        jax.tree.leaves((params, state)),
        jax.tree.leaves(on_one_device(moments, 256)),
        strict=True,
    )
    for ours, expected in pairs:
        wrong = ~np.isclose(np.float32(ours), np.float32(expected), rtol=1e-5)
        assert np.mean(wrong) < 1e-3


def test_numbers_out_of_range_are_refused():
    config = moment_storage(tiny.experiment(), kind="eight_bit", block_size=100)
    with pytest.raises(ConfigError, match=r"block_size \(100\) must be a power of two"):
        graph.validate(config)
    with pytest.raises(
        MutationError, match=r"block_size \(64\) is of the kind eight_b"
    ):
        moment_storage(tiny.experiment(), kind="bfloat16", block_size=64)
    with pytest.raises(
        MutationError, match="'int8'.*one of float32, bfloat16, eight_b"
    ):
        moment_storage(tiny.experiment(), kind="int8")
