"""Every matrix product of a training step is that of a node, or has a reason not to be.

Whatever replaces `dot` in a graph, as FP8 will, then reaches all of them. The owner of
a product is the file of ours that asks for it, in the forward or the backward pass.
"""

import collections
import pathlib

import jax
import pytest
from jax._src import source_info_util
from jax.extend.core import jaxprs_in_params

import maxfdl
from experiments import zoo_smoke
from maxfdl import graph
from maxfdl.mutations import multi_token_prediction, vocab_tiling
from maxfdl.train.program import Program
from tests.hf.variants import FAMILIES

ROOT = pathlib.Path(maxfdl.__file__).parent
PRODUCTS = ("dot_general", "ragged_dot", "ragged_dot_general")
NODES = {"ops/dot.py", "ops/grouped_dot.py"}
REASONS = {
    "ops/attention.py": "scores, and values mixed by them: no kernel takes part",
    "ops/delta_rule.py": "reads and writes of a memory: no kernel takes part",
    "ops/routing.py": "logits of a router, which stay in float32 so that none tie",
}
FAST = ("deepseek_v3",)


def owners_in(jaxpr, known=None):
    """Yields the owner of each matrix product, at any depth."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in PRODUCTS:
            yield known or owner(equation)
        # What declares its cost is one call, whose inside does not tell who asked.
        is_declared = "declared_flops" in str(equation.params.get("name"))
        inside = known or (owner(equation) if is_declared else None)
        for inner in jaxprs_in_params(equation.params):
            yield from owners_in(inner, inside)


def owner(equation) -> str:
    frames = source_info_util.user_frames(equation.source_info.traceback)
    files = (pathlib.Path(frame.file_name) for frame in frames)
    ours = [f.relative_to(ROOT).as_posix() for f in files if f.is_relative_to(ROOT)]
    return ours[0] if ours else "none of ours"


def owners(config) -> collections.Counter:
    experiment = graph.build(config)
    trainer = experiment.make_trainer(experiment.make_sharding(jax.devices()[:1]))
    program = Program(trainer, experiment.batch_size, experiment.sequence_length)
    step = jax.make_jaxpr(trainer.step)
    traced = step(program.abstract_state(), program.abstract_batch())
    return collections.Counter(owners_in(traced.jaxpr))


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(name, marks=() if name in FAST else pytest.mark.slow)
        for name in (*FAMILIES, "gpt3")
    ],
)
def test_a_product_that_no_node_owns_has_a_reason(family):
    config = multi_token_prediction(zoo_smoke.experiment(family), depth=1)
    found = owners(config)
    assert found.keys() <= NODES | REASONS.keys(), found
    # Attention has four kernels, an MLP two, and each of them three products.
    assert found["ops/dot.py"] >= 3 * 5 and found["ops/attention.py"]


def test_the_products_of_a_tiled_loss_are_those_of_the_heads_dot():
    config = zoo_smoke.experiment("gemma2")
    whole, tiled = owners(config), owners(vocab_tiling(config, num_tiles=2))
    assert whole == tiled
