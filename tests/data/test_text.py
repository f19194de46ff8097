"""Text data: order, shares, the split, and what it refuses."""

import dataclasses
import re
import subprocess
import sys

import numpy as np
import pytest

from maxfdl.data import ByteTokenizer, Concatenate, FirstFit, StandardLibrary
from maxfdl.data.split import split_documents
from maxfdl.errors import UserError


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def assert_equal(batches, others):
    np.testing.assert_equal(batches, others)


def words(data, batches):
    """The documents seen, by the words that only they hold."""
    text = " ".join(data.tokenizer.decode(row) for b in batches for row in b["tokens"])
    return set(re.findall(r"d\d\d", text))


def test_the_same_seed_gives_the_same_batches(make_data):
    assert_equal(take(make_data().train(), 20), take(make_data().train(), 20))


def test_another_seed_gives_another_order(make_data):
    first, other = next(make_data().train()), next(make_data(seed=1).train())
    assert (first["tokens"] != other["tokens"]).any()


def test_the_background_changes_nothing(make_data):
    assert_equal(
        take(make_data(prefetch=0).train(), 20), take(make_data(prefetch=3).train(), 20)
    )


@pytest.mark.parametrize("packing", [Concatenate(), FirstFit(open_rows=3)])
@pytest.mark.parametrize("num_documents", [3, 40])
@pytest.mark.parametrize("process_count", [2, 4, 8])
def test_the_shares_of_all_processes_are_the_global_batch(
    make_data, make_source, corpus, packing, num_documents, process_count
):
    settings = {"source": make_source(*corpus.texts[:num_documents])}
    settings |= {"packing": packing, "prefetch": 0}
    whole = take(make_data(**settings).train(), 6)
    shares = [
        make_data(**settings, process_index=i, process_count=process_count)
        for i in range(process_count)
    ]
    parts = [take(share.train(), 6) for share in shares]
    evaluations = [share.evaluation(2) for share in shares]
    assert_equal(whole, [concatenate(step) for step in zip(*parts, strict=True)])
    assert_equal(
        make_data(**settings).evaluation(2),
        [concatenate(step) for step in zip(*evaluations, strict=True)],
    )


def concatenate(batches):
    return {
        name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]
    }


def test_a_document_is_framed_by_bos_and_eos_and_eos_is_a_target(
    make_data, make_source
):
    data = make_data(
        make_source("abc"), eval_fraction=0, batch_size=1, sequence_length=10
    )
    batch = next(data.train())
    assert batch["tokens"].tolist() == [[256, 97, 98, 99, 257] * 2]
    assert batch["targets"].tolist() == [[97, 98, 99, 257, 258] * 2]
    assert batch["weights"].tolist() == [[1, 1, 1, 1, 0] * 2]
    assert batch["segment_ids"].tolist() == [[1] * 5 + [2] * 5]


def test_training_sees_every_document_that_is_not_held_out(make_data):
    data = make_data(eval_fraction=0.2)
    trained = words(data, take(data.train(), 60))
    held_out = words(data, data.evaluation(20))
    assert not trained & held_out
    assert len(trained | held_out) == 40


def test_one_lane_sees_every_document_once_an_epoch(make_data, make_source):
    texts = [chr(97 + i) * 3 for i in range(10)]
    data = make_data(
        make_source(*texts),
        eval_fraction=0,
        interleave=1,
        batch_size=1,
        sequence_length=50,
    )
    epochs = [data.tokenizer.decode(b["tokens"][0]) for b in take(data.train(), 3)]
    assert [sorted(epoch) for epoch in epochs] == [sorted("".join(texts))] * 3
    assert len(set(epochs)) == 3


def test_without_shuffling_documents_come_in_their_order(make_data, make_source):
    data = make_data(
        make_source("a", "b", "c"),
        eval_fraction=0,
        shuffle=False,
        batch_size=1,
        sequence_length=9,
    )
    assert data.tokenizer.decode(next(data.train())["tokens"][0]) == "abc"


def test_evaluation_depends_neither_on_the_seed_nor_on_what_was_called_before(
    make_data,
):
    data = make_data()
    first = data.evaluation(3)
    next(data.train())
    assert_equal(first, data.evaluation(3))
    assert_equal(first, make_data(seed=5).evaluation(3))
    assert_equal(first[:2], data.evaluation(2))


@pytest.mark.parametrize("num_documents", [2, 3, 10, 1000])
@pytest.mark.parametrize("fraction", [0.001, 0.1, 0.999])
def test_the_split_is_a_partition_with_documents_on_both_sides(num_documents, fraction):
    train, held_out = split_documents(num_documents, fraction)
    assert sorted([*train, *held_out]) == list(range(num_documents))
    assert len(train) and len(held_out)


def test_the_split_is_about_as_large_as_asked_and_stays_when_documents_are_added():
    _, small = split_documents(5_000, 0.1)
    _, large = split_documents(10_000, 0.1)
    assert 900 < len(large) < 1100
    assert set(small) == {index for index in large if index < 5_000}


def test_the_standard_library_gives_full_rows_of_text(make_data):
    data = make_data(StandardLibrary(), prefetch=0, sequence_length=256)
    batch = next(data.train())
    assert batch["tokens"].shape == (8, 256)
    assert (batch["segment_ids"] > 0).all()


def test_importing_the_data_package_is_light():
    heavy = {"grain", "jax", "tokenizers", "pyarrow", "fiddle"}
    program = f"import sys, maxfdl.data; print({heavy} & sys.modules.keys())"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


def test_a_process_that_stops_early_ends_at_once():
    program = (
        "from maxfdl.data import *\n"
        "data = TextData(source=StandardLibrary(), tokenizer=ByteTokenizer(),"
        " batch_size=4, sequence_length=64, seed=0)\n"
        "iterator = data.train(); next(iterator)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"batch_size": 6, "process_count": 4},
            "batch_size [6] must be a positive multiple of the number of processes [4];"
            " every process gives the same number of rows.",
        ),
        (
            {"process_index": 2, "process_count": 2},
            "process_index [2] must be from 0 to 1.",
        ),
        (
            {"sequence_length": 1},
            "sequence_length [1] must be at least 2: a token and the next one, which it"
            " predicts.",
        ),
        ({"seed": -1}, "seed [-1] must be from 0 to 2**32 - 1."),
        (
            {"eval_fraction": 1.0},
            "TextData.eval_fraction [1.0] must be at least 0 and less than 1.",
        ),
        (
            {"prefetch": -1},
            "TextData.prefetch [-1] must not be negative; 0 makes batches on demand.",
        ),
    ],
)
def test_refuses_what_cannot_be(make_data, settings, message):
    with pytest.raises(UserError) as error:
        make_data(**settings)
    assert str(error.value) == message


NO_EVALUATION = (
    "or train without evaluation: trainer.eval_batches=0 and trainer.sample_tokens=0."
)


def test_refuses_to_evaluate_when_nothing_is_held_out(make_data):
    with pytest.raises(UserError) as error:
        make_data(eval_fraction=0).evaluation(1)
    assert str(error.value) == (
        "TextData.eval_fraction [0] holds no document out; set it above 0,"
        f" {NO_EVALUATION}"
    )


@dataclasses.dataclass(frozen=True)
class Letters(ByteTokenizer):
    """Bytes without BOS and EOS around a document: a letter is one token."""

    def encode_document(self, text):
        return np.array(self.encode(text), np.int32)


@pytest.mark.parametrize("held_out", ["", "x"])
@pytest.mark.parametrize("process_count", [1, 4])
@pytest.mark.parametrize("packing", [Concatenate(), FirstFit(open_rows=3)])
def test_refuses_to_evaluate_on_documents_without_anything_to_predict(
    make_data, make_source, held_out, process_count, packing
):
    _, held = split_documents(40, 0.05)
    texts = [held_out if i in held else f"some text {i}" for i in range(40)]
    data = make_data(
        make_source(*texts),
        tokenizer=Letters(),
        process_count=process_count,
        packing=packing,
    )
    with pytest.raises(UserError) as error:
        data.evaluation(2)
    assert str(error.value) == (
        f"TextData holds out {len(held)} documents, in which 2 batches find no token to"
        " predict: they are empty, or single tokens; set data.eval_fraction [0.05]"
        f" higher, {NO_EVALUATION}"
    )


@pytest.mark.parametrize("process_count", [1, 2, 4, 8])
def test_evaluates_if_one_of_all_held_out_documents_has_text(
    make_data, make_source, process_count
):
    """Whatever lane and process it belongs to."""
    _, held = split_documents(200, 0.05)
    for only in held:
        texts = ["" if i in held and i != only else "text" for i in range(200)]
        for index in range(process_count):
            data = make_data(
                make_source(*texts), process_index=index, process_count=process_count
            )
            (batch,) = data.evaluation(1)
            tokens = set(batch["tokens"].ravel()) - {data.tokenizer.pad_id}
            assert tokens == {*data.tokenizer.encode("text"), 256, 257}


def test_a_process_without_targets_of_its_own_evaluates_with_the_others(
    make_data, make_source
):
    """Of its rows that is: the batches of all processes together have some."""
    _, held = split_documents(40, 0.2)
    texts = ["x" if i != held[0] else "some text" for i in range(40)]
    settings = {"tokenizer": Letters(), "eval_fraction": 0.2, "process_count": 8}
    settings |= {"packing": FirstFit(), "sequence_length": 4}
    shares = [
        make_data(make_source(*texts), process_index=i, **settings) for i in range(8)
    ]
    have_targets = [share.evaluation(1)[0]["weights"].any() for share in shares]
    assert any(have_targets) and not all(have_targets)


@pytest.mark.parametrize("num_documents", [2, 4, 8, 24])
def test_an_unshuffled_stream_finds_the_one_document_that_has_text(
    make_data, make_source, num_documents
):
    texts = [""] * (num_documents - 1) + ["text"]
    data = make_data(make_source(*texts), eval_fraction=0, shuffle=False)
    batch = next(data.train())
    assert data.tokenizer.decode(batch["tokens"][0]).startswith("texttext")


def test_refuses_to_hold_the_only_document_out(make_data, make_source):
    with pytest.raises(UserError) as error:
        make_data(make_source("alone")).train()
    assert str(error.value) == (
        "TextData.source has 1 document and cannot hold one out; give it more"
        " (Files.split_bytes cuts a .txt file into smaller ones), or set"
        " data.eval_fraction=0 and train without evaluation: trainer.eval_batches=0 and"
        " trainer.sample_tokens=0."
    )


def test_refuses_a_model_without_room_for_the_ids(make_data):
    with pytest.raises(UserError) as error:
        make_data(vocab_size=256).train()
    assert str(error.value) == (
        "model.vocab_size [256] must be at least 259, the number of ids of"
        " ByteTokenizer; set it to that."
    )


def test_an_error_in_the_background_reaches_the_reader(make_data, make_source):
    iterator = make_data(make_source("", "", "")).train()
    with pytest.raises(UserError, match="empty documents one after another"):
        next(iterator)


def test_a_lane_takes_turns_with_documents(make_data, make_source):
    source = make_source(*(letter * 40 for letter in "abcdefghijklmnop"))
    data = make_data(
        source,
        eval_fraction=0,
        shuffle=False,
        interleave=3,
        batch_size=1,
        sequence_length=8,
    )
    batches = data.train()
    rows = [data.tokenizer.decode(next(batches)["tokens"][0]) for _ in range(6)]
    assert [row[0] for row in rows] == ["a", "b", "c", "a", "b", "c"]
