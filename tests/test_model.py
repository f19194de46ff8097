"""Model: one set of numbers, whichever family, execution or packing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdl_configs import layers
from maxfdl import graph
from maxfdl.errors import UserError
from maxfdl.mutations import (
    compute_dtype,
    param_dtype,
    remat,
    scan_layers,
    to_linen,
    unroll_layers,
)
from tests import tiny
from tests.layers.families import assert_same_bits

KEY = jax.random.key(0)
FAMILIES = {"nnx": (), "linen": (to_linen,)}
RUNS = {
    "two a trip": (functools.partial(scan_layers, unroll=2),),
    "unrolled": (unroll_layers,),
    "remat full": (remat,),
    "remat dots": (functools.partial(remat, policy="dots"),),
    "remat dots_no_batch": (functools.partial(remat, policy="dots_no_batch"),),
    "remat attention_out": (functools.partial(remat, policy="attention_out"),),
    "unrolled, remat full": (unroll_layers, remat),
    "unrolled, remat dots": (
        unroll_layers,
        functools.partial(remat, policy="dots"),
    ),
}


def make(*mutations, **fields):
    return graph.build(tiny.experiment(*mutations, **fields)).make_model()


@functools.cache
def compiled(model):
    """Returns the model's `apply` as one program, for that is faster."""
    return jax.jit(model.apply)


def logits_of(model, variables, tokens, **inputs):
    return compiled(model)(variables, tokens, **inputs).logits


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    return make(*FAMILIES[request.param])


@pytest.fixture(scope="module")
def variables(model):
    return model.init(KEY)


def random_tokens(rows=2, length=12, seed=0):
    tokens = np.random.default_rng(seed).integers(0, tiny.VOCAB, (rows, length))
    return jnp.asarray(tokens, jnp.int32)


def test_twenty_steps_are_the_same_in_both_families_to_the_last_bit():
    losses, state = tiny.one_device(20)
    losses_of_linen, state_of_linen = tiny.train(tiny.experiment(to_linen), 20)
    assert losses == losses_of_linen
    assert_same_bits(state, state_of_linen)
    assert losses[-1] != losses[0] and np.all(np.isfinite(losses))


@pytest.mark.parametrize("tied", [False, True])
def test_the_same_weights_come_of_a_key_however_the_layers_run(tied):
    expected = make(tied=tied).init(KEY)
    for mutations in RUNS.values():
        for family in FAMILIES.values():
            weights = make(*mutations, *family, tied=tied).init(KEY)
            assert_same_bits(weights, expected)


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_losses_are_the_same_however_the_layers_run(run):
    """Within 1e-6 of the loss: XLA fuses, and so rounds, otherwise without a loop."""
    losses, _ = tiny.one_device(20)
    others, _ = tiny.train(tiny.experiment(*RUNS[run]), 20)
    np.testing.assert_allclose(others, losses, rtol=1e-6)


def test_the_tree_of_declarations_is_that_of_the_weights(model, variables):
    def check(parameter, array):
        assert array.shape == parameter.full_shape
        assert array.dtype == jnp.float32

    jax.tree.map(check, model.parameters(), variables["params"])


def test_weights_follow_from_the_key(model, variables):
    assert_same_bits(model.init(KEY), variables)
    other = model.init(jax.random.key(1))["params"]["embedding"]["table"]
    assert np.all(other != variables["params"]["embedding"]["table"])


def test_init_can_be_abstract(model, variables):
    abstract = jax.eval_shape(model.init, KEY)
    assert jax.tree.map(jnp.shape, abstract) == jax.tree.map(jnp.shape, variables)


@pytest.mark.parametrize("wrong", [-1, 10**6])
@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_ids_without_a_row_are_refused_where_they_are_known(
    model, variables, wrong, array
):
    tokens = array([[1, 2], [3, wrong]])
    for call in (model.apply, model.logits):
        with pytest.raises(
            UserError, match=rf"tokens\[1, 1\] \({wrong}\) must be from"
        ):
            call(variables, tokens)


def test_logits_are_float32_and_those_of_the_output(model, variables):
    tokens = random_tokens()
    logits = jax.jit(model.logits)(variables, tokens)
    assert logits.shape == (2, 12, tiny.VOCAB) and logits.dtype == jnp.float32
    np.testing.assert_array_equal(logits, logits_of(model, variables, tokens))


def test_positions_count_from_zero_unless_they_are_given(model, variables):
    tokens = random_tokens()
    positions = jnp.broadcast_to(jnp.arange(12), (2, 12))
    given = logits_of(model, variables, tokens, positions=positions)
    np.testing.assert_array_equal(given, logits_of(model, variables, tokens))


def test_appended_tokens_change_nothing_before_them(model, variables):
    long = random_tokens(length=130)
    logits = logits_of(model, variables, long)
    for length in (9, 128):
        short = logits_of(model, variables, long[:, :length])
        np.testing.assert_allclose(short, logits[:, :length], atol=1e-5)


def test_packed_documents_have_the_logits_that_each_has_alone(model, variables):
    first, second = random_tokens(1, 7), random_tokens(1, 5, seed=1)
    packed = model.logits(
        variables,
        jnp.concatenate([first, second], axis=1),
        segment_ids=jnp.array([[1] * 7 + [2] * 5]),
        positions=jnp.array([[*range(7), *range(5)]]),
    )
    alone = [logits_of(model, variables, tokens) for tokens in (first, second)]
    np.testing.assert_allclose(packed, jnp.concatenate(alone, axis=1), atol=1e-5)


def test_documents_see_each_other_without_segment_ids(model, variables):
    tokens = random_tokens()
    changed = tokens.at[:, 0].add(1) % tiny.VOCAB
    moved = logits_of(model, variables, tokens) - logits_of(model, variables, changed)
    assert np.all(np.any(moved != 0, axis=-1))


@pytest.mark.parametrize("family", FAMILIES)
def test_positions_past_a_learned_table_are_refused(family):
    def learned(config):
        config.model.position_embedding = layers.position_embedding(16)
        return config

    model = make(learned, *FAMILIES[family])
    variables, tokens = model.init(KEY), jnp.zeros((1, 17), jnp.int32)
    assert model.logits(variables, tokens[:, :16]).shape == (1, 16, tiny.VOCAB)
    for apply in (model.apply, jax.jit(model.apply)):
        with pytest.raises(
            UserError, match="17 positions are needed, but the model has"
        ):
            apply(variables, tokens)
    with pytest.raises(UserError, match="100 positions are needed"):
        model.apply(variables, tokens[:, :1], positions=jnp.array([[99]]))
    packed = jnp.arange(17)[None] % 9
    assert model.apply(variables, tokens, positions=packed).hidden.shape[1] == 17


@pytest.mark.parametrize("family", FAMILIES)
def test_an_experiment_of_longer_sequences_than_positions_is_refused(family):
    def learned(config):
        config.model.position_embedding = layers.position_embedding(8)
        return config

    message = r"sequence_length \(16\) must be at most model.position_embedding.length"
    with pytest.raises(UserError, match=message):
        make(learned, *FAMILIES[family])


def test_rotary_models_have_no_last_position(model, variables):
    assert model.most_positions is None
    assert model.logits(variables, jnp.zeros((1, 100), jnp.int32)).shape[1] == 100


def test_a_tied_head_is_the_embedding():
    for family in FAMILIES.values():
        model = make(*family, tied=True)
        variables = model.init(KEY)
        assert "head" not in variables["params"]
        output = compiled(model)(variables, random_tokens())
        table = variables["params"]["embedding"]["table"]
        np.testing.assert_allclose(output.logits, output.hidden @ table.T, atol=1e-5)


def test_bfloat16_computes_and_stores_where_it_is_asked_to():
    for family in FAMILIES.values():
        model = make(compute_dtype, *family)
        variables = model.init(KEY)
        assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
        output = compiled(model)(variables, random_tokens())
        assert output.hidden.dtype == jnp.bfloat16
        assert output.logits.dtype == jnp.float32
        exact = logits_of(make(*family), variables, random_tokens())
        np.testing.assert_allclose(output.logits, exact, atol=0.1)
        assert np.any(output.logits != exact)

        halves = make(functools.partial(param_dtype, dtype="bfloat16"), *family)
        stored = jax.tree.leaves(halves.init(KEY))
        assert {x.dtype for x in stored} == {jnp.dtype("bfloat16")}


def test_training_in_bfloat16_keeps_float32_parameters_and_moments():
    losses, state = tiny.train(tiny.experiment(compute_dtype), 5)
    exact, _ = tiny.one_device(20)
    np.testing.assert_allclose(losses, exact[:5], atol=0.05)
    types = {str(x.dtype) for x in jax.tree.leaves(state)}
    assert types == {"float32", "int32"}  # integers count steps


@pytest.mark.slow
def test_training_in_bfloat16_is_the_same_in_both_families():
    ours, theirs = (
        tiny.train(tiny.experiment(compute_dtype, *family), 5)
        for family in FAMILIES.values()
    )
    assert_same_bits(ours, theirs)


def test_dropout_acts_with_a_key_alone():
    def with_dropout(config):
        config = graph.copy(config)
        config.model.decoder.stacks[0].layers[0].dropout.rate = 0.5
        return config

    models = [make(with_dropout, *family) for family in FAMILIES.values()]
    variables, tokens = models[0].init(KEY), random_tokens()
    ours, theirs = (logits_of(m, variables, tokens, key=KEY) for m in models)
    assert_same_bits(ours, theirs)
    still = logits_of(models[0], variables, tokens)
    assert np.any(ours != still)
    np.testing.assert_array_equal(still, logits_of(make(), variables, tokens))


@pytest.mark.parametrize("family", FAMILIES)
def test_two_builds_of_a_graph_are_one_to_jit(family):
    """Equal modules, so that what was compiled for the first serves the second."""
    first, second = make(*FAMILIES[family]), make(*FAMILIES[family])
    if family == "linen":
        assert first.network == second.network
    else:
        assert first._abstract[0] == second._abstract[0]
