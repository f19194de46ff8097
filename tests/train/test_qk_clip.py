"""QK-clip of one layer of attention of each kind, alone and in a stack."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxfdl.errors import MutationError
from maxfdl.layers.sinks import HeadScores, Max, SinkKey
from maxfdl.layers.watch import WatchScores
from maxfdl.mutations import gradient_accumulation, use_adamw, use_muonclip
from maxfdl.train.qk_clip import QkClip
from maxfdl.train.updates import Step
from tests import tiny
from tests.layers import families
from tests.layers.families import FEATURES, Case, assert_same_bits, on_vectors

TOKENS = np.random.default_rng(0).integers(0, families.VOCAB, (2, 12))


def grouped(family, heads):
    biased = families.linear(family, use_bias=True)
    return functools.partial(
        families.attention(family),
        query=biased,
        key=biased,
        num_kv_heads=heads,
        watch=WatchScores(),
    )


def latent(family):
    return functools.partial(families.latent_attention(family), watch=WatchScores())


KINDS = {
    "multi-head": functools.partial(grouped, heads=4),
    "grouped": functools.partial(grouped, heads=2),
    "multi-query": functools.partial(grouped, heads=1),
    "latent": latent,
}
# Parameters that a clip may change, by kind.
OF_QUERIES = {"query/kernel", "query/bias", "query/up/kernel"}
OF_KEYS = {"key/kernel", "key/bias"}


def scores_of(model, params):
    output = model.apply({"params": params, "state": {}}, jnp.asarray(TOKENS))
    ((_, sink),) = [x for x in output.sinks.items() if isinstance(x[1], HeadScores)]
    return output.sinks, np.asarray(sink.highest.value)


def leaves(tree):
    flat = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(e.key for e in path): np.asarray(leaf) for path, leaf in flat}


def clipped(model, params, threshold):
    sinks, before = scores_of(model, params)
    variables = {"params": params, "state": {}}
    update = QkClip(threshold=threshold)
    after, _ = update(variables, {}, Step(sinks, model.parameters(), jnp.array(True)))
    return before, after["params"], scores_of(model, after["params"])[1]


@pytest.mark.parametrize("family", ["nnx", "linen"])
@pytest.mark.parametrize("kind", KINDS)
def test_heads_above_the_threshold_end_there_and_others_keep_every_bit(kind, family):
    model = Case(KINDS[kind], {"features": FEATURES}, on_vectors).model(family)
    params = model.init(jax.random.key(1))["params"]
    # Biases that count, and heads of unlike scores.
    params = jax.tree.map(
        lambda x: 3.0 * x + 0.1 * jnp.cos(jnp.arange(x.size)).reshape(x.shape), params
    )
    _, before = scores_of(model, params)
    threshold = float(np.sort(before)[-2] * 0.999)  # two heads are above
    before, after, scores = clipped(model, params, threshold)
    above = before > threshold
    assert above.sum() == 2
    np.testing.assert_allclose(scores[above], threshold, rtol=1e-3)
    assert scores[~above].tobytes() == before[~above].tobytes()
    old, new = leaves(params["layer"]), leaves(after["layer"])
    changed = {name for name in old if np.any(old[name] != new[name])}
    own_keys = kind in ("multi-head", "latent")
    assert changed <= OF_QUERIES | (OF_KEYS if own_keys else set())
    assert changed & OF_QUERIES and bool(changed & OF_KEYS) == own_keys
    for name in changed:
        heads = -2  # [..., heads, head_dim]
        kept = np.take(new[name], np.flatnonzero(~above), axis=heads)
        assert_same_bits(kept, np.take(old[name], np.flatnonzero(~above), axis=heads))


def test_nothing_changes_below_the_threshold():
    model = Case(latent, {"features": FEATURES}, on_vectors).model("nnx")
    params = model.init(jax.random.key(1))["params"]
    _, after, _ = clipped(model, params, 1e6)
    assert_same_bits(after, params)


def test_layers_of_a_stack_are_clipped_one_by_one():
    """MaxText takes the maximum over layers: D6 of the facts."""
    update = QkClip(threshold=100.0)
    program = tiny.program(tiny.experiment(use_muonclip))
    params, declared = tiny.begin(program)["params"], program.trainer.model.parameters()
    highest = np.float32([[50, 200, 400, 100], [100, 99, 10, 1], [1, 1, 1, 1600]])
    sink = HeadScores(Max(jnp.asarray(highest)))
    path = ("decoder", "stacks_0", "layers_0", "attention")
    step = Step({SinkKey(path, "scores"): sink}, declared, jnp.array(True))
    new, _ = update({"params": params, "state": {}}, {}, step)
    old, new = leaves(params), leaves(new["params"])
    factors = np.minimum(1.0, 100.0 / highest)[:, None, :, None]  # [L, D, H, K]
    name = "/".join((*path, "query", "kernel"))
    np.testing.assert_allclose(new[name], old[name] * factors, rtol=1e-6)
    assert {k for k in old if np.any(old[k] != new[k])} == {name}


def test_a_run_reports_and_bounds_the_scores():
    config = tiny.experiment(functools.partial(use_muonclip, threshold=0.5))
    config.optimizer.schedule.peak = 0.0  # what moves is the clip's
    program = tiny.program(config)
    run, state = program.compile_step().run, tiny.begin(program)
    found = []
    for _ in range(4):
        state, metrics = run(state, program.place(tiny.batch(0)))
        found.append(float(metrics["max_logit"]))
    assert found[0] > 0.55 and found[-1] <= 0.5 * (1 + 1e-3)


@pytest.mark.slow
def test_maxima_of_microbatches_are_compared_and_not_added():
    """MaxText adds them: D2 of the facts."""
    whole = tiny.program(tiny.experiment(use_muonclip))
    parts = functools.partial(gradient_accumulation, steps=4)
    cut = tiny.program(tiny.experiment(use_muonclip, parts))
    state = tiny.begin(whole)
    values = [
        jax.jit(p.trainer.step)(state, p.place(tiny.batch(0)))[1]["max_logit"]
        for p in (whole, cut)
    ]
    np.testing.assert_allclose(values[1], values[0], rtol=1e-6)


def test_norms_of_queries_refuse_it_and_use_adamw_takes_it_out():
    config = tiny.experiment()
    assert use_adamw(use_muonclip(config)) == config
    attention = config.model.decoder.stacks[0].layers[0].attention
    attention.query_norm = config.model.final_norm
    with pytest.raises(MutationError, match="undo what QK-clip does"):
        use_muonclip(config)
