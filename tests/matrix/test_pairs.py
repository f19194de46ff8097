"""Every pair of mutations together, in each kind of network.

Rows of a covering array hold every pair at least once. Each row compiles and takes one
finite step; where its mutations promise the same numbers, its loss, its terms and the
norms of its gradients are those of the plain graph in NNX on one device.
"""

import functools
import itertools

import jax
import numpy as np
import pytest

from experiments import zoo_smoke
from maxfdl import graph
from maxfdl.mutations import mesh, router_losses, selection_bias, to_linen
from maxfdl.ops.state import StateDeclaration
from maxfdl.train.program import Program
from tests import tiny
from tests.matrix.covering import NONE, covering
from tests.mutations.cases import CASES, apply

ROWS, LENGTH = 64, 16
NETWORKS = {"llama": "llama2", "mixtral": "mixtral", "deepseek": "deepseek_v3"}
# What suits batches of this size, and terms that are sums over the rows of a batch.
CALLS = {name: case.call for name, case in CASES.items()} | {
    "batch_ramp_up": "batch_ramp_up(start=32, steps=8)",
    # Room for all, whatever they choose.
    "capacity": "capacity(factor=4.0)",
    "dropless": "dropless(room_factor=4.0)",
    "multi_token_prediction": "multi_token_prediction(depth=1)",
    # What MuonClip scales must be trained.
    "quantize_weights": 'quantize_weights(format=int4, group=8, skip=["attention"])',
    "router_losses": "router_losses(sequence_balance=1e-2, z=1e-3)",
    "use_diloco": "use_diloco(num_replicas=2, sync_period=1)",
}
# Ways to do the same, of which rows take one each, in turns.
WAYS = {
    "enable_fp8": (
        "enable_fp8",
        "enable_fp8(granularity=channel)",
        "enable_fp8(recipe=delayed, history=4)",
        "enable_fp8(recipe=block, size=16)",
    ),
    "moment_storage": (
        "moment_storage(kind=eight_bit, block_size=64)",
        "moment_storage(kind=bfloat16)",
    ),
    "pipeline": (
        "pipeline(stages=2, microbatches=2)",
        'pipeline(stages=2, microbatches=2, schedule="1f1b")',
        "pipeline(stages=1, microbatches=2, repeats=2, hold_weights=True,"
        ' schedule="1f1b")',
    ),
    "quantize": (
        "quantize",
        "quantize(backward=True, rounding=stochastic)",
        "quantize(format=mxfp8, backward=True)",
        "quantize(format=nvfp4)",
    ),
}
# Networks that have nothing to apply it to, and refuse it.
WITHOUT = {
    "capacity": ("llama",),
    "dropless": ("llama",),
    "router_losses": ("llama",),
    "selection_bias": ("llama", "mixtral"),
}
# Loss and gradients of the first step depend on these alone.
CHANGES = (
    "batch_ramp_up",
    "enable_fp8",
    "freeze",
    "multi_token_prediction",
    "quantize",
    "quantize_weights",
    "router_losses",
)
# Replicas and microbatches of products in few bits have scales of their own.
LESS_EXACT = ("compute_dtype", "enable_fp8", "param_dtype", "quantize")


def choices():
    """Returns what there is to choose from: mutations that decide the same, or none."""
    decided = {}
    for name, case in CASES.items():
        decided.setdefault(case.decides, [NONE]).append(name)
    del decided["family"], decided["text"]  # the same step, and other tokens
    return list(decided.values())


MATRIX = [tuple(sorted(set(row) - {NONE})) for row in covering(choices())]


def calls_of(row):
    """Returns what the mutations of a row of the matrix are called with."""
    return CALLS | {
        name: ways[sum(name in each for each in MATRIX[:row]) % len(ways)]
        for name, ways in WAYS.items()
    }


def plain(network):
    config = zoo_smoke.experiment(NETWORKS[network])
    config.batch_size, config.sequence_length = ROWS, LENGTH
    config.model.embedding.initializer.stddev = 1.0
    config.optimizer.schedule.warmup_steps = 0
    for stack in config.model.decoder.stacks:
        stack.repeats = min(stack.repeats, 2)
    config = selection_bias(router_losses(config), rate=0.0)
    return mesh(config, data=-1, fsdp=1, tensor=1)


@functools.cache
def weights(network, *calls):
    """Returns parameters on the host."""
    model = graph.build(apply(plain(network), *calls)).make_model()
    return jax.device_get(tiny.weights(model))


def step(config, network, calls, devices):
    """Returns parameters before and after the first step, its state and its metrics."""
    experiment = graph.build(graph.validate(config))
    trainer = experiment.make_trainer(experiment.make_sharding(jax.devices()[:devices]))
    program = Program(trainer, experiment.batch_size_at(1), LENGTH)
    drawn = {"multi_token_prediction", "param_dtype", "quantize_weights"} & calls.keys()
    params = weights(network, *[calls[name] for name in sorted(drawn)])
    state = jax.tree.map(StateDeclaration.first, trainer.model.state())
    state = program.start_from({"params": params, "state": state})
    run = jax.jit(trainer.step, out_shardings=(trainer.state_shardings(), None))
    lowered = run.lower(program.abstract_state(), program.abstract_batch())
    batch = next(iter(experiment.make_batches(experiment.make_data(trainer.model))))
    state, found = lowered.compile()(state, program.place(batch))
    metrics = trainer.reported(1, jax.device_get(found))
    kind = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)  # noqa: E731
    assert kind(state) == kind(program.abstract_state())  # fit for the next step
    return params, jax.device_get(state), metrics


@functools.cache
def reference(network, calls):
    calls = dict(calls)
    return step(apply(plain(network), *calls.values()), network, calls, devices=1)[2]


def test_the_matrix_holds_every_way():
    for name, ways in WAYS.items():
        rows = [
            calls_of(row)[name] for row, names in enumerate(MATRIX) if name in names
        ]
        assert set(rows) == set(ways)


def test_the_matrix_holds_every_pair():
    names = {name for row in choices() for name in row} - {NONE}
    together = {pair for row in MATRIX for pair in itertools.combinations(row, 2)}
    for a, b in itertools.combinations(sorted(names), 2):
        assert (a, b) in together or CASES[a].decides == CASES[b].decides


def cases():
    """Each row in each network and family; CI takes one of each row, in turns."""
    kinds = [*itertools.product(NETWORKS, ("nnx", "linen"))]
    for i, names in enumerate(MATRIX):
        for j, (network, family) in enumerate(kinds):
            marks = [pytest.mark.slow]
            marks += [] if j == i % len(kinds) else [pytest.mark.exhaustive]
            calls = {name: calls_of(i)[name] for name in names}
            case = f"{network}-{family}-{i}"
            yield pytest.param(network, family, calls, marks=marks, id=case)


@pytest.mark.parametrize(("network", "family", "calls"), [*cases()])
def test_together_they_take_a_step(network, family, calls):
    config = plain(network)
    if family == "linen":
        config = to_linen(config)
    calls = {n: call for n, call in calls.items() if network not in WITHOUT.get(n, ())}
    config = apply(config, *calls.values())
    devices = 8 if {"mesh", "zero1"} & calls.keys() else 1
    before, after, metrics = step(config, network, calls, devices)

    assert all(np.all(np.isfinite(value)) for value in metrics.values())
    assert metrics["skipped"] == 0 and after["step"] == 1
    for leaf in jax.tree.leaves(after):
        assert np.all(np.isfinite(leaf))
    moved = jax.tree.map(lambda a, b: np.any(a != b), before, after["params"])
    assert any(jax.tree.leaves(moved))  # small steps are lost on bfloat16 scales of 1

    changes = tuple((name, calls[name]) for name in CHANGES if name in calls)
    expected = reference(network, changes)
    rtol = 5e-2 if set(LESS_EXACT) & calls.keys() else 1e-5
    # A token may choose another expert after other roundings: counts move by wholes.
    others = ["expert_load"] if {"enable_fp8", "quantize"} & calls.keys() else []
    # Replicas have experts and gradients of their own rows; losses are their mean.
    if "use_diloco" in calls:
        others += ["expert_load", "grad_norm", "later_token"]
        # They weigh later tokens by what their own rows have of them.
        rtol = max(rtol, 1e-4) if "multi_token_prediction" in calls else rtol
    # A scaled loss is beyond what FP8 holds while the history of gradients is empty.
    if "delayed" in calls.get("enable_fp8", "") and "loss_scale" in calls:
        others += ["grad_norm"]
    assert expected.keys() <= metrics.keys()
    for name, value in expected.items():
        if not name.startswith(("param_norm", "learning_rate", *others)):
            np.testing.assert_allclose(
                np.float32(metrics[name]), value, rtol=rtol, err_msg=name
            )
