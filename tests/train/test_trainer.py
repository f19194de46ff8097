"""One training step: what it computes, and what it does when numbers fail."""

import copy
import inspect
import types

import fiddle as fdl
import jax
import numpy as np
import pytest

from maxfdl.layers.parameter import map_parameters
from maxfdl.optim.schedules import WarmupConstant
from maxfdl.train.trainer import Trainer
from tests import tiny
from tests.layers.families import assert_same_bits

PEAK, WARMUP, STEPS = 1e-2, 4, 20  # of the tiny experiment


@pytest.fixture(scope="module")
def program():
    return tiny.program(tiny.experiment())


@pytest.fixture(scope="module")
def first(program):
    """The state before the first step, on the host: a step overwrites what it takes."""
    return jax.device_get(program.init())


@pytest.fixture(scope="module")
def step(program):
    """Takes one step from a state on the host to another."""
    run = program.compile_step().run
    places = program.trainer.state_shardings()

    def take(state, batch):
        state, metrics = run(jax.device_put(state, places), program.place(batch))
        return jax.device_get((state, metrics))

    return take


def changed(state, **fields):
    """Returns a copy of a state, with fields of its own."""
    return {**state, **fields}


def without_counts(state):
    return {name: state[name] for name in ("params", "optimizer", "state", "updates")}


def poisoned_weights():
    batch = tiny.batch(1)
    batch["weights"][0, 0] = np.nan
    return batch


def poisoned_params(params):
    """Returns the parameters with one infinity, in a place that acts on all tokens."""
    scale = params["final_norm"]["scale"].copy()
    scale[0] = np.inf
    return {**params, "final_norm": {"scale": scale}}


def test_a_batch_with_nan_changes_nothing_but_the_counts(first, step):
    before, _ = step(first, tiny.batch(0))
    after, metrics = step(before, poisoned_weights())
    assert_same_bits(without_counts(after), without_counts(before))
    assert (after["step"], after["guard"]["skipped"]) == (2, 1)
    assert np.isnan(metrics["loss"]) and metrics["skipped"] == 1


def test_parameters_that_overflow_are_left_as_they_were(first, step):
    before = changed(first, params=poisoned_params(first["params"]))
    after, metrics = step(before, tiny.batch(0))
    assert not np.isfinite(metrics["loss"])
    assert_same_bits(without_counts(after), without_counts(before))
    assert (after["step"], after["guard"]["skipped"]) == (1, 1)


def test_a_nan_that_no_token_meets_is_refused_too(first, step, program):
    batch = tiny.batch(0)
    unseen = np.setdiff1d(np.arange(tiny.VOCAB), batch["tokens"])[0]
    params = copy.deepcopy(first["params"])
    params["embedding"]["table"][unseen, 0] = np.nan
    started = program.start_from({"params": params, "state": first["state"]})
    before = jax.device_get(started)
    after, metrics = step(before, batch)
    assert np.isfinite(metrics["loss"]) and np.isfinite(metrics["grad_norm"])
    assert_same_bits(without_counts(after), without_counts(before))
    assert metrics["skipped"] == 1


def test_an_update_that_would_throw_parameters_away_is_refused():
    config = tiny.experiment()
    config.optimizer.schedule = fdl.Config(WarmupConstant, peak=1e30)
    program = tiny.program(config)
    state = tiny.begin(program)
    before = jax.device_get(state)
    state, metrics = program.compile_step().run(state, program.place(tiny.batch(0)))
    assert np.isfinite(metrics["loss"]) and metrics["skipped"] == 1
    assert_same_bits(without_counts(jax.device_get(state)), without_counts(before))


def test_training_goes_on_after_a_skipped_step(first, step):
    state, _ = step(first, poisoned_weights())
    state, metrics = step(state, tiny.batch(1))
    assert np.isfinite(metrics["loss"])
    assert (state["step"], state["guard"]["skipped"]) == (2, 1)
    # As if the first step had never been, but for its place in the schedule.
    expected, _ = step(changed(first, step=np.int32(1)), tiny.batch(1))
    assert_same_bits(without_counts(state), without_counts(expected))


def test_a_batch_without_weights_has_no_loss_and_no_gradient(first, step):
    batch = tiny.batch(0) | {"weights": np.zeros((tiny.ROWS, tiny.LENGTH), np.float32)}
    state, metrics = step(first, batch)
    assert metrics["loss"] == metrics["grad_norm"] == metrics["skipped"] == 0
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state))


def test_weight_decay_acts_on_kernels_and_embeddings_alone(program, first, step):
    batch = tiny.batch(0) | {"weights": np.zeros((tiny.ROWS, tiny.LENGTH), np.float32)}
    at_peak = changed(first, step=np.int32(WARMUP))
    state, _ = step(at_peak, batch)
    shrunk = {True: 1 - PEAK * 0.1, False: 1.0}

    def expected(path, parameter):
        return shrunk[parameter.role in ("kernel", "embedding")]

    factors = map_parameters(expected, program.trainer.model.parameters())
    assert set(jax.tree.leaves(factors)) == set(shrunk.values())
    jax.tree.map(
        lambda new, old, factor: np.testing.assert_allclose(new, factor * old, 1e-6),
        state["params"],
        first["params"],
        factors,
    )


def test_a_step_is_clipped_adam_with_decay(program, first, step):
    """The first step, written out: there, Adam's direction is g / (|g| + epsilon)."""
    batch, trainer = program.place(tiny.batch(0)), program.trainer

    def objective(params):
        terms, _ = trainer.evaluate({"params": params, "state": {}}, batch)
        return sum(term.mean for term in terms.values())

    loss, grads = jax.jit(jax.value_and_grad(objective))(first["params"])
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(grads)))

    def moved(path, parameter):
        place = path.split("/")
        old, grad = (leaf_at(tree, place) for tree in (first["params"], grads))
        grad = np.float64(grad) * min(1.0, 1.0 / norm)
        decay = 0.1 if parameter.role in ("kernel", "embedding") else 0.0
        return old - PEAK * (grad / (np.abs(grad) + 1e-8) + decay * old)

    # An optimizer at its first step, in a run that has reached its peak.
    state, metrics = step(changed(first, step=np.int32(WARMUP)), batch)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
    expected = map_parameters(moved, trainer.model.parameters())
    # Where a gradient is as small as epsilon, rounding shows in its direction.
    close = lambda new, old: np.testing.assert_allclose(new, old, atol=2e-5)  # noqa: E731
    jax.tree.map(close, state["params"], expected)


def leaf_at(tree, place):
    for name in place:
        tree = tree[name]
    return tree


def test_metrics_give_the_rate_of_the_schedule(first, step):
    state, rates = first, []
    for i in range(6):
        state, metrics = step(state, tiny.batch(i))
        rates.append(metrics["learning_rate"])
    np.testing.assert_allclose(rates[:5], PEAK * np.arange(5) / WARMUP, rtol=1e-6)
    cosine = (1 + np.cos(np.pi / (STEPS - WARMUP))) / 2
    np.testing.assert_allclose(rates[5], PEAK * (0.1 + 0.9 * cosine), rtol=1e-6)


def test_metrics_name_the_objective_and_each_term(first, step):
    _, metrics = step(first, tiny.batch(0))
    roles = ("", "/kernel", "/embedding", "/scale")
    norms = {f"{of}_norm{role}" for of in ("grad", "param") for role in roles}
    counts = {"skipped", "skipped_in_a_row", "packed", "documents_per_row"}
    assert metrics.keys() == {"loss", "cross_entropy", "learning_rate"} | norms | counts
    assert metrics["loss"] == metrics["cross_entropy"]


def test_norms_by_role_make_up_the_whole(program, first, step):
    state, metrics = step(first, tiny.batch(0))
    squares = {"kernel": 0.0, "embedding": 0.0, "scale": 0.0}

    def add(path, parameter):
        value = np.float64(leaf_at(state["params"], path.split("/")))
        squares[parameter.role] += np.sum(np.square(value))

    map_parameters(add, program.trainer.model.parameters())
    for role, square in squares.items():
        found = metrics[f"param_norm/{role}"]
        np.testing.assert_allclose(found, np.sqrt(square), rtol=1e-6)
        assert metrics[f"grad_norm/{role}"] > 0
    whole = np.sqrt(sum(squares.values()))
    np.testing.assert_allclose(metrics["param_norm"], whole, rtol=1e-6)


def test_metrics_tell_how_full_the_rows_are(first, step):
    _, metrics = step(first, tiny.batch(0))
    real = tiny.batch(0)["segment_ids"] > 0
    assert metrics["packed"] == pytest.approx(real.mean())
    assert metrics["documents_per_row"] == 2


@pytest.fixture(scope="module")
def other_trainer():
    """With dropout, and with a second term in its loss."""
    config = tiny.experiment()
    config.model.decoder.stacks[0].layers[0].dropout.rate = 0.3
    config.loss.cross_entropy.z_loss = 0.1
    return tiny.program(config).trainer


@pytest.fixture(scope="module")
def other_step(other_trainer):
    return jax.jit(other_trainer.step)


def test_z_loss_is_part_of_the_objective(first, other_step):
    _, metrics = other_step(first, tiny.batch(0))
    assert float(metrics["z_loss"]) > 0
    total = float(metrics["cross_entropy"] + metrics["z_loss"])
    assert float(metrics["loss"]) == pytest.approx(total)


def test_dropout_follows_from_the_step(first, other_step):
    def loss(state):
        return float(other_step(state, tiny.batch(0))[1]["loss"])

    assert loss(first) == loss(first)
    assert loss(first) != loss(changed(first, step=np.int32(1)))


def test_evaluation_has_no_dropout(program, first, other_trainer):
    batch = program.place(tiny.batch(0))
    ours, _ = jax.jit(other_trainer.evaluate)(first, batch)
    whole, _ = jax.jit(program.trainer.evaluate)(first, batch)
    loss = "cross_entropy"
    np.testing.assert_allclose(ours[loss], whole[loss], rtol=1e-6)


def test_the_state_is_as_announced(program):
    state, abstract = program.init(), program.abstract_state()
    assert jax.tree.structure(state) == jax.tree.structure(abstract)

    def check(leaf, announced):
        assert (leaf.shape, leaf.dtype) == (announced.shape, announced.dtype)
        assert leaf.sharding.is_equivalent_to(announced.sharding, leaf.ndim)

    jax.tree.map(check, state, abstract)


def test_the_seed_makes_the_weights(first):
    config = tiny.experiment()
    config.seed = 1
    other = tiny.program(config).init()
    kernel = lambda state: state["params"]["head"]["kernel"]  # noqa: E731
    assert np.all(kernel(first) != kernel(other))


def test_flops_of_a_step_are_those_of_the_formula(program):
    """Six per weight and token, but for the embedding; attention counted half."""
    parameters = jax.tree.leaves(program.trainer.model.parameters())
    weights = sum(p.size for p in parameters if p.role == "kernel")
    tokens = tiny.ROWS * tiny.LENGTH
    layers, heads, width = 3, 4, 8
    attention = 3 * layers * 2 * tiny.LENGTH * heads * width
    assert program.model_flops() == tokens * (6 * weights + attention)


def test_numbers_out_of_range_are_refused():
    counts = {"eval_every": -1, "eval_batches": -2, "sample_tokens": -3}
    node = types.SimpleNamespace(log_every=0, goal=None, updates=(), **counts)
    assert list(Trainer.check_config(node)) == [
        "Trainer log_every (0) must be at least 1.",
        *(f"Trainer {k} ({v}) must not be negative." for k, v in counts.items()),
    ]


def test_a_step_is_read_in_one_sitting_and_mentions_no_feature():
    lines, _ = inspect.getsourcelines(Trainer.step)
    assert len(lines) < 60
    source = "".join(lines).lower()
    features = ("accumul", "zero", "mtp", "later", "moe", "router", "expert", "clip")
    features += ("muon", "spike", "average", "ema", "offload", "tile", "dropout")
    assert not [word for word in features if word in source]
