"""Documents that cannot be read end a stream, or are passed over up to a number."""

import itertools
import json

import numpy as np
import pytest

from maxfdl.data import FirstFit, TrainedBpe
from maxfdl.data.bad_documents import BadDocumentError, BadDocuments
from maxfdl.errors import UserError

BAD = (3, 17, 30)


@pytest.fixture
def flawed(corpus, make_source):
    """The corpus, with three documents that cannot be read."""
    return make_source(
        *(None if i in BAD else text for i, text in enumerate(corpus.texts))
    )


@pytest.fixture
def blanked(corpus, make_source):
    """The corpus, with those documents empty."""
    return make_source(
        *("" if i in BAD else text for i, text in enumerate(corpus.texts))
    )


def until_it_ends(iterator, most=400):
    """Returns the batches that an iterator gives, and why it gives no more."""
    batches = []
    while len(batches) < most:
        try:
            batches.append(next(iterator))
        except UserError as error:
            return batches, str(error)
    return batches, None


def test_the_first_bad_document_ends_a_stream_that_may_pass_none(
    make_data, flawed, blanked
):
    batches, why = until_it_ends(make_data(flawed).train())
    assert why == (
        "document 3 must be text; mend it, or go on without it by data.skip_bad=1."
    )
    clean = itertools.islice(make_data(blanked).train(), len(batches))
    np.testing.assert_equal(batches, list(clean))


@pytest.mark.parametrize("packing", [None, FirstFit(open_rows=3)])
@pytest.mark.parametrize("prefetch", [0, 3])
@pytest.mark.parametrize("process_count", [1, 2, 8])
def test_documents_that_are_passed_over_are_empty_ones(
    make_data, flawed, blanked, packing, prefetch, process_count
):
    settings = {"prefetch": prefetch, "process_count": process_count}
    settings |= {"packing": packing} if packing else {}
    for index in range(process_count):
        data = make_data(flawed, skip_bad=3, process_index=index, **settings)
        clean = make_data(blanked, process_index=index, **settings)
        pairs = zip(data.train(), clean.train(), strict=True)
        for batch, expected in itertools.islice(pairs, 40):
            np.testing.assert_equal(batch, expected)
        np.testing.assert_equal(data.evaluation(4), clean.evaluation(4))


@pytest.mark.parametrize("skip_bad", [0, 1, 2])
@pytest.mark.parametrize("packing", [None, FirstFit(open_rows=3)])
def test_threads_and_resuming_do_not_change_where_a_stream_ends(
    make_data, flawed, packing, skip_bad
):
    settings = {"skip_bad": skip_bad, "packing": packing}
    settings = {name: value for name, value in settings.items() if value is not None}
    batches, why = until_it_ends(make_data(flawed, prefetch=0, **settings).train())
    assert f"data.skip_bad={skip_bad + 1}." in why
    assert until_it_ends(make_data(flawed, **settings).train())[1] == why
    for stop in {0, len(batches) // 2, len(batches)}:
        began = make_data(flawed, **settings).train()
        for _ in range(stop):
            next(began)
        resumed = make_data(flawed, **settings).train()
        resumed.set_state(json.loads(json.dumps(began.get_state())))
        rest, again = until_it_ends(resumed)
        assert again == why
        np.testing.assert_equal(rest, batches[stop:])


def test_a_bad_document_counts_once_and_is_told_once(make_data, flawed, capsys):
    iterator = make_data(flawed, skip_bad=5, eval_fraction=0).train()
    batches, why = until_it_ends(iterator)
    assert (len(batches), why) == (400, None)  # some thirty epochs
    assert sorted(iterator.bad_documents) == list(BAD)
    lines = capsys.readouterr().err.splitlines()
    expected = [
        f"skipped bad document {number} of at most 5: document {index} must be text"
        for number, index in enumerate(iterator.bad_documents, 1)
    ]
    assert lines == expected


def test_the_documents_reported_are_those_of_the_batches_given(make_data, flawed):
    """Not those that the background has already met for batches to come."""
    counts = []
    for prefetch in (0, 4):
        iterator = make_data(flawed, skip_bad=3, prefetch=prefetch).train()
        steps = [len(iterator.bad_documents)]
        for _ in range(30):
            next(iterator)
            steps.append(len(iterator.bad_documents))
        counts.append(steps)
    assert counts[0] == counts[1]
    assert counts[0][0] == 0 and len(set(counts[0])) > 1


def test_a_stream_that_ended_goes_on_when_more_may_pass(make_data, flawed, blanked):
    ended = make_data(flawed).train()
    batches, _ = until_it_ends(ended)
    resumed = make_data(flawed, skip_bad=3).train()
    resumed.set_state(ended.get_state())
    expected = itertools.islice(make_data(blanked).train(), len(batches) + 20)
    rest = itertools.islice(resumed, 20)
    np.testing.assert_equal([*batches, *rest], list(expected))


def test_a_stream_that_ended_ends_again_at_every_try(make_data, flawed):
    iterator = make_data(flawed).train()
    _, why = until_it_ends(iterator)
    state = iterator.get_state()
    assert until_it_ends(iterator) == ([], why)
    assert iterator.get_state() == state


def test_a_resumed_stream_keeps_its_count_and_is_silent_about_it(
    make_data, flawed, capsys
):
    settings = {"skip_bad": 3, "eval_fraction": 0, "prefetch": 0}
    began = make_data(flawed, **settings).train()
    while not began.bad_documents:
        next(began)
    resumed = make_data(flawed, **settings).train()
    capsys.readouterr()
    resumed.set_state(began.get_state())
    before = began.bad_documents
    assert resumed.bad_documents == before and len(before) < 3
    until_it_ends(resumed)
    told = [line.split()[3] for line in capsys.readouterr().err.splitlines()]
    assert told == ["2", "3"][len(before) - 1 :]


def test_the_number_that_was_too_many_is_told():
    bad = BadDocuments(limit=2)
    error = BadDocumentError("line 7 must be text", "mend it", " Did you mean 'x'?")
    for index in (4, 5, 4, 5):
        bad.meet(index, error)
    with pytest.raises(UserError) as found:
        bad.meet(6, error)
    assert str(found.value) == (
        "line 7 must be text; data.skip_bad [2] lets 2 pass, and this is one more; mend"
        " it, or go on without it by data.skip_bad=3. Did you mean 'x'?"
    )
    assert str(error) == "line 7 must be text; mend it. Did you mean 'x'?"


def test_a_tokenizer_is_trained_past_bad_documents(
    make_data, flawed, blanked, tmp_path, monkeypatch
):
    monkeypatch.setenv("MAXFDL_CACHE", str(tmp_path))
    tokenizers = [
        make_data(source, tokenizer=TrainedBpe(vocab_size=300), skip_bad=3).tokenizer
        for source in (flawed, blanked)
    ]
    assert tokenizers[0].fingerprint == tokenizers[1].fingerprint
    refusing = make_data(flawed, tokenizer=TrainedBpe(vocab_size=300), skip_bad=2)
    with pytest.raises(UserError, match="lets 2 pass, and this is one more"):
        refusing.tokenizer.encode("a")


def test_a_negative_number_is_refused(make_data):
    with pytest.raises(UserError) as error:
        make_data(skip_bad=-1)
    assert str(error.value) == (
        "TextData.skip_bad [-1] must not be negative; it is how many bad documents to"
        " pass over."
    )
