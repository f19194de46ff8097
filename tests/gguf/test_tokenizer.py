"""Tokenizers in GGUF files: the ids that llama.cpp gives, or a sentence."""

import json

import pytest

from maxfdl.data import HuggingFaceTokenizer
from maxfdl.errors import UserError
from maxfdl.gguf.file import GgufFile
from maxfdl.gguf.pre_tokenizers import KINDS
from maxfdl.gguf.tokenizer import write_tokenizer
from tests.goldens import gguf as goldens

GOLDEN = goldens.read()
EXPECTED = {case["name"]: case["llama.cpp"] for case in GOLDEN["cases"]}


@pytest.fixture
def make(tmp_path):
    """Writes a vocabulary of the goldens, with other settings, and reads it."""

    def make(base="bytes", **changes):
        settings = goldens.changed(GOLDEN["bases"][base], changes)
        file = goldens.write(tmp_path / "x.gguf", settings)
        write_tokenizer(GgufFile(file), tmp_path)
        return HuggingFaceTokenizer(str(tmp_path / "tokenizer.json"))

    return make


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["name"])
def test_text_has_the_ids_that_llama_cpp_gives_it(case, make):
    tokenizer = make(case["base"], **case["changes"])
    expected = case["llama.cpp"]
    if isinstance(expected, str):  # the same as in another case
        expected = EXPECTED[expected]
    assert [tokenizer.encode_text(text) for text in GOLDEN["texts"]] == expected["ids"]
    assert list(tokenizer.files.stop_tokens) == expected["ends"]


def test_every_kind_that_is_read_was_compared():
    compared = {case["changes"].get("pre", "default") for case in GOLDEN["cases"]}
    assert compared == {*KINDS}


@pytest.mark.parametrize("base", GOLDEN["bases"])
def test_text_survives_the_round_trip(base, make):
    tokenizer = make(base)
    texts = [text for text in GOLDEN["texts"] if "<s>" not in text]
    assert [tokenizer.decode(tokenizer.encode_text(text)) for text in texts] == texts


def test_special_tokens_have_the_roles_of_the_file(make):
    roles = make(pre="llama-bpe", padding_token_id=3).files.roles
    assert roles == {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<|user|>"}


def test_pieces_have_the_roles_of_sentencepiece(make):
    roles = make("pieces").files.roles
    assert roles == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({"tokenizer.chat_template": "A"}, "A"),
        (
            {
                "tokenizer.chat_template": "A",
                "tokenizer.chat_templates": ["tool_use"],
                "tokenizer.chat_template.tool_use": "B",
            },
            [
                {"name": "default", "template": "A"},
                {"name": "tool_use", "template": "B"},
            ],
        ),
        ({}, None),
    ],
)
def test_chat_templates_come_along(settings, expected, make, tmp_path):
    make(**settings)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config.get("chat_template") == expected


@pytest.mark.parametrize(
    "base, changes, message",
    [
        ("bytes", {"model": None}, "tokenizer.ggml.model is missing, and must be a"),
        ("bytes", {"model": "t5"}, "tokenizer of kind 't5', which must be 'gpt2' or"),
        ("bytes", {"pre": "gpt2"}, "kinds that are known here. Did you mean 'gpt-2'"),
        ("bytes", {"pre": 7}, "tokenizer.ggml.pre (7) must be a string"),
        ("bytes", {"tokens": None}, "tokenizer.ggml.tokens is missing, and must be a"),
        ("bytes", {"tokens": ["a", "b", "a"]}, "tokenizer.ggml.tokens has 'a' twice"),
        ("bytes", {"tokens": [1, 2]}, "whose entry 0 is 1) must be a list, each entry"),
        ("bytes", {"merges": None}, "tokenizer.ggml.merges is missing, and must be a"),
        ("bytes", {"merges": ["ab"]}, "merges has 'ab', which must be two tokens that"),
        ("bytes", {"merges": ["y z"]}, "merges has 'y z', which must be two tokens"),
        ("bytes", {"token_type": [1, 1]}, "must be a list of length"),
        ("bytes", {"bos_token_id": 10**6}, "bos_token_id (1000000) must be a whole"),
        ("bytes", {"eos_token_id": "x"}, 'eos_token_id ("x") must be a whole number'),
        ("bytes", {"add_bos_token": 1}, "add_bos_token (1) must be true or false"),
        (
            "bytes",
            {"pre": "llama-bpe", "bos_token_id": None},
            "bos_token_id is missing, and must be the id of a token, for it is added",
        ),
        ("pieces", {"scores": None}, "tokenizer.ggml.scores is missing, and must be"),
        ("pieces", {"scores": [1.0]}, "must be a list of length"),
    ],
)
def test_a_setting_that_is_missing_or_wrong_is_one_sentence(
    base, changes, message, make, tmp_path
):
    with pytest.raises(UserError) as error:
        make(base, **changes)
    assert str(error.value).startswith(f"{tmp_path / 'x.gguf'}")
    assert message in str(error.value)
