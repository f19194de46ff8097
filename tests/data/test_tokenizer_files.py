"""Tokenizer files of others: as transformers reads them, or refused in a sentence."""

import functools
import json
import os
import random

import pytest

from maxfdl.data import HuggingFaceTokenizer, TextData
from maxfdl.data.tokenizers import TokenizerFiles, check_ids
from maxfdl.errors import UserError
from tests.goldens import tokenizers as goldens

GOLDEN = goldens.read("tokenizers.json")
NAMES = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


@pytest.fixture
def make(tmp_path):
    """Makes a tokenizer of a base in the goldens, changed, and of files beside it."""

    def make(base="bytes", patch=None, **files):
        named = {f"{name}.json": content for name, content in files.items()}
        file = goldens.write(tmp_path, base, patch or {}, named)
        return HuggingFaceTokenizer(str(file))

    return make


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["name"])
def test_text_has_the_ids_that_transformers_gives_it(case, tmp_path):
    file = goldens.write(tmp_path, case["base"], case["patch"], case["files"])
    tokenizer, expected = HuggingFaceTokenizer(str(file)), case["transformers"]
    roles = tokenizer.files.roles.items()
    assert {
        "ids": [tokenizer.encode_text(text) for text in GOLDEN["texts"]],
        "plain": [tokenizer.encode(text) for text in GOLDEN["texts"]],
        "decoded": [tokenizer.decode(ids) for ids in expected["ids"]],
        "roles": {role: text for role, text in roles if text is not None},
        "size": tokenizer._tokenizer.get_vocab_size(),
    } == expected


def test_training_reads_whole_documents_whatever_the_file_says(make, make_source):
    truncation = {"max_length": 4, "stride": 0}
    truncation |= {"strategy": "LongestFirst", "direction": "Right"}
    tokenizer = make(patch={"truncation": truncation}, tokenizer_config=NAMES)
    text = "a document of more than four tokens " * 9
    data = TextData(
        source=make_source(text),
        tokenizer=tokenizer,
        eval_fraction=0,
        batch_size=1,
        sequence_length=100,
        seed=0,
    )
    (row,) = next(data.train())["tokens"]
    assert tokenizer.decode(row).startswith(text[:100])


@pytest.mark.parametrize(
    "single, framed",
    [
        (["$A"], ["the", "</s>"]),
        (["<s>", "$A"], ["<s>", "the", "</s>"]),
        (["<s>", "$A", "</s>"], ["<s>", "the", "</s>"]),
        (["$A", "<s>"], ["the", "<s>", "</s>"]),
    ],
    ids=" ".join,
)
def test_a_document_is_the_text_as_transformers_encodes_it_and_one_eos(
    make, single, framed
):
    pieces = [
        {"Sequence": {"id": "A", "type_id": 0}}
        if piece == "$A"
        else {"SpecialToken": {"id": piece, "type_id": 0}}
        for piece in single
    ]
    patch = {"post_processor": {"single": pieces}}
    tokenizer = make(patch=patch, tokenizer_config=NAMES)
    assert list(map(tokenizer.token, tokenizer.encode_document("the"))) == framed


def test_an_eos_in_the_text_does_not_stand_for_the_one_that_ends_a_document(make):
    tokenizer = make(tokenizer_config=NAMES)
    ids = tokenizer.encode_document("the</s>").tolist()
    assert ids[-2:] == [tokenizer.eos_id] * 2


def test_subword_regularisation_in_the_file_is_switched_off(make):
    tokenizer = make(patch={"model": {"dropout": 0.9}})
    text = "hello world, the weather " * 20
    assert tokenizer.encode(text) == make().encode(text)


def test_placeholders_of_other_roles_need_no_row_in_the_model(make):
    names = {**NAMES, "image_token": "<image>", "mask_token": "[MASK]"}
    tokenizer = make(tokenizer_config=names)
    assert tokenizer._tokenizer.get_vocab_size() == 322
    assert tokenizer.vocab_size == 320
    with pytest.raises(UserError) as error:
        check_ids(tokenizer.encode("an <image> of it"), tokenizer, 320)
    assert str(error.value) == (
        "the text holds '<image>', which is token 321, but model.vocab_size is 320: the"
        " highest id that the model knows is 319; take it out of the text, or use the"
        " tokenizer of the model."
    )


def test_training_refuses_a_text_with_an_id_past_the_vocabulary(make, make_source):
    data = TextData(
        source=make_source("an <image> of it"),
        tokenizer=make(tokenizer_config={**NAMES, "image_token": "<image>"}),
        eval_fraction=0,
        batch_size=1,
        sequence_length=8,
        seed=0,
        vocab_size=320,
    )
    with pytest.raises(UserError, match="'<image>', which is token 320"):
        next(data.train())


@pytest.mark.parametrize(
    "files, stop",
    [
        ({"generation_config": {"eos_token_id": 7}}, (7,)),
        ({"generation_config": {"eos_token_id": [7, 8]}}, (7, 8)),
        (
            {
                "generation_config": {"eos_token_id": None},
                "config": {"eos_token_id": 9},
            },
            (),
        ),
        ({"generation_config": {}, "config": {"eos_token_id": 9}}, ()),
        ({"config": {"eos_token_id": [9, 7]}}, (9, 7)),
        ({"config": {"text_config": {"eos_token_id": 9}}}, (9,)),
        ({"config": {"eos_token_id": -1}}, ()),
        ({}, ()),
    ],
)
def test_stop_tokens_are_those_of_transformers(files, stop, make):
    assert make(**files).files.stop_tokens == stop


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("tokenizer_config.json", '{"bos_token": "<s>",}', "is not JSON that can be"),
        ("tokenizer_config.json", "[1]", "must hold a JSON object, but it holds a"),
        ("tokenizer_config.json", {"bos_token": 3}, "bos_token (3) must be a string"),
        ("tokenizer_config.json", {"eos_token": {}}, "eos_token.content is missing"),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"x": "<s>"}},
            "added_tokens_decoder.x must be the id of a token",
        ),
        (
            "tokenizer_config.json",
            {"additional_special_tokens": ["<s>", 5]},
            "additional_special_tokens (a list of 2, whose entry 1 is 5) must be a",
        ),
        (
            "tokenizer_config.json",
            {"chat_template": [{"name": "default"}]},
            "chat_template.0.template is missing, and must be a string.",
        ),
        ("special_tokens_map.json", {"bos_token": []}, "bos_token (a list of 0) must"),
        ("added_tokens.json", {"<s>": "1"}, '<s> ("1") must be a whole number from 0'),
        ("generation_config.json", {"eos_token_id": 2.5}, "eos_token_id (2.5) must be"),
        (
            "generation_config.json",
            {"eos_token_id": True},
            "eos_token_id (true) must be",
        ),
        ("chat_template.jinja", "\xff", None),
    ],
)
def test_a_broken_file_is_one_sentence_with_file_and_key(
    name, content, message, make, tmp_path
):
    make()
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / name).write_text(text, "utf-8" if message else "latin-1")
    with pytest.raises(UserError) as error:
        read_all(tmp_path / "tokenizer.json")
    assert str(error.value).startswith(f"{tmp_path / name}")
    assert (message or "must be UTF-8, but byte 0 is 0xff") in str(error.value)


NOTHING = {"type": "Replace", "pattern": {"String": ""}, "content": "x"}


@pytest.mark.parametrize(
    "place, wrong",
    [
        ("normalizer", NOTHING),
        ("post_processor.special_tokens", {}),
        ("post_processor.special_tokens.<s>.ids", [2**32 - 1]),
        ("model.merges", [["a", "never"]]),
    ],
)
def test_a_panic_of_the_library_is_one_sentence_too(place, wrong, tmp_path, capfd):
    """Rust writes a page to stderr before Python sees the exception."""
    content = json.loads(json.dumps(GOLDEN["bases"]["bytes"]))
    *parents, key = place.split(".")
    functools.reduce(dict.__getitem__, parents, content)[key] = wrong
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="cannot be used by the library tokenizers"):
        read_all(tmp_path / "tokenizer.json")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["folder", "FIFO", "link to nothing"])
def test_what_is_no_file_is_refused_at_once(kind, make, tmp_path):
    make()
    path = tmp_path / "tokenizer_config.json"
    {
        "folder": path.mkdir,
        "FIFO": lambda: os.mkfifo(path),
        "link to nothing": lambda: path.symlink_to(tmp_path / "nowhere"),
    }[kind]()
    with pytest.raises(UserError, match="tokenizer_config.json (must|cannot)"):
        read_all(tmp_path / "tokenizer.json")


def read_all(file):
    """Does what training, generation and export do with a folder's files."""
    tokenizer = HuggingFaceTokenizer(str(file))
    ids = tokenizer.encode_document("the cat <s> [MASK] 日本\n")
    tokenizer.decode(ids)
    files = TokenizerFiles(file)
    return (
        tokenizer.pad_id,
        tokenizer.vocab_size,
        files.chat_templates,
        files.stop_tokens,
    )


CONFIG = {
    **NAMES,
    "added_tokens_decoder": {"0": {"content": "<unk>", "special": True}},
    "additional_special_tokens": ["<extra>", {"content": "cat", "lstrip": True}],
    "chat_template": [{"name": "default", "template": "{{ messages }}"}],
    "clean_up_tokenization_spaces": False,
    "image_token": {"__type": "AddedToken", "content": "<image>"},
    "split_special_tokens": False,
}
SPECIAL_MAP = {"bos_token": {"content": "<s>", "lstrip": False}, "eos_token": "</s>"}
WHOLE = {
    "tokenizer_config.json": CONFIG,
    "special_tokens_map.json": {**SPECIAL_MAP, "additional_special_tokens": ["cat"]},
    "added_tokens.json": {"<extra>": 320, "<two>": 321},
    "generation_config.json": {"eos_token_id": [2, 3], "bos_token_id": 1},
}


@pytest.mark.parametrize("base", GOLDEN["bases"])
def test_damaged_files_are_refused_in_a_sentence_or_read(base, tmp_path, capfd):
    """Each file is damaged in turn, in every way of `damaged`."""
    draw = random.Random(base)
    whole = {"tokenizer.json": GOLDEN["bases"][base], **WHOLE}
    refused = 0
    for number in range(100):
        files = dict(whole)
        if draw.random() < 0.5:  # which files count depends on this key
            files["tokenizer_config.json"] = {**CONFIG}
            del files["tokenizer_config.json"]["added_tokens_decoder"]
        name = list(files)[number % len(files)]
        for each, content in files.items():
            text = json.dumps(content).encode()
            damage = damaged(content, text, draw) if each == name else text
            (tmp_path / each).write_bytes(damage)
        try:
            read_all(tmp_path / "tokenizer.json")
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
            assert str(tmp_path) in str(error)
    assert refused > 30
    assert capfd.readouterr() == ("", "")


def damaged(content, text, draw):
    """Returns a JSON file with one thing wrong: its values, or its bytes."""
    kind = draw.choice(["drop", "change", "change", "truncate", "flip"])
    if kind == "truncate":
        return text[: draw.randrange(len(text))]
    if kind == "flip":
        place = draw.randrange(len(text))
        return text[:place] + bytes([draw.randrange(256)]) + text[place + 1 :]
    content = json.loads(text)
    parent, key = draw.choice(list(places(content)))
    if kind == "drop":
        del parent[key]
    else:
        parent[key] = draw.choice(
            [None, -1, 2.5, 2**40, "", "x", [], {}, True, [[]], {"content": 1}]
        )
    return json.dumps(content).encode()


def places(content):
    """Yields each (container, key) of a JSON value, the long lists by their ends."""
    keys = list(content) if isinstance(content, dict) else list(range(len(content)))
    for key in [*keys[:8], *keys[-2:]] if len(keys) > 10 else keys:
        yield content, key
        if isinstance(content[key], dict | list):
            yield from places(content[key])
