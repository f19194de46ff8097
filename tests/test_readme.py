"""README's commands work as they stand.

The fast part takes each to the point where it would begin to train. The slow part runs
all of them to the end, one after the other in one folder, with sizes that suit a test.
"""

import importlib
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tomllib

import pytest

from maxfdl import graph
from maxfdl.__main__ import COMMANDS
from maxfdl.report import zoo
from maxfdl.run import loop
from tests import goldens
from tests.commands import ROOT, Caller

README = (ROOT / "README.md").read_text("utf-8")
PROCESSES = ("--coordinator=", "--num_processes=", "--process_id=")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[list[str]]:
    """Every command of every block, in words."""
    lines = "".join(blocks("sh")).splitlines()
    return [shlex.split(part) for line in lines for part in line.split(" && ")]


def is_ours(words: list[str]) -> bool:
    return words[0] == "maxfdl" or words[:2] == ["python", "-m"]


OURS = [words for words in commands() if is_ours(words)]


def parsed(words: list[str]) -> tuple[str, list[str]]:
    """Returns the name of the command, and its arguments.

    Which of several processes this is they do not say: see tests/run for such runs.
    """
    name, *args = words[1:] if words[0] == "maxfdl" else words[2:]
    return name.removeprefix("maxfdl."), [
        a for a in args if not a.startswith(PROCESSES)
    ]


def is_for_tpus(words: list[str]) -> bool:
    """Returns whether a command asks libtpu for devices, which need not be here."""
    return any(word.startswith("--topology") for word in words)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> pathlib.Path:
    """A working directory with the files that README speaks of."""
    import pyarrow
    import pyarrow.parquet

    monkeypatch.chdir(tmp_path)
    texts = [f"Once upon a time, {word} of them. " * 40 for word in ("one", "two")] * 40
    notes = tmp_path / "notes" / "old"
    notes.mkdir(parents=True)
    for i, text in enumerate(texts):
        (notes.parent if i % 2 else notes).joinpath(f"{i}.txt").write_text(text)
    lines = [json.dumps({"body": text}) for text in texts]
    (tmp_path / "more.jsonl").write_text("\n".join(lines))
    (tmp_path / "corpus").mkdir()
    table = pyarrow.table({"text": texts})
    pyarrow.parquet.write_table(table, tmp_path / "corpus/a.parquet")
    model_folder(tmp_path / "models/x")
    maxtext = goldens.FOLDER / "maxtext" / "llama2_linen024_param_only"
    shutil.copytree(maxtext, tmp_path / "old/maxtext")
    return tmp_path


def model_folder(path: pathlib.Path) -> None:
    """The golden Llama 3, with a tokenizer of words."""
    import tokenizers
    from tokenizers import models, pre_tokenizers

    path.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(goldens.FOLDER / "llama3" / name, path / name)
    words = "? upon a time, one two of them. What is the capital France? Once".split()
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(path / "tokenizer.json"))


@pytest.fixture
def call(monkeypatch, capsys):
    """Calls a command of README by its words, with more arguments."""
    caller = Caller(monkeypatch, capsys)
    few = {name: zoo.MODELS[name] for name in ("gpt3_52k", "smollm2_135m")}
    monkeypatch.setattr(zoo, "MODELS", few)

    def run(words: list[str], *more: str, main=None):
        name, args = parsed(words)
        module = importlib.import_module(f"maxfdl.{name}")
        if hasattr(module, "__path__"):  # a package that is a command, too
            module = importlib.import_module(f"maxfdl.{name}.__main__")
        takes_config = name not in ("checkpoint", "diff", "plot")
        return caller(main or module.main, *args, *more, takes_config=takes_config)

    return run


def test_all_commands_are_in_it():
    assert {parsed(words)[0] for words in OURS} == COMMANDS.keys()


def test_what_it_installs_is_there():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    named = re.findall(r"'?\.\[(\w+)\]", README)
    assert named and set(named) <= extras.keys()
    assert project["scripts"] == {"maxfdl": "maxfdl.__main__:main"}
    others = [words for words in commands() if not is_ours(words)]
    assert {words[0] for words in others} == {"pip", "pytest"}


@pytest.mark.parametrize("words", OURS, ids=shlex.join)
def test_it_is_understood_as_it_stands(words, folder, call, monkeypatch):
    """Graphs are made, changed and checked; nothing is trained."""
    begun = []
    monkeypatch.setattr(loop, "run", lambda *args: begun.append(args[0]))
    name, args = parsed(words)
    makers = ("bench", "checkpoint", "convert", "generate", "plot", "quantize")
    if name in makers or is_for_tpus(words):
        done = call(words, main=lambda argv: None)  # the flags are known
    else:
        done = call(words)
    assert done[0] == (1 if name == "diff" else 0) and done[2] == ""
    assert len(begun) == (name == "launch" and "--fdl_help" not in args)


def test_the_experiment_that_it_writes_is_valid():
    namespace = {}
    exec(blocks("python")[-1], namespace)
    graph.validate(namespace["experiment"]())


SMALL = (
    "steps=2",
    "batch_size=64",
    "sequence_length=16",
    "trainer.log_every=1",
    "trainer.eval_batches=1",
    "model.features=64",
    "model.decoder.stacks[0].repeats=1",
)


def smaller(words: list[str]) -> list[str]:
    """Returns what to append to a command so that it takes seconds."""
    name, args = parsed(words)
    if "--accelerator" in args:
        return ["--accelerator_only=product"]
    if name == "aot":
        return SMALL
    if name == "bench":
        return [*SMALL, "--steps=1", "--warmup=0"]
    if name == "generate":
        return ["--max_new_tokens=3"]
    if name != "launch" or "--fdl_help" in args:
        return []
    if "fine_tune" in args[0]:
        return [each for each in SMALL if not each.startswith("model")]
    more = [*SMALL]
    if "pretrain" in args[0]:
        more += ["model.vocab_size=512", "optimizer.schedule.warmup_steps=1"]
        more += [] if "tokenizer" in args[0] else ["data.tokenizer.vocab_size=300"]
    if any(each.startswith("pipeline") for each in args):
        more += ["model.decoder.stacks[0].repeats=2"]
    if any("num_experts" in each for each in args):
        more += ["model.vocab_size=512"]
        more += ["model.decoder.stacks[0].layers[0].mlp.experts.hidden=32"]
    if any("size=7b" in each for each in args):
        more += ["model.decoder.stacks[0].layers[0].mlp.hidden=32"]
        heads = ("num_heads", "num_kv_heads")
        attention = "model.decoder.stacks[0].layers[0].attention"
        more += [f"{attention}.{each}=4" for each in heads]
    if any(each.startswith("mesh(data=8") for each in args):
        more += ["mesh.data=4", "mesh.fsdp=2"]
    if any("diloco" in each for each in args):
        more += ["trainer.sync_period=1"]
    if any("fragments=2" in each for each in args):  # the model has one layer now
        more += ["trainer.streaming.fragments=1", "trainer.streaming.overlap=0"]
    if any("batch_ramp_up" in each for each in args):
        more += ["ramp_up.start=32", "ramp_up.steps=2"]
    return more


@pytest.mark.slow
def test_all_of_them_run_one_after_the_other(folder, call):
    for words in OURS:
        if is_for_tpus(words) and importlib.util.find_spec("libtpu") is None:
            continue
        code, out, error = call(words, *smaller(words))
        differs = parsed(words)[0] == "diff" or "compare" in words
        assert code == differs, (words, out, error)
    exec(blocks("python")[0], {})
    assert sorted(path.name for path in folder.joinpath("models").iterdir()) == [
        "x",
        "x-int4",
        "x-maxtext",
        "x-tuned",
    ]


@pytest.mark.slow
def test_the_first_one_runs_on_one_device_to_its_sample(folder):
    """The others run on eight here, where arrays are laid out in other ways."""
    name, args = parsed(OURS[0])
    done = subprocess.run(
        [sys.executable, "-m", f"maxfdl.{name}", *args, *SMALL],
        cwd=folder,
        env=os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "on 1 x cpu" in done.stdout and "--- the model goes on ---" in done.stdout
