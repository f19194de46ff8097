"""The flags that all commands share, tried on a small command."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = "tests.graph.toys"
SMALL = f"{PACKAGE}.experiments.small"
COMMAND = """\
import json
from absl import flags
from maxfdl import commandline

flags.DEFINE_string("run_dir", None, "Where.")


def main(argv):
    cfg = commandline.config_from_flags()
    layer = cfg.model.layers[0]
    print(json.dumps({
        "steps": cfg.steps, "remat": cfg.model.remat, "depth": len(cfg.model.layers),
        "layers": layer.__fn_or_cls__.__module__.split(".")[-2], "dtype": layer.q.dtype,
        "dot": layer.q.dot.__fn_or_cls__.__name__, "run_dir": flags.FLAGS.run_dir}))


if __name__ == "__main__":
    commandline.run(main)
"""


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """Runs many command lines in one process each; returns code, output, errors."""
    path = tmp_path_factory.mktemp("command") / "tool.py"
    path.write_text(COMMAND)

    def run(*args: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, str(path), f"--trust={PACKAGE}", *args],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stdout, done.stderr

    return run


def result(done) -> dict:
    code, out, error = done
    assert code == 0, error
    return eval(out.replace("null", "None"))


def complaint(done) -> str:
    code, out, error = done
    assert (code, out) == (2, "") and "Traceback" not in error
    assert error.startswith("error: ")
    return error.removeprefix("error: ").rstrip("\n")


def test_every_spelling_reaches_the_graph(command, tmp_path):
    overrides = tmp_path / "overrides.py"
    overrides.write_text(
        "from ml_collections import config_dict\n"
        "def get_config():\n"
        "    return config_dict.ConfigDict({'model': {'remat': 'dots'}, 'steps': 1})\n"
    )
    found = result(
        command(
            "--fdl_set=steps=7",
            f"--fiddler={PACKAGE}.mutations.to_linen",
            "--run_dir",
            "to_nnx",
            f"{PACKAGE}.mutations.enable_fp8(e5m2)",
            f"--fdl_overrides={overrides}",
            "--fdl_tags_set=ComputeDType=bfloat16",
            f"--fdl_config={SMALL}(depth=3)",
        )
    )
    assert found == {
        "steps": 7,  # values come after the file, wherever they stand
        "remat": "dots",
        "depth": 3,
        "layers": "linen",
        "dtype": "bfloat16",
        "dot": "Fp8Dot",
        "run_dir": "to_nnx",
    }


def test_a_config_may_stand_alone_with_mutations_and_values(command):
    found = result(
        command(
            f"{SMALL}(depth=1)+{PACKAGE}.mutations.enable_fp8",
            "model.remat=full",
            f"{PACKAGE}.mutations.to_linen",
            "--fdl.steps=5",
            "steps=6",
        )
    )
    assert (found["remat"], found["steps"], found["depth"]) == ("full", 6, 1)
    assert (found["layers"], found["dot"]) == ("linen", "Fp8Dot")


@pytest.mark.parametrize(
    "args, message",
    [
        (
            [],
            "no config is named; pass --fdl_config=experiments.NAME (--fdl_help lists"
            " them).",
        ),
        (
            ["--fdl_confg=x"],
            "unknown flag --fdl_confg. Did you mean 'fdl_config' or 'fdl_config_file'?",
        ),
        (
            [f"--fdl_config={SMALL}", "--fdl_set=model.remat=ful"],
            "model.remat=ful: expected Literal['none', 'full', 'dots'], got str 'ful'."
            " Did you mean 'full'?",
        ),
        (
            [f"--fdl_config={SMALL}", "stps=3"],
            "no such path 'stps': <root> (Experiment) has no field 'stps'. Did you mean"
            " 'steps'?",
        ),
        (
            [f"--fdl_config={SMALL}", f"--fiddler={PACKAGE}.mutations.to_linnen"],
            f"{PACKAGE}.mutations has no 'to_linnen'. Did you mean"
            f" '{PACKAGE}.mutations.to_linen' or '{PACKAGE}.mutations.to_nnx' or"
            f" '{PACKAGE}.mutations'?",
        ),
        (
            [f"--fdl_config={SMALL}", "model.layers[0].num_heads=3"],
            "invalid config:\n  model.layers[0]: num_heads (3) must be a multiple of"
            " num_kv_heads (2).",
        ),
        (
            [f"--fdl_config={SMALL}", "--fdl_config_file=x.json"],
            "--fdl_config and --fdl_config_file are two configs; keep one.",
        ),
        (["--run_dir"], "Missing value for flag --run_dir"),
    ],
)
def test_mistakes_are_one_error_and_code_2(command, args, message):
    assert complaint(command(*args)) == message


def test_a_bug_in_an_experiment_keeps_its_traceback(command):
    code, _, error = command(f"--fdl_config={PACKAGE}.experiments.faulty")
    assert code not in (0, 2)
    assert "Traceback" in error and "maxfdl_no_such_dependency" in error


def test_help_lists_experiments_mutations_and_paths(command):
    code, out, _ = command("--fdl_help", f"--fdl_config={SMALL}")
    assert code == 0
    assert f"{SMALL}        One attention layer, twice." in out
    assert "Mutations (--fiddler):" in out
    assert "\n  model.layers[0].num_heads\n" in out


def in_new_process(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_importing_the_flags_does_not_import_jax():
    code = "import sys, maxfdl.commandline; print('jax' in sys.modules)"
    assert in_new_process(code) == "False\n"


def test_the_flags_may_be_defined_under_a_second_name():
    code = (
        "import runpy, maxfdl.commandline;"
        "runpy.run_module('maxfdl.commandline', run_name='again'); print('fine')"
    )
    assert in_new_process(code) == "fine\n"
