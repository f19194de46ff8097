"""GGUF files, written here by the package `gguf` as llama.cpp's converter would."""

import dataclasses
import json
import os
import pathlib
import random

import numpy as np
import pytest
from safetensors.numpy import load_file

from maxfdl import gguf
from maxfdl.errors import UserError
from maxfdl.gguf.file import GgufFile
from maxfdl.gguf.llama import config_of
from maxfdl.gguf.tokenizer import write_tokenizer
from maxfdl.outside import Values
from tests import goldens

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def their_name(name: str) -> str:
    stem, _, kind = name.rpartition(".")
    if stem in NAMES:
        return f"{NAMES[stem]}.{kind}"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{NAMES[part]}.{kind}"


def turned(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head: 0, half, 1, half + 1, ...: pairs become neighbours."""
    rows = np.arange(len(values)).reshape(heads, -1)
    half = rows.shape[1] // 2
    order = np.stack([rows[:, :half], rows[:, half:]], axis=-1).reshape(-1)
    return values[order]


@dataclasses.dataclass
class Vocabulary:
    """Some bytes, two merged pairs, specials, and blanks up to the model's size."""

    size: int
    model: str = "gpt2"
    pre: str = "gpt-2"

    def write(self, writer) -> None:
        texts = ["<|begin|>", "<|end|>", *"abcdefghtÃ¤Ġ", "th", "the"]
        types = [3, 3] + [1] * (len(texts) - 2)
        unused = self.size - len(texts)
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(texts + [f"<unused{i}>" for i in range(unused)])
        writer.add_token_types(types + [1] * unused)
        writer.add_token_merges(["t h", "th e"])
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(1)
        writer.add_add_bos_token(True)
        writer.add_chat_template("{{ messages[0]['content'] }}")


def write(
    path: pathlib.Path,
    *,
    architecture="llama",
    extra=None,
    value_length=None,
    rope_dims=None,
    experts=0,
    layers=None,
    **vocabulary,
):
    """Writes the golden Llama 2 into a GGUF file."""
    from gguf import GGUFWriter

    config = json.loads((goldens.FOLDER / "llama2/config.json").read_text())
    heads = {"q": "num_attention_heads", "k": "num_key_value_heads"}
    writer = GGUFWriter(path, architecture)
    writer.add_block_count(layers or config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    if value_length:
        writer.add_value_length(value_length)
    if rope_dims:
        writer.add_rope_dimension_count(rope_dims)
    if experts:
        writer.add_expert_count(experts)
    Vocabulary(config["vocab_size"], **vocabulary).write(writer)
    for name, values in goldens.weights("llama2").items():
        part = name.split(".")[-2]
        if part in ("q_proj", "k_proj"):
            values = turned(values, config[heads[part[0]]])
        writer.add_tensor(their_name(name), values)
    if extra:
        writer.add_tensor(extra, np.ones(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setenv("MAXFDL_CACHE", str(tmp_path / "cache"))
    return write(tmp_path / "model.gguf")


@pytest.mark.parametrize("backend", ["nnx", "linen"])
def test_its_model_computes_what_transformers_does(file, backend):
    golden = goldens.expected("llama2")
    loaded = gguf.load(file, backend=backend)
    logits = loaded.model.logits(loaded.variables, golden["input_ids"])
    np.testing.assert_allclose(
        logits, golden["logits"], rtol=0, atol=golden.tolerance("logits")
    )


def test_it_becomes_the_folder_that_it_was_made_of(file):
    config = json.loads((goldens.FOLDER / "llama2/config.json").read_text())
    weights = goldens.weights("llama2")
    folder = gguf.unpack(file)
    unpacked = load_file(folder / "model.safetensors")
    assert unpacked.keys() == weights.keys()
    for name, values in weights.items():
        np.testing.assert_array_equal(unpacked[name], values)
    found = json.loads((folder / "config.json").read_text())
    for name in ("rms_norm_eps", "rope_parameters", "head_dim", "tie_word_embeddings"):
        assert found[name] == config[name], name


def test_it_is_unpacked_once(file):
    folder = gguf.unpack(file)
    (folder / "seen").touch()
    assert gguf.unpack(file) == folder
    assert (folder / "seen").exists()


def test_its_tokenizer_cuts_merges_and_begins_texts(file):
    import tokenizers

    folder = gguf.unpack(file)
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    encoded = tokenizer.encode("the thä<|end|>")
    assert encoded.tokens == ["<|begin|>", "the", "Ġ", "th", "Ã", "¤", "<|end|>"]
    assert tokenizer.decode(encoded.ids) == "the thä"
    beside = json.loads((folder / "tokenizer_config.json").read_text())
    assert beside["chat_template"] == "{{ messages[0]['content'] }}"
    assert (beside["bos_token"], beside["eos_token"]) == ("<|begin|>", "<|end|>")
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation == {"eos_token_id": [1]}


@pytest.mark.parametrize("kind", ["llama-bpe", "smollm"])
def test_digits_are_cut_as_the_kind_says(kind, tmp_path, monkeypatch):
    import tokenizers

    monkeypatch.setenv("MAXFDL_CACHE", str(tmp_path))
    folder = gguf.unpack(write(tmp_path / "x.gguf", pre=kind))
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    pieces = [text for text, _ in tokenizer.pre_tokenizer.pre_tokenize_str("a 1234")]
    expected = {
        "llama-bpe": ["a", "Ġ", "123", "4"],
        "smollm": ["a", "Ġ", "1", "2", "3", "4"],
    }
    assert pieces == expected[kind]


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"architecture": "gemma"}, "architecture 'gemma', which must be 'llama'"),
        ({"extra": "rope_freqs.weight"}, "no place for: rope_freqs.weight"),
        ({"model": "t5"}, "tokenizer of kind 't5', which must be 'gpt2' or 'llama'"),
        ({"pre": "tekkens"}, "cuts text the way of 'tekkens', .* mean 'tekken'"),
        ({"value_length": 99}, r"value_length \(99\) must be the width of a head"),
        ({"rope_dims": 2}, r"rope.dimension_count \(2\) must be the width of a head"),
        ({"experts": 8}, "has 8 experts, where a Llama has none"),
        (
            {"layers": 10**9},
            r"llama.block_count \(1000000000\) must be \d, for the file",
        ),
    ],
)
def test_what_is_not_read_is_said(fields, message, tmp_path, monkeypatch):
    monkeypatch.setenv("MAXFDL_CACHE", str(tmp_path))
    file = write(tmp_path / "x.gguf", **fields)
    with pytest.raises(UserError, match=message):
        gguf.unpack(file)
    assert not any((tmp_path / "gguf").iterdir())


@pytest.mark.parametrize("data", [b"", b"GG", b"something else entirely"])
def test_another_file_is_no_gguf(data, tmp_path):
    file = tmp_path / "x.gguf"
    file.write_bytes(data)
    with pytest.raises(UserError, match="is no whole GGUF file"):
        gguf.unpack(file)


def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "x.gguf")
    with pytest.raises(UserError, match="must be a file, but it is a FIFO"):
        gguf.unpack(tmp_path / "x.gguf")


def test_damaged_files_are_refused_in_a_sentence_or_unpacked(file, tmp_path, capfd):
    """Bytes of the header are flipped, or the file ends early."""
    whole, draw = file.read_bytes(), random.Random(0)
    header = whole.index(b"<unused99>") + 2_500  # with the tensors' names and places
    refused = 0
    for number in range(250):
        data = bytearray(whole)
        if number % 5 == 0:
            del data[draw.randrange(len(data)) :]
        else:
            data[draw.randrange(header)] = draw.randrange(256)
        damaged = tmp_path / "damaged.gguf"
        damaged.write_bytes(data)
        try:
            gguf.unpack(damaged)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
            assert str(damaged) in str(error)
    assert refused > 100
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("wrong", [None, -1, 2.5, 2**31 - 1, "x", [], True])
def test_each_setting_may_be_anything(wrong, file, tmp_path):
    """A setting is missing, or of another kind: a sentence, or what does not count."""
    settings = GgufFile(file).settings.content
    small = {"tokenizer.ggml.tokens": ["<a>", "<b>", "c"], "tokenizer.ggml.merges": []}
    small["tokenizer.ggml.token_type"] = [3, 3, 1]
    whole = {**settings, **small}
    opened = GgufFile(file)
    for name in settings:
        content = {**whole, name: wrong}
        if wrong is None:
            del content[name]
        opened.settings = Values("x.gguf", content)
        try:
            config_of(opened)
            write_tokenizer(opened, tmp_path)
        except UserError as error:
            assert "\n" not in str(error) and ".gguf" in str(error)
