"""`python -m maxfdl.diff A B`."""

import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = "tests.graph.toys"
SMALL = f"{PACKAGE}.experiments.small"
LINEN = f"{SMALL}+{PACKAGE}.mutations.to_linen"
FP8 = f"{SMALL}+{PACKAGE}.mutations.enable_fp8"


@pytest.fixture
def diff(capsys, monkeypatch):
    """Runs the command; returns code, output, errors."""
    from maxfdl.diff import main

    monkeypatch.syspath_prepend(str(ROOT))

    def run(*args: str) -> tuple[int, str, str]:
        try:
            code = main([f"--trust={PACKAGE}", *args])
        except SystemExit as e:
            code = e.code
        return code, *capsys.readouterr()

    return run


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
    assert diff(SMALL, FP8, "--only=model.layers[0]")[0] == 1


def test_the_difference_as_a_fiddler_turns_one_into_the_other(diff):
    code, out, _ = diff(SMALL, FP8, "--as=fiddler")
    assert code == 1
    namespace = {}
    exec(out, namespace)
    sys.path.insert(0, str(ROOT))
    from maxfdl.graph import resolve

    cfg = resolve(SMALL, trust=(PACKAGE,))
    namespace["fiddler"](cfg)
    assert cfg == resolve(FP8, trust=(PACKAGE,))


@pytest.mark.parametrize(
    "args, message",
    [
        ([SMALL], "the following arguments are required: B"),
        ([SMALL, SMALL, "--ony=x"], "unknown flag --ony. Did you mean '--only'?"),
        ([SMALL, "os.system"], "'os.system' is not in experiments, fdl_configs,"),
        ([SMALL, "missing.json"], "there is no file 'missing.json'."),
        ([SMALL, SMALL, "--only=modle"], "no such path 'modle'. Did you mean 'model'?"),
        ([SMALL, SMALL, "--as=x"], "argument --as: invalid choice: 'x'"),
    ],
)
def test_trouble_is_one_line_and_code_2(diff, args, message):
    code, out, error = diff(*args)
    assert (code, out) == (2, "")
    assert error.startswith(f"error: {message}") and error.count("\n") == 1


def test_a_bug_in_an_experiment_is_trouble_too(diff):
    code, out, error = diff(SMALL, f"{PACKAGE}.experiments.faulty")
    assert (code, out) == (2, "") and "maxfdl_no_such_dependency" in error
