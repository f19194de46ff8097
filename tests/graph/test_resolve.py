"""From names to graphs, inside the allow-list and nowhere else."""

import os
import sys

import pytest

from maxfdl.errors import ConfigError, UserError
from maxfdl.graph import dump_json, resolve
from maxfdl.graph.resolve import load
from tests.graph.toys import PACKAGE, TRUST, mutations
from tests.graph.toys.experiments import small

SMALL = f"{PACKAGE}.experiments.small"
TO_LINEN = f"{PACKAGE}.mutations.to_linen"
FP8 = f"{PACKAGE}.mutations.enable_fp8"


def message(expression, trust=TRUST, sets=()) -> str:
    with pytest.raises(ConfigError) as error:
        resolve(expression, sets, trust)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_module_means_its_experiment():
    assert resolve(SMALL, trust=TRUST) == small.experiment()


def test_a_function_of_a_module_is_a_config_too():
    assert resolve(f"{SMALL}.attention(8)", trust=TRUST) == small.attention(8)


def test_arguments_are_typed_by_the_function():
    expected = small.experiment(size="13b", depth=1, label="1")
    for arguments in ('size="13b", depth=1, label=1', "13b, 1, '1'"):
        assert resolve(f"{SMALL}({arguments})", trust=TRUST) == expected


def test_mutations_follow_in_order():
    found = resolve(f"{SMALL}+{TO_LINEN}+{FP8}(forward=e5m2)", trust=TRUST)
    cfg = small.experiment()
    assert found == mutations.enable_fp8(mutations.to_linen(cfg), forward="e5m2")


def test_values_are_set_last():
    found = resolve(SMALL, ["steps=5", ("model.remat", "full")], TRUST)
    assert (found.steps, found.model.remat) == (5, "full")


def test_a_saved_graph_is_a_base(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(dump_json(small.experiment(), TRUST))
    found = resolve(f"{path}+{TO_LINEN}", trust=TRUST)
    assert found == mutations.to_linen(small.experiment())


@pytest.mark.parametrize(
    "expression, expected",
    [
        (
            f"{SMALL}(sise=7b)",
            f"{SMALL} has no argument 'sise'. Did you mean 'size'? It takes size,"
            " depth, label.",
        ),
        (
            f"{SMALL}(size=8b)",
            f"{SMALL}: size=8b: expected Literal['7b', '13b'], got str '8b'.",
        ),
        (f"{SMALL}(1, 2, 3, 4)", f"{SMALL} got 4 arguments. It takes size, depth, la"),
        (f"{SMALL}(7b, size=7b)", f"{SMALL} got size twice."),
        (
            f"{SMALL}+{FP8}(fwd=e5m2)",
            f"{FP8} has no argument 'fwd'. Did you mean 'forward'? It takes forward.",
        ),
        (
            f"{SMALL}+{TO_LINEN}(x=1)",
            f"{TO_LINEN} has no argument 'x'. It takes no arg",
        ),
        (
            f"{SMALL}+{PACKAGE}.mutations.to_linnen",
            f"{PACKAGE}.mutations has no 'to_linnen'. Did you mean '{TO_LINEN}'",
        ),
        (f"{SMALL}+to_linnen", "no mutation 'to_linnen'."),
        (f"{PACKAGE}.experiments.smal", f"has no 'smal'. Did you mean '{SMALL}'"),
        (f"{PACKAGE}.experiments", f"is a package; name one of its modules: {PACKAGE}"),
        (f"{PACKAGE}.ops", f"{PACKAGE}.ops has no function experiment() that returns"),
        (f"{SMALL}.not_a_graph", "must return a graph (fdl.Config), got 3."),
        (
            f"{SMALL}+{PACKAGE}.mutations.forgets_to_return",
            "forgets_to_return must return a graph (fdl.Config), got None.",
        ),
    ],
)
def test_mistakes_are_one_sentence(expression, expected):
    assert expected in message(expression)


@pytest.mark.parametrize(
    "expression",
    [
        "os.system",
        "os.system('true')",
        "subprocess.getoutput('true')",
        "builtins.eval('1')",
        "this",
        "antigravity.fly",
        "maxfdl.graph.resolve",
        "experiments_evil.run",
        f"{PACKAGE}.root.os.system('true')",
        f"{PACKAGE}.root.dataclasses",
        f"{PACKAGE}.mutations.swap",
        f"{PACKAGE}.experiments.small.__builtins__",
        f"{PACKAGE}.mutations._move",
        f"{PACKAGE}.root.Experiment",
        "../../x",
    ],
)
def test_nothing_outside_the_allow_list_is_reached(expression):
    message(expression)


def test_nothing_outside_the_allow_list_is_imported():
    name = f"{PACKAGE}.side_effect"
    assert "is not in experiments, fdl_configs." in message(name, trust=())
    assert "is not in experiments, fdl_configs." in message(f"{name}.run", trust=())
    assert "no mutation" in message(f"{SMALL}+{name}.run", trust=(SMALL,))
    assert name not in sys.modules
    assert "MAXFDL_TOY_SIDE_EFFECT" not in os.environ


def test_a_bug_inside_an_experiment_is_not_disguised_as_a_wrong_name():
    with pytest.raises(ModuleNotFoundError, match="maxfdl_no_such_dependency"):
        resolve(f"{PACKAGE}.experiments.faulty", trust=TRUST)
    with pytest.raises(NameError, match="undefined_name"):
        resolve(f"{SMALL}.broken", trust=TRUST)


def test_a_saved_graph_that_is_no_graph_is_named_with_its_file(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("{}")
    assert message(str(path)) == (
        f"{path}: this is not a saved graph: it has no 'root' object."
    )


def test_what_is_no_file_is_refused_without_opening_it(tmp_path):
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)  # opening it would wait for a writer
    for path in (pipe, tmp_path, tmp_path / "no.json"):
        with pytest.raises(UserError, match=str(path)):
            load(str(path))


def test_an_assignment_must_have_a_path_and_a_value():
    assert message(SMALL, sets=["steps"]) == "'steps' must be path=value."
