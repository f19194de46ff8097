"""The flags that all commands share, tried on a small command."""

import json
import subprocess
import sys

import pytest
from absl import flags

import maxfdl.launch  # noqa: F401 (defines --run_dir)
from maxfdl import commandline
from tests.commands import ROOT, Caller, complaint

PACKAGE = "tests.graph.toys"
SMALL = f"{PACKAGE}.experiments.small"


def tool(argv):
    cfg = commandline.config_from_flags()
    layer = cfg.model.layers[0]
    found = {
        "steps": cfg.steps,
        "remat": cfg.model.remat,
        "depth": len(cfg.model.layers),
        "layers": layer.__fn_or_cls__.__module__.split(".")[-2],
        "dtype": layer.q.dtype,
        "dot": layer.q.dot.__fn_or_cls__.__name__,
        "run_dir": flags.FLAGS.run_dir,
    }
    print(json.dumps(found))


@pytest.fixture
def command(monkeypatch, capsys):
    """Calls a small command that trusts the toys; returns code, output, errors."""
    call = Caller(monkeypatch, capsys)
    return lambda *args: call(tool, f"--trust={PACKAGE}", *args)


def result(done) -> dict:
    code, out, error = done
    assert (code, error) == (0, "")
    return json.loads(out)


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
            "invalid config: model.layers[0]: num_heads (3) must be a multiple of"
            " num_kv_heads (2).",
        ),
        (
            [f"--fdl_config={SMALL}", "--fdl_config_file=x.json"],
            "--fdl_config and --fdl_config_file are two configs; keep one.",
        ),
        (["--run_dir"], "Missing value for flag --run_dir"),
        (["--"], "'--' has no meaning here; pass flags, mutations and values."),
    ],
)
def test_mistakes_are_one_error_and_code_2(command, args, message):
    assert complaint(command(*args)) == message


def test_a_saved_graph_that_is_not_plain_json_is_refused(command, tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"root": {}, "objects": {}, "root": {}}')
    assert "has the key 'root' twice" in complaint(command(f"--fdl_config_file={path}"))
    path.write_text('{"root": {"value": Infinity}, "objects": {}}')
    assert "Infinity is not a finite" in complaint(command(str(path)))


def test_a_bug_in_an_experiment_keeps_its_traceback(command):
    with pytest.raises(ModuleNotFoundError, match="maxfdl_no_such_dependency"):
        command(f"--fdl_config={PACKAGE}.experiments.faulty")


def test_help_lists_experiments_mutations_and_paths(command):
    code, out, _ = command("--fdl_help", f"--fdl_config={SMALL}")
    assert code == 0
    assert f"  {SMALL}(size='7b', depth=2, label='')\n      One attention layer" in out
    assert "Mutations (--fiddler):" in out
    assert "\n  model.layers[0].num_heads\n" in out


@pytest.mark.parametrize("flag", ["--help", "-h", "--helpfull"])
def test_help_is_no_failure(command, flag):
    code, out, error = command(flag)
    assert (code, error) == (0, "") and "--fdl_config: " in out


def in_new_process(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_importing_the_flags_does_not_import_jax():
    code = (
        "import sys, maxfdl.__main__, maxfdl.commandline; print('jax' in sys.modules)"
    )
    assert in_new_process(code) == "False\n"


def test_all_commands_may_be_in_one_process():
    code = (
        "import maxfdl.__main__ as all, importlib; from absl import flags\n"
        "for name in sorted(all.COMMANDS): importlib.import_module(f'maxfdl.{name}')\n"
        "print('prompt' in flags.FLAGS, 'compilation_cache' in flags.FLAGS)"
    )
    assert in_new_process(code) == "True True\n"


def test_the_flags_may_be_defined_under_a_second_name():
    code = (
        "import runpy, maxfdl.commandline;"
        "runpy.run_module('maxfdl.commandline', run_name='again'); print('fine')"
    )
    assert in_new_process(code) == "fine\n"
