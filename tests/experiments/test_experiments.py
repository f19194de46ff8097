"""What every experiment must be, whatever it trains."""

import re

import jax
import pytest

from maxfdl import graph
from maxfdl.graph.names import config_names, find_config
from tests import golden
from tests.experiments.catalogue import experiment, expressions


def golden_name(expression: str) -> str:
    """`experiments.llama2_nnx(size=7b)` becomes `llama2_nnx-7b.txt`."""
    short = expression.removeprefix("experiments.")
    return re.sub(r"\(size=(\w+)\)", r"-\1", short) + ".txt"


@pytest.mark.parametrize("expression", expressions())
def test_the_text_is_the_golden_one(expression):
    golden.check(golden_name(expression), graph.as_text(experiment(expression)))


@pytest.mark.parametrize("expression", expressions())
def test_it_is_valid_and_is_the_same_each_time(expression):
    assert graph.validate(graph.resolve(expression)) == experiment(expression)


@pytest.mark.parametrize("expression", expressions())
def test_saved_and_loaded_it_is_equal(expression):
    saved = graph.dump_json(experiment(expression))
    assert graph.load_json(saved) == experiment(expression)


@pytest.mark.parametrize("expression", expressions())
def test_two_builds_of_it_are_equal(expression):
    cfg = experiment(expression)
    assert graph.build(cfg) == graph.build(cfg)


@pytest.mark.parametrize("module", config_names(["experiments"]))
def test_it_is_one_line_in_the_help(module):
    assert find_config(module).__doc__, f"{module}.experiment needs a docstring."


@pytest.mark.parametrize(
    "size, count",
    [("7b", 6_738_415_616), ("13b", 13_015_864_320), ("70b", 68_976_648_192)],
)
def test_llama2_has_the_published_number_of_parameters(size, count):
    model = graph.build(experiment(f"experiments.llama2_nnx(size={size})")).make_model()
    assert sum(p.size for p in jax.tree.leaves(model.parameters())) == count


def test_llama2_linen_is_llama2_nnx_in_linen():
    for size in ("tiny", "7b"):
        linen = graph.resolve(f"experiments.llama2_linen(size={size})")
        assert linen == graph.resolve(f"experiments.llama2_nnx(size={size})+to_linen")


def test_no_golden_is_left_of_what_is_gone():
    names = {golden_name(each) for each in expressions()}
    assert {path.name for path in golden.FOLDER.glob("*.txt")} == names
