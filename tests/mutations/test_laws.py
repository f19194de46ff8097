"""The laws that every mutation keeps on every experiment."""

import collections
import functools
import itertools
import re

import fiddle as fdl
import pytest

from maxfdl import graph
from maxfdl.errors import ConfigError, MutationError
from maxfdl.graph.names import mutations
from maxfdl.ops.dot import Dot
from maxfdl.optim.schedules import WarmupCosine
from tests import golden
from tests.experiments.catalogue import MODULES, experiment
from tests.matrix.test_pairs import MATRIX
from tests.mutations.cases import (
    CASES,
    MUTATIONS,
    NOT_COMMUTING,
    OF_EXPERTS,
    OF_ROUTERS,
    apply,
    case,
)

each_mutation = pytest.mark.parametrize("name", MUTATIONS)


WITH_EXPERTS = "experiments.zoo_smoke(family=mixtral)"


@functools.cache
def target(expression: str, *names: str) -> fdl.Buildable:
    """Returns an experiment, with experts in its model if a mutation needs some; no
    test may change it."""
    cfg = experiment(expression)
    if not set(OF_EXPERTS).intersection(names):
        return cfg
    out = graph.copy(cfg)
    out.model = apply(experiment(WITH_EXPERTS), case("to_nnx").undo(cfg)).model
    return out


def each_on_each(test):
    """Every mutation on every experiment; the fast part takes one or two, in turns."""
    marks = [pytest.mark.slow]
    cases = [
        pytest.param(expression, name, marks=[] if (i - j) % 4 == 0 else marks)
        for i, expression in enumerate(MODULES)
        for j, name in enumerate(MUTATIONS)
    ]
    return pytest.mark.parametrize(("expression", "name"), cases)(test)


def pairs():
    """Every pair on every experiment; the slow part takes one for each, in turns, and
    the fast part a third of these. A test has all pairs with the same first mutation.
    """
    parts = collections.defaultdict(list)
    for i, (a, b) in enumerate(itertools.combinations(MUTATIONS, 2)):
        for j, expression in enumerate(MODULES):
            is_fast = not i % 3 and j == i // 3 % len(MODULES)
            is_slow = i % 3 and j == i % len(MODULES)
            part = "fast" if is_fast else "slow" if is_slow else "exhaustive"
            parts[expression, a, part].append(b)
    for (expression, a, part), others in parts.items():
        marks = [] if part == "fast" else [pytest.mark.slow]
        marks += [pytest.mark.exhaustive] if part == "exhaustive" else []
        name = f"{expression}-{a}-{part}"
        yield pytest.param(expression, a, others, marks=marks, id=name)


def assert_equal(a: fdl.Buildable, b: fdl.Buildable) -> None:
    """Like `a == b`, but fast, and a failure shows what differs."""
    assert graph.diff(a, b) == []


def test_every_entry_is_of_a_mutation():
    assert set(CASES) <= set(MUTATIONS)


@each_mutation
def test_it_says_in_one_sentence_what_it_does_for_the_run(name):
    doc = mutations()[name].__doc__ or ""
    first, second = (doc + "\n").split("\n")[:2]
    assert re.fullmatch(r"(?!Returns)[A-Z][a-z]+s .*\.", first) and not second.strip()
    assert "MutationError" in doc


@each_mutation
def test_a_word_in_place_of_the_node_that_it_puts_there_is_answered_with_its_name(name):
    """`optimizer.rule=muon` is answered with `use_muon`, and so on."""
    if name in ("to_linen", "to_nnx"):
        return  # they change nodes everywhere
    for path in replaced_nodes(name):
        with pytest.raises(ConfigError) as error:
            graph.set_value(target("experiments.llama2_nnx", name), path, "word")
        assert name in str(error.value)


def replaced_nodes(name: str) -> list[str]:
    """Paths of the nodes whose class changes when a mutation is applied."""
    before = target("experiments.llama2_nnx", name)
    kinds = [
        {path: fdl.get_callable(node) for path, node in graph.iterate(cfg) if path}
        for cfg in (before, apply(before, case(name).call))
    ]
    return [p for p in kinds[0] if p in kinds[1] and kinds[0][p] is not kinds[1][p]]


@each_on_each
def test_the_input_is_untouched(expression, name):
    cfg = graph.copy(target(expression, name))
    before = graph.as_text(cfg)
    out = apply(cfg, case(name).call)
    assert graph.as_text(cfg) == before and cfg == target(expression, name)
    nodes = {id(node) for _, node in graph.iterate(cfg)}
    assert not nodes & {id(node) for _, node in graph.iterate(out)}


@each_on_each
def test_twice_is_once(expression, name):
    once = apply(target(expression, name), case(name).call)
    assert_equal(apply(once, case(name).call), once)


@each_on_each
def test_the_inverse_restores_the_graph(expression, name):
    cfg = target(expression, name)
    assert apply(cfg, case(name).call, case(name).undo(cfg)) == cfg


@pytest.mark.parametrize(("expression", "a", "others"), [*pairs()])
def test_pairs_commute_or_the_later_wins(expression, a, others):
    for b in others:
        assert_commutes_or_wins(expression, a, b)


def assert_commutes_or_wins(expression, a, b):
    cfg, first, second = target(expression, a, b), case(a), case(b)
    both = apply(cfg, first.call, second.call)
    other_way = apply(cfg, second.call, first.call)
    if first.decides == second.decides:
        assert_equal(both, apply(cfg, second.call))
        assert_equal(other_way, apply(cfg, first.call))
    elif frozenset({a, b}) not in NOT_COMMUTING:
        assert_equal(both, other_way)


class OtherDot(Dot):
    """What a mutation for FP8, say, puts in the place of every product."""


def with_other_dots(cfg: fdl.Buildable) -> fdl.Buildable:
    out = graph.copy(cfg)
    for node in graph.nodes_of(out, Dot):
        graph.swap(node, OtherDot)
    return out


@each_on_each
def test_what_it_adds_multiplies_as_the_rest_of_the_graph_does(expression, name):
    cfg, call = target(expression, name), case(name).call
    assert_equal(apply(with_other_dots(cfg), call), with_other_dots(apply(cfg, call)))


@each_on_each
def test_the_result_is_valid_builds_and_is_saved(expression, name):
    cfg = target(expression, name)
    if name in OF_ROUTERS:
        with pytest.raises(ConfigError, match="router"):
            graph.validate(apply(cfg, case(name).call))
        cfg = experiment("experiments.zoo_smoke(family=deepseek_v3)")
    out = apply(cfg, case(name).call)
    assert graph.validate(out) is out
    assert graph.load_json(graph.dump_json(out)) == out
    assert graph.build(out) is not None


@pytest.mark.parametrize(
    "expression",
    [
        pytest.param(each, marks=pytest.mark.slow if i % 3 else ())
        for i, each in enumerate(MODULES)
    ],
)
def test_many_together_are_valid(expression):
    """In each row are as many as can be; every pair is in some row.

    Two replicas of an experiment do not halve the smallest batch of all: a row that
    does not choose a trainer has the standard one.
    """
    for row in MATRIX:
        calls = [case(name).call for name in row if name not in OF_ROUTERS]
        standard = apply(target(expression, *row), "use_standard_trainer")
        graph.validate(apply(standard, *calls))


@each_mutation
def test_without_its_target_it_says_what_there_is(name):
    cfg = fdl.Config(WarmupCosine, peak=1.0, warmup_steps=1)
    with pytest.raises(MutationError, match="in this graph, which holds WarmupCosine"):
        apply(cfg, case(name).call)


@each_mutation
def test_its_diff_is_the_golden_one(name):
    base = WITH_EXPERTS if name in OF_EXPERTS else "experiments.llama2_nnx"
    cfg, call = experiment(base), case(name).call
    lines = graph.diff(cfg, apply(cfg, call)) or ["identical"]
    golden.check(golden_of(name), "\n".join([f"{base}+{call}", *lines]) + "\n")


def test_no_golden_is_left_of_a_mutation_that_is_gone():
    names = {*map(golden_of, MUTATIONS)}
    assert {path.name for path in golden.FOLDER.glob("*.diff")} == names


def golden_of(name: str) -> str:
    return f"{'mixtral' if name in OF_EXPERTS else 'llama2_nnx'}+{name}.diff"
