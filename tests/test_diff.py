"""`python -m maxfdl.diff A B`."""

import pytest

from maxfdl.diff import main
from tests.commands import Caller

PACKAGE = "tests.graph.toys"
SMALL = f"{PACKAGE}.experiments.small"
LINEN = f"{SMALL}+{PACKAGE}.mutations.to_linen"
FP8 = f"{SMALL}+{PACKAGE}.mutations.enable_fp8"


@pytest.fixture
def diff(monkeypatch, capsys):
    """Calls the command; returns code, output, errors."""
    call = Caller(monkeypatch, capsys)
    return lambda *args: call(main, *args, f"--trust={PACKAGE}", takes_config=False)


def test_equal_graphs_are_identical(diff):
    assert diff(SMALL, f"{LINEN}+{PACKAGE}.mutations.to_nnx") == (0, "identical\n", "")


def test_different_graphs_show_lines(diff):
    code, out, error = diff(SMALL, LINEN)
    assert (code, error) == (1, "")
    assert out == (
        f"* {PACKAGE}.nnx -> {PACKAGE}.linen  (7 nodes: Attention, Decoder, Linear)\n"
    )


def test_only_one_path_can_be_looked_at(diff):
    assert diff(SMALL, FP8, "--only=model.features")[:2] == (0, "identical\n")
    assert diff("--only", "model.layers[0]", SMALL, FP8)[0] == 1


def test_the_difference_as_a_fiddler_turns_one_into_the_other(diff):
    code, out, _ = diff(SMALL, FP8, "--as=fiddler")
    assert code == 1
    namespace = {}
    exec(out, namespace)
    from maxfdl.graph import resolve

    cfg = resolve(SMALL, trust=(PACKAGE,))
    namespace["fiddler"](cfg)
    assert cfg == resolve(FP8, trust=(PACKAGE,))


@pytest.mark.parametrize(
    "args, message",
    [
        ([SMALL], "diff compares two graphs, A and B; it got 1."),
        ([SMALL, SMALL, SMALL], "diff compares two graphs, A and B; it got 3."),
        ([SMALL, SMALL, "--ony=x"], "unknown flag --ony. Did you mean 'only'?"),
        ([SMALL, "os.system"], "'os.system' is not in experiments, fdl_configs,"),
        ([SMALL, "missing.json"], "there is no file 'missing.json'."),
        ([SMALL, SMALL, "--only=modle"], "no such path 'modle'. Did you mean 'model'?"),
        ([SMALL, SMALL, "--as=x"], "flag --as=x: value should be one of <lines|fid"),
        ([SMALL, SMALL, "--fdl_set=a=1"], "--fdl_set has no meaning here."),
    ],
)
def test_trouble_is_one_line_and_code_2(diff, args, message):
    code, out, error = diff(*args)
    assert (code, out) == (2, "")
    assert error.startswith(f"error: {message}") and error.count("\n") == 1


def test_experiments_are_compared(diff):
    name = "experiments.llama2_nnx"
    assert diff(name, f"{name}+to_linen+to_nnx") == (0, "identical\n", "")
    code, out, _ = diff(name, f"{name}+to_linen")
    assert code == 1 and len(out.splitlines()) < 24
    assert out.startswith("* maxfdl.layers.nnx -> maxfdl.layers.linen  (18 nodes: ")
    assert diff(name, f"{name}+to_linnen") == (
        2,
        "",
        "error: no mutation 'to_linnen'. Did you mean 'to_linen' or 'to_nnx'?\n",
    )


def test_a_bug_in_an_experiment_is_trouble_too(diff):
    code, out, error = diff(SMALL, f"{PACKAGE}.experiments.faulty")
    assert (code, out) == (2, "") and "maxfdl_no_such_dependency" in error
