"""A run that is resumed with other data is refused, and told what is another."""

import json
import os
import platform
import shutil

import pytest

from maxfdl.data import (
    ByteTokenizer,
    Files,
    FirstFit,
    HuggingFaceTokenizer,
    StandardLibrary,
    Synthetic,
    TrainedBpe,
)
from maxfdl.data.fingerprint import Fingerprint, Part
from maxfdl.data.sources.files import sampled_bytes
from maxfdl.errors import UserError

SAVED = " when this run was saved; "
PUT_BACK = (
    f"{SAVED}put back what was there, start a new run in another --run_dir, or go on"
    " with what is there now by data.accept_source=text-"
)


@pytest.fixture
def state_of(make_data):
    """Returns what a run over files saves after two batches, as JSON gives it back."""

    def save(files, **settings):
        iterator = make_data(source=Files(files=(str(files),)), **settings).train()
        next(iterator), next(iterator)
        return json.loads(json.dumps(iterator.get_state()))

    return save


@pytest.fixture
def resume(make_data):
    """Resumes; returns what it is refused with, or None."""

    def go_on(state, files, **settings):
        iterator = make_data(source=Files(files=(str(files),)), **settings).train()
        try:
            iterator.set_state(state)
            next(iterator)
        except UserError as error:
            return str(error)
        return None

    return go_on


@pytest.fixture
def folder(tmp_path):
    """A folder of texts: a.jsonl of 9 lines, b.txt, sub/c.txt."""
    folder = tmp_path / "texts"
    (folder / "sub").mkdir(parents=True)
    lines = [json.dumps({"text": f"line {i} of it"}) for i in range(9)]
    (folder / "a.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "b.txt").write_text("the text of b")
    (folder / "sub" / "c.txt").write_text("the text of c")
    return folder


def everything(folder):
    return folder / "**" / "*.*"


def test_the_same_files_may_be_moved_copied_touched_and_renamed(
    folder, tmp_path, state_of, resume, monkeypatch
):
    state = state_of(everything(folder))
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    os.utime(moved / "b.txt", (1, 1))
    (moved / "b.txt").rename(moved / "bb.txt")
    assert resume(state, everything(moved)) is None
    monkeypatch.chdir(moved)
    assert resume(state, "**/*.*") is None
    shutil.rmtree(folder)
    (tmp_path / "link").symlink_to(moved)
    assert resume(state, tmp_path / "link" / "**" / "*.*") is None


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (
            lambda f: (f / "b.txt").write_text("the text of B"),
            "has changed: [b.txt] (13 bytes) is not what it was (13 bytes)",
        ),
        (
            lambda f: (f / "sub" / "c.txt").write_text("the whole text of c"),
            "has changed: [sub/c.txt] (19 bytes) is not what it was (13 bytes)",
        ),
        (
            lambda f: (f / "a.jsonl").write_text(
                (f / "a.jsonl").read_text().replace("line 7", "Line 7")
            ),
            "has changed: [a.jsonl] (225 bytes) is not what it was (225 bytes)",
        ),
        (lambda f: (f / "b.txt").unlink(), "lacks [b.txt], which it had"),
        (
            lambda f: (f / "sub" / "d.txt").write_text("d"),
            "has [sub/d.txt], which it did not have",
        ),
        (
            lambda f: (
                (f / "b.txt").rename(f / "x.txt")
                and (f / "sub" / "c.txt").rename(f / "b.txt")
            ),
            "has changed: [b.txt] (13 bytes) is not what it was (13 bytes)",
        ),
    ],
    ids=["a letter", "a word", "a line", "a file less", "a file more", "the order"],
)
def test_other_files_are_named(folder, state_of, resume, edit, problem):
    state = state_of(everything(folder))
    edit(folder)
    message = resume(state, everything(folder))
    assert message.startswith(f"TextData.source {problem}{PUT_BACK}")


def test_every_byte_of_a_small_file_counts(folder, state_of, resume):
    state, path = state_of(everything(folder)), folder / "a.jsonl"
    content = path.read_bytes()
    for place in range(0, len(content), 7):
        edited = bytearray(content)
        edited[place] ^= 1
        path.write_bytes(edited)
        assert "has changed: [a.jsonl]" in resume(state, everything(folder))


def test_how_much_is_sampled():
    """32 MiB in all; each file gets from 16 KiB to 8 MiB, as `Files` says."""
    assert sampled_bytes(1) == sampled_bytes(4) == 8 * 2**20
    assert sampled_bytes(1024) == 32 * 2**10
    assert sampled_bytes(2048) == sampled_bytes(10**6) == 16 * 2**10
    assert all(n * sampled_bytes(n) <= 32 * 2**20 for n in range(1, 2049))


@pytest.mark.parametrize("setting", [{"field": "body"}, {"split_bytes": 4}])
def test_other_settings_of_the_files_are_named(folder, make_data, state_of, setting):
    state = state_of(folder / "b.txt", eval_fraction=0)
    source = Files(files=(str(folder / "b.txt"),), **setting)
    other = make_data(source=source, eval_fraction=0)
    with pytest.raises(UserError) as error:
        other.train().set_state(state)
    field, split = setting.get("field", "text"), setting.get("split_bytes", 65536)
    assert str(error.value).startswith(
        f"TextData.source is Files(field={field!r}, split_bytes={split}), but was"
        f" Files(field='text', split_bytes=65536){PUT_BACK}"
    )


# A bad document may be mended, and nothing else.


@pytest.fixture
def ended(folder, make_data):
    """Returns the state of a run that ended at a bad line, after some batches."""

    def run(files, **settings):
        iterator = make_data(source=Files(files=(str(files),)), **settings).train()
        with pytest.raises(UserError, match="must"):
            for _ in range(100):
                next(iterator)
        return json.loads(json.dumps(iterator.get_state()))

    return run


def replace_line(path, number, line):
    lines = path.read_text().split("\n")
    lines[number - 1] = line
    path.write_text("\n".join(lines))


@pytest.mark.parametrize("line", ["", " ", '{"text": "something much longer"}'])
def test_the_bad_line_that_ended_a_run_may_be_corrected(folder, ended, resume, line):
    path = folder / "a.jsonl"
    replace_line(path, 4, '{"text": null}')
    state = ended(path, eval_fraction=0)
    assert "line 4 must have a string" in resume(state, path, eval_fraction=0)
    replace_line(path, 4, line)
    assert resume(state, path, eval_fraction=0) is None


def test_other_lines_may_not_change_with_it(folder, ended, resume):
    path = folder / "a.jsonl"
    replace_line(path, 4, '{"text": null}')
    state = ended(path, eval_fraction=0)
    replace_line(path, 4, '{"text": "mended"}')
    replace_line(path, 5, '{"text": "edited"}')
    assert "has changed: [a.jsonl]" in resume(state, path, eval_fraction=0)


def test_a_bad_line_may_not_be_removed(folder, ended, resume):
    path = folder / "a.jsonl"
    replace_line(path, 4, '{"text": null}')
    state = ended(path, eval_fraction=0)
    path.write_text(path.read_text().replace('{"text": null}\n', ""))
    assert "has changed: [a.jsonl]" in resume(state, path, eval_fraction=0)


def test_lines_that_were_passed_over_may_be_corrected_later(folder, make_data, resume):
    path, settings = folder / "a.jsonl", {"eval_fraction": 0, "skip_bad": 2}
    replace_line(path, 4, '{"text": null}')
    replace_line(path, 6, "{")
    iterator = make_data(source=Files(files=(str(path),)), **settings).train()
    while len(iterator.bad_documents) < 2:
        next(iterator)
    replace_line(path, 6, '{"text": "mended"}')
    replace_line(path, 4, "")
    assert resume(iterator.get_state(), path, **settings) is None


def test_a_text_file_that_is_one_document_may_be_converted(folder, ended, resume):
    (folder / "b.txt").write_bytes("grün".encode("latin-1"))
    state = ended(everything(folder), eval_fraction=0)
    (folder / "b.txt").write_text("grün", "utf-8")
    assert resume(state, everything(folder), eval_fraction=0) is None


def test_a_text_file_of_several_documents_may_not(folder, make_data):
    path = folder / "b.txt"

    def batches():
        source = Files(files=(str(path),), split_bytes=8)
        return make_data(source=source, eval_fraction=0).train()

    path.write_bytes("grün und gelb und blau".encode("latin-1"))
    iterator = batches()
    with pytest.raises(UserError, match="for a new run"):
        next(iterator)
    state = iterator.get_state()
    path.write_text("gr\u00fcn und gelb und bla", "utf-8")
    with pytest.raises(UserError, match=r"has changed: \[b.txt\]"):
        batches().set_state(state)


# Other text may be accepted in so many words.


def test_a_source_that_has_changed_is_gone_on_with_if_it_is_named(
    folder, state_of, resume
):
    state = state_of(everything(folder))
    (folder / "b.txt").write_text("another text of b")
    name = resume(state, everything(folder)).split("data.accept_source=")[1][:-1]
    assert resume(state, everything(folder), accept_source=name) is None
    (folder / "b.txt").write_text("a third text of b")
    refused = resume(state, everything(folder), accept_source=name)
    assert refused.startswith("TextData.source has changed: [b.txt]")
    state = state_of(everything(folder), accept_source=name)
    assert resume(state, everything(folder)) is None


def test_another_number_of_documents_is_never_accepted(folder, state_of, resume):
    state = state_of(everything(folder))
    (folder / "d.txt").write_text("one more")
    name = resume(state, everything(folder)).split("data.accept_source=")[1][:-1]
    refused = resume(state, everything(folder), accept_source=name)
    assert refused.startswith("TextData.source has 11 documents to train on, but had")


# Other sources, and what else decides the batches.


def test_the_settings_that_decide_the_batches_are_compared(make_data):
    state = make_data().train().get_state()
    for name, value, shown, was in [
        ("seed", 1, "1", "0"),
        ("shuffle", False, "none, for shuffle is False", "0"),
        ("packing", FirstFit(3), "FirstFit(open_rows=3)", "Concatenate()"),
        ("sequence_length", 16, "16", "32"),
        ("batch_size", 16, "16", "8"),
    ]:
        with pytest.raises(UserError) as error:
            make_data(**{name: value}).train().set_state(state)
        field = "seed" if name == "shuffle" else name
        assert str(error.value) == (
            f"TextData.{field} is {shown}, but was {was}{SAVED}set it back, or start a"
            " new run in another --run_dir."
        )


def test_what_does_not_decide_the_batches_may_change(make_data):
    state = make_data().train().get_state()
    make_data(prefetch=0, skip_bad=3, vocab_size=999).train().set_state(state)
    unshuffled = make_data(shuffle=False).train().get_state()
    make_data(shuffle=False, seed=5).train().set_state(unshuffled)


@pytest.fixture
def tokenizer_file(corpus, tmp_path, monkeypatch):
    """Returns a function that writes a tokenizer.json of so many ids."""
    monkeypatch.setenv("MAXFDL_CACHE", str(tmp_path / "cache"))

    def write(name, vocab_size=300, edit=lambda text: text):
        trained = TrainedBpe(vocab_size=vocab_size).for_source(corpus)
        path = tmp_path / name / "tokenizer.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(edit(trained._tokenizer.to_str()), "utf-8")
        return HuggingFaceTokenizer(file=str(path))

    return write


def test_another_tokenizer_is_refused_and_a_copy_is_not(make_data, tokenizer_file):
    first = tokenizer_file("first")
    state = make_data(tokenizer=first).train().get_state()
    make_data(tokenizer=tokenizer_file("copy")).train().set_state(state)
    special = "(bos 0, eos 1, pad 2)"
    was = f"HuggingFaceTokenizer of 300 ids {special} {first.fingerprint}"
    for other in (tokenizer_file("smaller", 290), ByteTokenizer()):
        with pytest.raises(UserError) as error:
            make_data(tokenizer=other).train().set_state(state)
        assert str(error.value).startswith(
            f"TextData.tokenizer is {type(other).__name__}"
        )
        assert f"but was {was}{SAVED}" in str(error.value)


def test_text_is_named_before_the_tokenizer_that_was_trained_on_it(
    folder, tmp_path, state_of, resume, monkeypatch
):
    monkeypatch.setenv("MAXFDL_CACHE", str(tmp_path / "cache"))
    settings = {"tokenizer": TrainedBpe(vocab_size=270)}
    state = state_of(everything(folder), **settings)
    assert resume(state, everything(folder), **settings) is None
    (folder / "b.txt").write_text("b b b b b b b b b b b")
    message = resume(state, everything(folder), **settings)
    assert message.startswith("TextData.source has changed: [b.txt]")
    settings["accept_source"] = message.split("data.accept_source=")[1][:-1]
    message = resume(state, everything(folder), **settings)
    assert message.startswith("TextData.tokenizer is TrainedBpe of 270 ids")


def test_two_ids_that_change_places_make_another_tokenizer(tokenizer_file):
    def swap(text):
        content = json.loads(text)
        vocabulary = content["model"]["vocab"]
        a, b = list(vocabulary)[-2:]
        vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
        return json.dumps(content)

    swapped, first = tokenizer_file("swapped", edit=swap), tokenizer_file("first")
    assert swapped.vocab_size == first.vocab_size
    assert swapped.fingerprint != first.fingerprint


def test_a_way_of_splitting_makes_another_tokenizer(tokenizer_file):
    def lower(text):
        return json.dumps(json.loads(text) | {"normalizer": {"type": "Lowercase"}})

    lowered, first = tokenizer_file("lowered", edit=lower), tokenizer_file("first")
    assert lowered.fingerprint != first.fingerprint


def test_a_source_without_a_fingerprint_is_known_by_samples(
    make_data, make_source, corpus
):
    state = make_data().train().get_state()
    make_data(make_source(*corpus.texts)).train().set_state(state)
    for index in (0, len(corpus.texts) - 1):
        texts = list(corpus.texts)
        texts[index] += "x"
        with pytest.raises(UserError, match=rf"has changed: \[document {index}\]"):
            make_data(make_source(*texts)).train().set_state(state)


def test_the_standard_library_is_known_by_its_version_and_sizes(tmp_path, monkeypatch):
    (tmp_path / "a.py").write_text("a = 1")
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    first = StandardLibrary().fingerprint(())
    assert not StandardLibrary().fingerprint(()).difference(first)
    (tmp_path / "a.py").write_text("a = 10\n")
    changed = StandardLibrary().fingerprint(()).difference(first)
    assert (
        f"[Python {platform.python_version()}] (7 bytes) is not what it was (5 bytes)"
        in changed
    )
    monkeypatch.setattr("platform.python_version", lambda: "2.7.18")
    (tmp_path / "b.py").write_text("b = 1")
    assert "[Python 2.7.18]" in StandardLibrary().fingerprint(()).difference(first)


@pytest.mark.parametrize(
    ("name", "value"), [("documents_per_row", 2), ("seed", 4), ("vocab_size", 51)]
)
def test_synthetic_batches_are_known_by_their_settings(name, value):
    settings = {"batch_size": 4, "sequence_length": 16, "seed": 3, "vocab_size": 50}
    state = Synthetic(**settings).train().get_state()
    Synthetic(**settings, prefetch=0).train().set_state(state)
    with pytest.raises(UserError) as error:
        Synthetic(**settings | {name: value}).train().set_state(state)
    was = settings.get(name, 1)
    assert str(error.value).startswith(f"Synthetic.{name} is {value}, but was {was}")


@pytest.mark.parametrize("count", [1, 1000, 1001, 54_321])
def test_the_fingerprint_of_many_files_is_small_and_still_shows_every_one(count):
    parts = [Part(f"{i}.txt", i, f"{i:08x}") for i in range(count)]
    saved = Fingerprint.of_many("Files", parts)
    assert len(json.dumps(saved.to_json())) < 60_000
    assert saved.parts == parts if count <= 1000 else len(saved.parts) <= 1000
    assert not Fingerprint.of_many("Files", list(parts)).difference(saved)
    for index in (0, count // 2, count - 1):
        edited = parts.copy()
        edited[index] = parts[index]._replace(digest="ffffffff")
        assert "has changed: [" in Fingerprint.of_many("Files", edited).difference(
            saved
        )
    more = [*parts, Part("more.txt", 1, "00000000")]
    assert Fingerprint.of_many("Files", more).difference(saved)
