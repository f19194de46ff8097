"""Rows against a packer in plain Python, and what must hold for every row."""

import numpy as np
import pytest

from maxfdl.data import Concatenate, FirstFit
from maxfdl.data.documents import Documents
from maxfdl.data.packing import PieceReader, make_batch
from maxfdl.errors import UserError
from tests.data.plain_packer import concatenated_rows, fields_of

LENGTH = 16


def some_documents(count=400):
    random = np.random.default_rng(1)
    sizes = random.choice([0, 1, 2, 5, 15, 16, 17, 32, 50], count)
    return [random.integers(0, 1000, size).astype(np.int32) for size in sizes]


def reader_of(documents):
    endless = Documents(
        order=lambda number: number % len(documents),
        tokens=lambda index: documents[index],
        patience=50,
    )
    return PieceReader(endless, first=0, step=1)


def rows_of(packing, documents, num_rows):
    reader, rows = reader_of(documents), []
    while len(rows) < num_rows:
        rows += packing(reader, LENGTH)
    return rows


def test_concatenated_rows_are_those_of_the_plain_packer():
    documents = some_documents()
    batch = make_batch(rows_of(Concatenate(), documents, 64), LENGTH, padding=9)
    expected = [
        fields_of(row, LENGTH, padding=9)
        for row in concatenated_rows(documents, LENGTH, 64)
    ]
    for name, array in batch.items():
        np.testing.assert_array_equal(array, [row[name] for row in expected], name)


def test_concatenation_uses_every_token_once_and_in_order():
    documents = some_documents()
    rows = rows_of(Concatenate(), documents, 64)
    stream = np.concatenate([piece for row in rows for piece in row])
    np.testing.assert_array_equal(stream, np.concatenate(documents)[: 64 * LENGTH])


def test_first_fit_places_every_piece_once_and_cuts_only_long_documents():
    documents = some_documents()
    rows = rows_of(FirstFit(open_rows=4), documents, 64)
    pieces = [tuple(piece) for row in rows for piece in row]
    cut = [
        tuple(tokens[start : start + LENGTH])
        for tokens in documents
        for start in range(0, len(tokens), LENGTH)
    ]
    assert sorted(pieces) == sorted(cut[: len(pieces)])
    assert all(0 < sum(map(len, row)) <= LENGTH for row in rows)


def test_first_fit_puts_a_piece_into_the_first_row_with_room():
    documents = [np.full(size, size, np.int32) for size in (10, 12, 6, 4, 16)]
    rows = FirstFit(open_rows=2)(reader_of(documents), LENGTH)
    assert [[len(piece) for piece in row] for row in rows] == [[10, 6], [12, 4]]


@pytest.mark.parametrize("packing", [Concatenate(), FirstFit(open_rows=4)])
def test_every_row_keeps_the_contract(packing):
    rows = rows_of(packing, some_documents(), 64)
    batch = make_batch(rows, LENGTH, padding=7)
    ids, positions = batch["segment_ids"], batch["positions"]
    same = (ids[:, 1:] == ids[:, :-1]) & (ids[:, 1:] > 0)
    np.testing.assert_array_equal(batch["weights"][:, :-1], same)
    assert not batch["weights"][:, -1].any()
    np.testing.assert_array_equal(
        batch["targets"][:, :-1][same], batch["tokens"][:, 1:][same]
    )
    np.testing.assert_array_equal(positions[:, 1:][same], positions[:, :-1][same] + 1)
    assert not positions[:, 1:][~same].any()
    assert not positions[:, 0].any()
    assert (ids[:, 0] == 1).all()
    assert set(np.diff(ids)[np.diff(ids) > 0]) == {1}
    assert (batch["tokens"][ids == 0] == 7).all()


def test_fields_have_the_types_of_the_contract():
    batch = make_batch(rows_of(Concatenate(), some_documents(), 4), LENGTH, padding=0)
    types = {name: array.dtype.name for name, array in batch.items()}
    assert types.pop("weights") == "float32"
    assert types == dict.fromkeys(
        ["tokens", "targets", "segment_ids", "positions"], "int32"
    )


def test_a_source_without_text_is_refused_and_not_searched_for_ever():
    with pytest.raises(UserError) as error:
        reader_of([np.zeros(0, np.int32)]).peek(4)
    assert str(error.value) == (
        "TextData.source gave 50 empty documents one after another; give it text."
    )


def test_first_fit_needs_a_row():
    with pytest.raises(UserError) as error:
        FirstFit(open_rows=0)
    assert str(error.value) == (
        "FirstFit.open_rows [0] must be positive; more rows leave less padding."
    )
