"""Round trips on awkward text, special tokens, and the cache of merges."""

import json
import multiprocessing

import numpy as np
import pytest

from maxfdl.data import ByteTokenizer, HuggingFaceTokenizer, TrainedBpe
from maxfdl.errors import UserError

TEXTS = [
    "",
    " ",
    "plain",
    "  two  spaces and\ta tab \r\n\n",
    "emoji 👩‍👩‍👧‍👦 🇪🇺 and e\u0301",
    "日本語 العربية русский",
    "\x00\x01\x7f\ufeff\ufffd",
    "x" * 5000,
]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MAXFDL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokenizers"


@pytest.fixture
def trained(corpus):
    return TrainedBpe(vocab_size=300).for_source(corpus)


@pytest.fixture
def hugging_face(trained, tmp_path):
    file = tmp_path / "tokenizer.json"
    file.write_text(trained._tokenizer.to_str(), "utf-8")
    return HuggingFaceTokenizer(file=str(file))


@pytest.fixture(params=["byte", "trained", "hugging_face"])
def tokenizer(request):
    if request.param == "byte":
        return ByteTokenizer()
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("text", TEXTS)
def test_text_survives_the_round_trip(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= i < tokenizer.vocab_size for i in ids)


@pytest.mark.parametrize("text", TEXTS)
def test_bos_is_in_front_of_a_text_and_eos_behind_a_document(tokenizer, text):
    ids = [tokenizer.bos_id, *tokenizer.encode(text)]
    assert tokenizer.encode_text(text) == ids
    document = tokenizer.encode_document(text)
    assert document.dtype == np.int32
    assert document.tolist() == [*ids, tokenizer.eos_id]


def test_every_id_has_a_text(tokenizer):
    special = [tokenizer.token(i) for i in (tokenizer.bos_id, tokenizer.eos_id)]
    assert special == ["<|bos|>", "<|eos|>"]
    assert "a" in tokenizer.token(tokenizer.encode("a")[0])


def test_half_a_surrogate_pair_becomes_a_question_mark(tokenizer):
    assert tokenizer.decode(tokenizer.encode("a\ud83db")) == "a?b"


def test_decoding_drops_special_tokens(tokenizer):
    special = [tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id]
    assert len(set(special)) == 3
    assert tokenizer.decode([special[0], *tokenizer.encode("hi"), *special]) == "hi"


def test_half_a_character_decodes_to_a_replacement(tokenizer):
    assert tokenizer.decode(tokenizer.encode("€")[:1]) == "\ufffd"


def test_decoding_accepts_arrays(tokenizer):
    ids = np.array(tokenizer.encode("array"), np.int32)
    assert tokenizer.decode(ids) == "array"


def saved(tokenizer, tmp_path):
    """The tokenizer, read from the files that it writes."""
    folder = tmp_path / "saved"
    folder.mkdir()
    tokenizer.save(folder)
    return HuggingFaceTokenizer(str(folder / "tokenizer.json"))


def test_its_files_give_the_same_ids_and_stop_at_eos(tokenizer, tmp_path):
    other = saved(tokenizer, tmp_path)
    for text in [*TEXTS, "a\ud83db", "<|eos|> e\u0301 <|bos|>"]:
        assert other.encode(text) == tokenizer.encode(text)
        assert other.encode_text(text) == tokenizer.encode_text(text)
        document = tokenizer.encode_document(text).tolist()
        assert other.encode_document(text).tolist() == document
        assert other.decode(document) == tokenizer.decode(document)
    assert other.files.stop_tokens == (tokenizer.eos_id,)
    assert other.pad_id == tokenizer.pad_id


def test_a_copy_keeps_chat_templates_and_ends_where_both_files_and_data_end(
    hugging_face, tmp_path
):
    (tmp_path / "chat_template.jinja").write_text("A")
    (tmp_path / "chat_templates").mkdir()
    (tmp_path / "chat_templates/tool_use.jinja").write_text("B")
    generation = {"eos_token_id": 7, "temperature": 0.6}
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    copy = saved(hugging_face, tmp_path)
    assert copy.files.chat_templates == {"default": "A", "tool_use": "B"}
    written = (tmp_path / "saved/generation_config.json").read_text()
    assert json.loads(written) == {"eos_token_id": [7, 1], "temperature": 0.6}


def test_a_copy_has_the_roles_that_the_graph_gives(hugging_face, tmp_path):
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": "<|eos|>"}')
    given = HuggingFaceTokenizer(file=hugging_face.file, eos="<|bos|>", pad="<|eos|>")
    copy = saved(given, tmp_path)
    assert (copy.bos_id, copy.eos_id, copy.pad_id) == (0, 0, 1)


def test_bytes_are_their_own_ids():
    assert ByteTokenizer().encode("Aé") == [65, 0xC3, 0xA9]
    assert ByteTokenizer().decode([0xFF, 65, 257, 9999]) == "\ufffdA"
    assert ByteTokenizer().vocab_size == 259


def test_the_text_of_a_special_token_is_text(trained):
    ids = trained.encode("<|eos|> and <|bos|>")
    assert trained.eos_id not in ids and trained.bos_id not in ids
    assert trained.decode(ids) == "<|eos|> and <|bos|>"


def test_training_makes_words_that_are_often_seen_into_one_token(trained):
    assert len(trained.encode(" d20 d20 d20")) < len(" d20 d20 d20")
    assert trained.vocab_size == 300


def test_the_cache_gives_the_same_merges(trained, cache, corpus):
    merges = trained._tokenizer.to_str()
    (file,) = cache.iterdir()
    again = TrainedBpe(vocab_size=300).for_source(corpus)
    assert again._tokenizer.to_str() == merges
    file.unlink()
    retrained = TrainedBpe(vocab_size=300).for_source(corpus)
    assert retrained._tokenizer.to_str() == merges


def test_the_cache_is_read_and_not_only_written(trained, cache, corpus):
    trained.encode("fill the cache")
    (file,) = cache.iterdir()
    content = json.loads(file.read_text("utf-8"))
    content["model"]["merges"] = []
    file.write_text(json.dumps(content), "utf-8")
    again = TrainedBpe(vocab_size=300).for_source(corpus)
    assert len(again.encode("d20")) == 3


def test_other_text_or_settings_have_a_cache_of_their_own(cache, corpus, make_source):
    for tokenizer, source in [
        (TrainedBpe(vocab_size=300), corpus),
        (TrainedBpe(vocab_size=301), corpus),
        (TrainedBpe(vocab_size=300), make_source("other text")),
    ]:
        tokenizer.for_source(source).encode("a")
    assert len(list(cache.iterdir())) == 3


def test_a_damaged_cache_is_trained_again(trained, cache, corpus):
    ids = trained.encode("d20 d21")
    (file,) = cache.iterdir()
    file.write_text("{ not json")
    assert TrainedBpe(vocab_size=300).for_source(corpus).encode("d20 d21") == ids
    assert json.loads(file.read_text("utf-8"))


def test_processes_that_race_for_the_cache_agree(cache, corpus):
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool:
        results = pool.map(_encode_with_a_new_tokenizer, [corpus] * 4)
    assert len({tuple(ids) for ids in results}) == 1
    assert len(list(cache.iterdir())) == 1


def _encode_with_a_new_tokenizer(corpus):
    return TrainedBpe(vocab_size=300).for_source(corpus).encode("d20 d21 new")


def test_a_cache_that_cannot_be_written_is_a_warning(
    monkeypatch, tmp_path, corpus, caplog
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MAXFDL_CACHE", str(tmp_path / "file"))
    assert TrainedBpe(vocab_size=300).for_source(corpus).encode("d20")
    assert "set MAXFDL_CACHE to a folder that can be written" in caplog.text


def test_special_tokens_are_found_by_their_usual_names(hugging_face):
    ids = (hugging_face.bos_id, hugging_face.eos_id, hugging_face.pad_id)
    assert ids == (0, 1, 2)


def test_special_tokens_are_found_in_the_configuration_beside_the_file(
    hugging_face, tmp_path
):
    config = {"eos_token": {"content": "<|pad|>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert (hugging_face.bos_id, hugging_face.eos_id) == (0, 2)


def test_null_says_that_there_is_no_such_token(hugging_face, tmp_path):
    config = {"bos_token": None, "eos_token": "<|eos|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert (hugging_face.bos_id, hugging_face.eos_id) == (None, 1)


def test_special_tokens_can_be_named(hugging_face):
    named = HuggingFaceTokenizer(file=hugging_face.file, eos="<|bos|>")
    assert named.eos_id == 0


def test_a_special_token_that_is_none_is_refused(hugging_face):
    named = HuggingFaceTokenizer(file=hugging_face.file, eos="<|eoss|>")
    with pytest.raises(UserError) as error:
        named.eos_id  # noqa: B018 (it is a property that raises)
    assert str(error.value).startswith(
        f"HuggingFaceTokenizer.eos [<|eoss|>] must be a token of [{hugging_face.file}]."
        " Did you mean '<|eos|>'"
    )


def test_a_missing_file_is_one_sentence():
    with pytest.raises(UserError) as error:
        HuggingFaceTokenizer(file="nowhere.json").encode("a")
    assert str(error.value) == (
        "HuggingFaceTokenizer.file [nowhere.json] must be the path of a tokenizer.json,"
        " but there is no such file."
    )


def test_a_file_of_something_else_is_one_sentence(tmp_path):
    file = tmp_path / "tokenizer.json"
    file.write_text('{"a": 1}')
    with pytest.raises(UserError, match="cannot be used by the library tokenizers"):
        HuggingFaceTokenizer(file=str(file)).encode("a")


def test_bpe_refuses_a_vocabulary_smaller_than_the_bytes():
    with pytest.raises(UserError) as error:
        TrainedBpe(vocab_size=258)
    assert str(error.value) == (
        "TrainedBpe.vocab_size [258] must be at least 259, for 256 bytes and 3 special"
        " tokens; use ByteTokenizer for single bytes."
    )


def test_bpe_refuses_to_train_on_nothing():
    with pytest.raises(UserError) as error:
        TrainedBpe().encode("a")
    assert str(error.value) == (
        "TrainedBpe has no text to train on; put it into TextData, or set its source."
    )
