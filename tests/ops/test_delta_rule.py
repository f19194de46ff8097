"""The gated delta rule against its recurrence, token by token, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxfdl.ops.cost import count_flops
from maxfdl.ops.delta_rule import GatedDeltaRule, LogUniform, log_decay
from maxfdl.ops.mask import NOWHERE, Places
from maxfdl.sharding.mesh import MeshShape
from maxfdl.sharding.rules import AxisRules
from maxfdl.sharding.sharding import Sharding

CHUNKED = GatedDeltaRule(chunk=16)
RULE = jax.jit(CHUNKED)
# Around the sizes of a chunk.
LENGTHS = [1, 2, 15, 16, 17, 40]
ROWS, KEY_HEADS, HEADS, K, V = 2, 2, 4, 6, 5


def numpy_rule(q, k, v, log_decay, beta, begins=None, real=None, state=None):
    """Writes and reads each token's memory by the definition."""
    q, k, v, log_decay, beta = (
        np.asarray(x, np.float64) for x in (q, k, v, log_decay, beta)
    )
    rows, tokens, heads, width = v.shape
    q = q / np.sqrt(np.sum(q**2, -1, keepdims=True) + 1e-6) / np.sqrt(q.shape[-1])
    k = k / np.sqrt(np.sum(k**2, -1, keepdims=True) + 1e-6)
    out = np.zeros_like(v)
    memories = np.zeros((rows, heads, k.shape[-1], width))
    memories = memories if state is None else np.array(state, np.float64)
    for b, h in np.ndindex(rows, heads):
        memory, group = memories[b, h], h // (heads // k.shape[2])
        for t in range(tokens):
            if begins is not None and begins[b, t]:
                memory = np.zeros_like(memory)
            if real is None or real[b, t]:
                key = k[b, t, group]
                memory = np.exp(log_decay[b, t, h]) * memory
                error = v[b, t, h] - memory.T @ key
                memory = memory + beta[b, t, h] * np.outer(key, error)
            out[b, t, h] = memory.T @ q[b, t, group]
        memories[b, h] = memory
    return out, memories


def inputs(tokens, rows=ROWS, key_heads=KEY_HEADS, heads=HEADS, forget=1.0, seed=0):
    rng = np.random.default_rng([tokens, seed])
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    return (
        draw(rows, tokens, key_heads, K),
        draw(rows, tokens, key_heads, K),
        draw(rows, tokens, heads, V),
        -forget * jnp.abs(draw(rows, tokens, heads)),
        jax.nn.sigmoid(draw(rows, tokens, heads)),
    )


def one_document(tokens, rows=ROWS, start=0):
    return Places(jnp.tile(jnp.arange(start, start + tokens), (rows, 1)), None)


def packed(lengths):
    """Rows of documents of these lengths, with what tells them apart."""
    positions = np.concatenate([np.arange(n) for n in lengths])
    ids = np.repeat(np.arange(1, len(lengths) + 1), lengths)
    tile = lambda x: jnp.tile(jnp.int32(x), (ROWS, 1))  # noqa: E731
    return Places(tile(positions), tile(ids))


def begins(places):
    return np.asarray(places.positions) == 0


def part(arrays, *cut):
    return [x[:, slice(*cut)] for x in arrays]


def gradients(rule, arrays, places, state=None):
    """Returns those of a sum over outputs and state, by all that is differentiable."""

    def objective(arrays, state):
        out, state = rule(*arrays, places, state)
        one, other = (
            jnp.cos(jnp.arange(x.size)).reshape(x.shape) for x in (out, state)
        )
        return jnp.sum(one * out) + jnp.sum(other * state)

    state = jnp.zeros((ROWS, HEADS, K, V)) if state is None else state
    return jax.jit(jax.grad(objective, (0, 1)))(arrays, state)


def one_by_one(*arguments):
    """The recurrence in JAX, for its gradients: a call of the rule for every token."""
    *arrays, places, state = arguments

    def step(state, token):
        arrays, places = jax.tree.map(lambda x: x[:, None], token)
        out, state = CHUNKED(*arrays, Places(*places), state)
        return state, out[:, 0]

    tokens = arrays, (places.positions, places.segment_ids)
    tokens = jax.tree.map(lambda x: x.swapaxes(0, 1), tokens)
    state, out = jax.lax.scan(step, state, tokens)
    return out.swapaxes(0, 1), state


def assert_close(actual, expected, atol=2e-6):
    for left, right in zip(
        jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(left, right, atol=atol, rtol=0)


@pytest.mark.parametrize("tokens", LENGTHS)
def test_chunks_give_what_the_recurrence_gives(tokens):
    arrays = inputs(tokens)
    assert_close(RULE(*arrays, one_document(tokens)), numpy_rule(*arrays))


@pytest.mark.parametrize("tokens", LENGTHS)
def test_a_call_goes_on_from_a_state(tokens):
    arrays = inputs(tokens, forget=0.1)
    state = jax.random.normal(jax.random.key(0), (ROWS, HEADS, K, V))
    actual = RULE(*arrays, one_document(tokens, start=9), state)
    assert_close(actual, numpy_rule(*arrays, state=state))


@pytest.mark.parametrize("chunk", [1, 2, 64, 128])
def test_the_size_of_chunks_changes_nothing(chunk):
    arrays = inputs(70, forget=0.1)
    rule = jax.jit(GatedDeltaRule(chunk=chunk))
    assert_close(rule(*arrays, one_document(70)), numpy_rule(*arrays))


@pytest.mark.parametrize(("key_heads", "heads"), [(3, 3), (1, 4), (2, 6)])
def test_heads_share_keys_in_groups(key_heads, heads):
    arrays = inputs(20, key_heads=key_heads, heads=heads)
    assert_close(RULE(*arrays, one_document(20)), numpy_rule(*arrays))


@pytest.mark.parametrize("tokens", [2, 40])
def test_gradients_are_those_of_the_recurrence(tokens):
    arrays = inputs(tokens, forget=0.1)
    state = jax.random.normal(jax.random.key(0), (ROWS, HEADS, K, V))
    places = one_document(tokens, start=3)
    actual = gradients(CHUNKED, arrays, places, state)
    assert_close(actual, gradients(one_by_one, arrays, places, state), atol=1e-5)


def test_gradients_of_packed_documents_are_those_of_the_recurrence():
    arrays, places = inputs(40, forget=0.1), packed([5, 9, 1, 25])
    state = jax.random.normal(jax.random.key(0), (ROWS, HEADS, K, V))
    actual = gradients(CHUNKED, arrays, places, state)
    assert_close(actual, gradients(one_by_one, arrays, places, state), atol=1e-5)
    assert not np.any(actual[1]), "the state before them is of no document here"


@pytest.mark.parametrize("lengths", [[16, 16], [15, 17], [1] * 20, [3, 4, 5, 30]])
def test_a_document_reads_as_it_would_alone(lengths):
    arrays, places = inputs(sum(lengths), forget=0.1), packed(lengths)
    out, state = RULE(*arrays, places)
    assert_close((out, state), numpy_rule(*arrays, begins(places)))
    end = 0
    for length in lengths:
        start, end = end, end + length
        alone, last = RULE(*part(arrays, start, end), one_document(length))
        assert_close(out[:, start:end], alone, atol=1e-6)
    assert_close(state, last, atol=1e-6)


@pytest.mark.parametrize("size", [1e3, 1e30])
def test_nothing_of_a_document_reaches_the_next(size):
    arrays, places = inputs(40), packed([13, 27])

    def second(scale):
        q, k, v, forget, beta = arrays
        first = jnp.arange(40)[:, None] < 13
        v = jnp.where(first[..., None], scale * v, v)
        return RULE(q, k, v, jnp.where(first, scale * forget, forget), beta, places)

    for loud, quiet in zip(second(size), second(1.0), strict=True):
        loud, quiet = (x[:, 13:] if x.shape[1] == 40 else x for x in (loud, quiet))
        np.testing.assert_array_equal(loud, quiet)


def test_segments_are_told_apart_without_positions_that_restart():
    arrays, places = inputs(40), packed([13, 27])
    plain = Places(one_document(40).positions, places.segment_ids)
    np.testing.assert_array_equal(RULE(*arrays, places)[0], RULE(*arrays, plain)[0])


@pytest.mark.parametrize("tokens", [1, 24])
def test_padding_leaves_the_state_as_it_is(tokens):
    arrays = inputs(tokens)
    real = np.arange(tokens) < np.array([[tokens // 2], [0]])
    positions = np.where(real, 5 + np.arange(tokens), NOWHERE)
    state = jax.random.normal(jax.random.key(0), (ROWS, HEADS, K, V))

    def run(q, k, v, forget, beta):
        return RULE(q, k, v, forget, beta, Places(jnp.int32(positions), None), state)

    out, last = run(*arrays)
    expected, expected_last = numpy_rule(*arrays, real=real, state=state)
    assert_close((out[real], last), (expected[real], expected_last))
    np.testing.assert_array_equal(last[1], state[1])
    noise = 1e3 * ~real[..., None]
    q, k, v, forget, beta = arrays
    loud = noise[..., None]
    louder = run(q + loud, k - loud, v + loud, forget - noise, beta + noise)
    np.testing.assert_array_equal(louder[0][real], out[real])
    np.testing.assert_array_equal(louder[1], last)


@pytest.mark.parametrize("forget", [0.0, 1e4, 1e38, np.inf])
def test_any_rate_of_forgetting_is_exact_and_finite(forget):
    arrays = list(inputs(40, forget=1.0))
    # Every third token forgets so much; the others must not lose digits beside it.
    much = (jnp.arange(40) % 3 == 0)[:, None]
    arrays[3] = jnp.where(much, -forget, arrays[3] * 1e-3)
    assert_close(RULE(*arrays, one_document(40)), numpy_rule(*arrays))
    grads = gradients(CHUNKED, arrays, one_document(40))
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(grads))


def test_a_key_that_repeats_loses_no_digits():
    # Then the triangular system is all ones, and its powers are binomial numbers.
    q, k, v, forget, beta = inputs(64, forget=0.0)
    arrays = q, jnp.broadcast_to(k[:, :1], k.shape), v, forget, jnp.ones_like(beta)
    actual = jax.jit(GatedDeltaRule(chunk=64))(*arrays, one_document(64))
    assert_close(actual, numpy_rule(*arrays), atol=1e-5)


def test_zero_keys_have_finite_gradients():
    q, k, v, forget, beta = inputs(20)
    arrays = 0 * q, 0 * k, v, forget, beta
    grads = gradients(CHUNKED, arrays, one_document(20))
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(grads))


def test_bfloat16_is_computed_in_float32():
    *vectors, forget, beta = inputs(40)
    halves = [x.astype(jnp.bfloat16) for x in vectors]
    out, state = RULE(*halves, forget, beta, one_document(40))
    assert out.dtype == jnp.bfloat16 and state.dtype == jnp.float32
    wholes = [x.astype(jnp.float32) for x in halves]
    expected, last = RULE(*wholes, forget, beta, one_document(40))
    np.testing.assert_array_equal(out, expected.astype(jnp.bfloat16))
    np.testing.assert_array_equal(state, last)


def test_its_cost_is_that_of_the_products_below_the_diagonal():
    arrays = inputs(40)
    flops = count_flops(lambda *x: RULE(*x, one_document(40))[0], *arrays)
    per_token_and_head = 6 * K * V + 16 * (3 * K + 2 * V) + 16 * 16 // 3
    assert flops == ROWS * 40 * HEADS * per_token_and_head
    one = count_flops(lambda *x: RULE(*x, one_document(1))[0], *part(arrays, 0, 1))
    assert one == ROWS * HEADS * 6 * K * V


def test_a_chunk_is_a_power_of_two():
    (problem,) = GatedDeltaRule.check_config(GatedDeltaRule(chunk=48))
    assert problem == "GatedDeltaRule chunk (48) must be a power of two."
    assert not list(GatedDeltaRule.check_config(GatedDeltaRule()))
    assert list(GatedDeltaRule.check_config(GatedDeltaRule(chunk=0)))


def test_log_decay_is_a_rate_times_a_softplus():
    rng = np.random.default_rng(0)
    x, rate, bias = rng.normal(size=(3, 5, HEADS)), *rng.normal(size=(2, HEADS))
    expected = -np.exp(rate) * np.log1p(np.exp(x + bias))
    actual = log_decay(*(jnp.asarray(y, jnp.float32) for y in (x, rate, bias)))
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    assert log_decay(jnp.bfloat16(x), rate[0] + jnp.zeros(4), jnp.zeros(4)).dtype == (
        jnp.float32
    )


def test_rates_are_uniform_before_the_logarithm():
    drawn = np.exp(LogUniform(0.5, 4.0)(jax.random.key(0), (10_000,), 1))
    assert drawn.min() >= 0.5 and drawn.max() <= 4.0
    quarters = np.quantile(drawn, [0.25, 0.5, 0.75])
    np.testing.assert_allclose(quarters, [1.375, 2.25, 3.125], atol=0.08)


# On a mesh.


@pytest.mark.parametrize("lengths", [[17, 15], [1, 3]])  # the last one token each
def test_devices_that_share_a_row_hand_on_its_state(lengths):
    shape = MeshShape(fsdp=2, context=4)
    sharding = Sharding(shape.build(jax.devices()[:8]), AxisRules())
    places, arrays = packed(lengths), inputs(sum(lengths))
    rule = GatedDeltaRule(chunk=4)
    on_mesh = functools.partial(rule, sharding=sharding)
    assert_close(jax.jit(on_mesh)(*arrays, places), RULE(*arrays, places))
    found, expected = (gradients(each, arrays, places) for each in (on_mesh, rule))
    assert_close(found, expected, atol=1e-5)
