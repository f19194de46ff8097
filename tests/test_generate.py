"""`python -m maxfdl.generate`."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import pytest
from absl import flags
from absl.testing import flagsaver

from maxfdl import commandline, hf, saved_run
from maxfdl import generate as command
from maxfdl.data import HuggingFaceTokenizer
from maxfdl.errors import UserError
from maxfdl.run import runtime
from maxfdl.run.directory import RunDirectory
from tests.commands import ON_ONE_DEVICE
from tests.goldens import tokenizers as goldens

ROOT = pathlib.Path(__file__).parents[1]
GOLDEN = ROOT / "tests/goldens/llama2"
SPEED = (
    r"prompt of (\d+) tokens, first token after \d+\.\d\d s, then \d+\.\d tokens/s;"
    r" weights \d+\.\d [KM]iB, caches \d+\.\d [KM]iB\n"
)


@pytest.fixture(autouse=True)
def parsed_flags():
    """Commands are called in this process, too."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def run(module: str, *args: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", f"maxfdl.{module}", *args],
        cwd=ROOT,
        env=os.environ | ON_ONE_DEVICE,
        capture_output=True,
        text=True,
    )


def generate(*args: str) -> subprocess.CompletedProcess:
    return run("generate", *args)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """The golden Llama 2, with a tokenizer whose words are `t0`, `t1`, ..."""
    import tokenizers
    from tokenizers import models, pre_tokenizers

    path = tmp_path_factory.mktemp("model")
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(GOLDEN / name, path / name)
    size = json.loads((path / "config.json").read_text())["vocab_size"]
    words = {f"t{i}": i for i in range(size)}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(words, unk_token="t0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(path / "tokenizer.json"))
    return path


def words(ids) -> str:
    return " ".join(f"t{i}" for i in ids)


def expected():
    from safetensors.numpy import load_file

    golden = load_file(GOLDEN / "golden.safetensors")
    return golden["input_ids"][0, :12], golden["greedy_ids"][0]


def test_a_folder_goes_on_as_transformers_does(folder):
    prompt, ids = expected()
    done = generate(
        f"--hf={folder}", f"--prompt={words(prompt)}", f"--max_new_tokens={len(ids)}"
    )
    assert (done.returncode, done.stdout) == (0, words(ids) + "\n"), done.stderr
    (count,) = re.fullmatch(SPEED, done.stderr).groups()
    assert int(count) == 12


@pytest.mark.slow
def test_mutations_change_how_weights_are_stored(folder):
    from maxfdl.inference import generate

    prompt, ids = expected()
    fiddler = ["quantize_weights(format=int8, group=8)", "quantize_cache"]
    with flagsaver.flagsaver(
        fiddler=fiddler, fdl_set=[], fdl_tags_set=[], fdl_overrides=[], trust=[]
    ):
        writer = command._from_hugging_face(folder)
    stored = [leaf.dtype for leaf in jax.tree.leaves(writer.variables["params"])]
    assert stored.count(jnp.int8) == 7
    (row,) = generate(writer.model, writer.variables, [prompt], max_new_tokens=4)
    assert row == ids[:4].tolist()


@pytest.mark.slow
def test_a_chat_template_asks_and_stop_tokens_end(folder, tmp_path):
    prompt, ids = expected()
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    template = "{{ messages[0]['content'] }} {{ messages[1]['content'] }}"
    (tmp_path / "chat_template.jinja").write_text(template)
    stop = {"eos_token_id": [int(ids[3])]}
    (tmp_path / "generation_config.json").write_text(json.dumps(stop))
    done = generate(
        f"--hf={tmp_path}",
        f"--system={words(prompt[:5])}",
        f"--prompt={words(prompt[5:])}",
    )
    end = list(ids).index(ids[3])
    assert (done.returncode, done.stdout) == (0, words(ids[:end]) + "\n"), done.stderr


@pytest.mark.slow
def test_a_run_goes_on_from_its_newest_checkpoint_and_so_does_its_export(tmp_path):
    smoke = "--fdl_config=experiments.llama2_smoke"
    trained = run("launch", smoke, "steps=2", f"--run_dir={tmp_path}")
    assert trained.returncode == 0, trained.stderr
    drawn = ("--prompt=abc", "--max_new_tokens=9", "--temperature=1", "--seed=1")
    drawn += ("--top_k=50", "--top_p=0.9", "--min_p=0.01")
    done = generate(f"--run_dir={tmp_path}", *drawn)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(SPEED, done.stderr)
    folder = tmp_path / "exported"
    converted = run("convert", f"--from_run={tmp_path}", f"--to_hf={folder}")
    assert converted.returncode == 0, converted.stderr
    exported = generate(f"--hf={folder}", *drawn)
    assert exported.stdout == done.stdout


@pytest.fixture
def call(capsys, monkeypatch):
    """Runs the command in this process; returns its code and what is on stderr."""
    monkeypatch.setattr(runtime, "start", lambda **_: None)

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["generate.py", *args])
        with pytest.raises(SystemExit) as end:
            commandline.run(command.main)
        for name in flags.FLAGS:
            flags.FLAGS[name].unparse()
        return end.value.code, capsys.readouterr().err

    return call


@pytest.mark.parametrize(
    "args, message",
    [
        (
            ["--hf=x"],
            "give --prompt=TEXT and one of --hf=FOLDER, --gguf=FILE and --run_dir=DIR,"
            " and no other config.",
        ),
        (
            ["--run_dir=no/such", "--prompt=a"],
            "no/such must be the directory of a run, with its config.json.",
        ),
        (
            ["--hf=no/such", "--prompt=a"],
            "no/such must be a folder with a config.json and *.safetensors files, as"
            " Hugging Face writes them; download the model first.",
        ),
        (
            ["--gguf=no/such", "--prompt=a"],
            "no/such cannot be read: no such file or directory.",
        ),
        (
            ["--hf=no/such", "--prompt=a", "--top_p=2"],
            "Sampler top_p (2.0) must be above 0 and at most 1.",
        ),
    ],
)
def test_mistakes_are_one_line_and_code_2(args, message, call):
    assert call(*args) == (2, f"error: {message}\n")


NAMES = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


@pytest.fixture
def ids_of(tmp_path, monkeypatch):
    """Returns the ids of a prompt, for a folder with the tokenizer of a golden.

    The model is none: it is read, and asked for the number of its rows, and no more.
    """

    def ids_of(prompt, patch=None, rows=320, chat=None, system=None, **files):
        named = {name.replace("__", "."): each for name, each in files.items()}
        named["config.json"] = {"model_type": "llama", "vocab_size": rows}
        goldens.write(tmp_path, "bytes", patch or {}, named)
        network = types.SimpleNamespace(vocab_size=rows)
        loaded = types.SimpleNamespace(
            model=types.SimpleNamespace(network=network), variables={}
        )
        monkeypatch.setattr(hf, "load", lambda *_, **__: loaded)
        writer = command._from_hugging_face(tmp_path)
        with flagsaver.flagsaver(prompt=prompt, chat=chat, system=system):
            return writer, command._prompt(writer)

    return ids_of


def test_a_long_prompt_is_read_whole_whatever_truncation_the_file_stores(ids_of):
    truncation = {"max_length": 6, "stride": 0}
    truncation |= {"strategy": "LongestFirst", "direction": "Right"}
    text = "zzz zzz zzz zzz zzz"
    writer, ids = ids_of(text, {"truncation": truncation})
    assert writer.tokenizer.decode(ids) == text


@pytest.mark.parametrize("asked", [True, False])
def test_bos_is_where_transformers_puts_it_whatever_the_config_asks(asked, ids_of):
    config = {**NAMES, "add_bos_token": asked}
    beside = {"tokenizer_config__json": config}
    _, with_one = ids_of("the", **beside)
    _, without = ids_of("the", {"post_processor": None}, **beside)
    assert with_one == [1, *without]


def test_a_chat_adds_nothing_to_what_its_template_says(ids_of):
    template = "{{ bos_token }}{% for m in messages %}{{ m.role }}{% endfor %}</s>"
    beside = {"tokenizer_config__json": NAMES, "chat_template__jinja": template}
    writer, ids = ids_of("Hi", system="Be brief.", **beside)
    assert ids == writer.tokenizer.encode("<s>systemuser</s>")
    _, plain = ids_of("Hi", chat=False, **beside)
    assert plain == writer.tokenizer.encode_text("Hi")


MODEL = types.SimpleNamespace(network=types.SimpleNamespace(vocab_size=320))
RUN = types.SimpleNamespace(
    experiment=types.SimpleNamespace(make_model=lambda: MODEL),
    variables={},
    changed=lambda change: RUN,
)


def test_a_run_keeps_the_template_and_stop_tokens_of_the_folder_that_it_tuned(
    tmp_path, monkeypatch
):
    folder, run_dir = tmp_path / "folder", tmp_path / "run"
    folder.mkdir()
    template = "{{ bos_token }}{{ messages[0].content }}<pad>"
    files = {"tokenizer_config.json": NAMES, "chat_template.jinja": template}
    files["generation_config.json"] = {"eos_token_id": 3}
    tokenizer = HuggingFaceTokenizer(str(goldens.write(folder, "bytes", {}, files)))
    RunDirectory(run_dir).write_tokenizer(tokenizer)
    expected = tokenizer.encode("<s>the<pad>")
    shutil.rmtree(folder)
    monkeypatch.setattr(saved_run, "read_run", lambda *_, **__: RUN)
    with flagsaver.flagsaver(prompt="the", chat=True, trust=[]):
        writer = command._from_run(run_dir)
        assert command._prompt(writer) == expected
    assert writer.stop_tokens == (3, 2)


def test_a_run_without_text_has_no_tokenizer(tmp_path, monkeypatch):
    monkeypatch.setattr(saved_run, "read_run", lambda *_, **__: RUN)
    with flagsaver.flagsaver(trust=[]), pytest.raises(UserError) as error:
        command._from_run(tmp_path)
    assert str(error.value) == (
        f"{tmp_path / 'tokenizer'} holds no tokenizer.json; a run on text writes it"
        " when it starts."
    )


def test_stop_tokens_without_a_row_never_come_and_are_left_out(ids_of):
    generation = {"eos_token_id": [2, 50256]}
    writer, _ = ids_of("the", generation_config__json=generation)
    assert writer.stop_tokens == (2,)


@pytest.mark.parametrize(
    "changed, message",
    [
        (
            {"rows": 300},
            r"tokenizer.json has 320 ids, up to '.*', but the model knows 300 only"
            r" \(vocab_size\); use the tokenizer that belongs to the model.",
        ),
        (
            {
                "prompt": "an <image>",
                "tokenizer_config__json": {**NAMES, "image_token": "<image>"},
            },
            "the text holds '<image>', which is token 320, but model.vocab_size is 320",
        ),
        ({"system": "Be brief."}, "--system is for a chat; put it into --prompt"),
        ({"chat": True}, "--chat needs a chat template, and this model brings none."),
        ({"chat_template__jinja": ""}, "the chat template makes an empty text; give"),
        (
            {"prompt": "", "patch": {"post_processor": None}},
            "--prompt is empty, and no token begins a text here.",
        ),
        ({"tokenizer_config__json": '{"bos_token": "<s>",}'}, "is not JSON that can"),
        ({"generation_config__json": "[]"}, "must hold a JSON object"),
    ],
)
def test_a_prompt_that_cannot_be_read_is_refused(changed, message, ids_of):
    with pytest.raises(UserError, match=message):
        ids_of(**{"prompt": "the", **changed})
