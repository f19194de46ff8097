"""Packs documents into rows.

A document is an int32 array of token ids. A *piece* is a run of one document's
tokens; a row is a list of pieces that fills at most `length` places. Every piece is
a segment of its own, with positions from 0: the rest of a document that was cut at
the end of a row attends to nothing before the cut.

Grain's packers are not used. `ConcatThenSplitIterDataset` (0.2.18) drops documents
when its state has been through JSON, which is how Orbax stores it: the empty slice
(-1, -1) comes back as a list and no longer equals the tuple.
"""

import abc
import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from maxfdl.data.documents import Document, Documents
from maxfdl.errors import UserError

Row = list[np.ndarray]
Batch = dict[str, np.ndarray]


class NoTextError(UserError):
    """Raised if a source gives no token."""


class PieceReader:
    """Reads documents `first`, `first + step`, ... piece by piece.

    Its position is two numbers: documents that are done, and tokens of the current one
    that are done. Empty documents are skipped, and bad ones up to a limit. The next run
    of documents is requested as soon as one is current, so that a pool may tokenize it
    meanwhile.
    """

    def __init__(self, documents: Documents, first: int, step: int):
        self._documents = documents
        self._first = first
        self._step = step
        self.seek(0, 0)

    @property
    def place(self) -> tuple[int, int]:
        return self._done, self._offset

    def seek(self, done: int, offset: int) -> None:
        self._done, self._offset = done, offset
        self._run: list[Document] = []
        self._run_began = done
        self._coming = self._ask_for(done)

    def peek(self, limit: int) -> np.ndarray:
        """Returns the next piece, of 1 to `limit` tokens."""
        for _ in range(self._documents.patience):
            tokens = self._document()
            if self._offset < len(tokens):
                return tokens[self._offset : self._offset + limit]
            self._done, self._offset = self._done + 1, 0
        raise NoTextError(
            f"TextData.source gave {self._documents.patience} empty documents one after"
            " another; give it text."
        )

    def take(self, limit: int) -> np.ndarray:
        """Returns the next piece and moves past it."""
        piece = self.peek(limit)
        self._offset += len(piece)
        return piece

    def _document(self) -> np.ndarray:
        if self._done == self._run_began + len(self._run):
            self._run, self._run_began = self._coming(), self._done
            self._coming = self._ask_for(self._done + len(self._run))
        document = self._run[self._done - self._run_began]
        return self._documents.readable(self._number(self._done), document)

    def _ask_for(self, done: int) -> Callable[[], list[Document]]:
        return self._documents.ask_for(self._number(done), self._step)

    def _number(self, done: int) -> int:
        return self._first + done * self._step


class Packing(abc.ABC):
    """Base: reads pieces and returns one row or more, in order."""

    @abc.abstractmethod
    def __call__(self, reader: PieceReader, length: int) -> list[Row]: ...


@dataclasses.dataclass(frozen=True)
class Concatenate(Packing):
    """Concatenates documents and cuts them every `length` tokens.

    No token is dropped and there is no padding. A document that crosses the end of a
    row continues in the next.
    """

    def __call__(self, reader: PieceReader, length: int) -> list[Row]:
        row, room = [], length
        while room:
            row.append(reader.take(room))
            room -= len(row[-1])
        return [row]


@dataclasses.dataclass(frozen=True)
class FirstFit(Packing):
    """Puts each whole document into the first of `open_rows` rows that has room for it.

    Only documents longer than a row are cut. Rows end in padding. The open rows are
    closed together, when a piece fits into none of them.
    """

    open_rows: int = 16

    def __post_init__(self):
        if self.open_rows < 1:
            raise UserError(
                f"FirstFit.open_rows [{self.open_rows}] must be positive; more rows"
                " leave less padding."
            )

    def __call__(self, reader: PieceReader, length: int) -> list[Row]:
        rows = [[] for _ in range(self.open_rows)]
        room = [length] * self.open_rows
        while True:
            size = len(reader.peek(length))
            fitting = next((i for i, left in enumerate(room) if left >= size), None)
            if fitting is None:
                return rows
            rows[fitting].append(reader.take(length))
            room[fitting] -= size


def make_batch(rows: Sequence[Row], length: int, padding: int) -> Batch:
    """Returns the arrays of a batch, all [rows, length].

    `targets` is the next token of the same piece. The last token of a piece has no
    target, so its weight is 0, as that of padding is; where there is no token, tokens
    and targets are `padding`. So a document's EOS is a target, and predicts nothing.
    """
    shape = (len(rows), length)
    batch = {
        "tokens": np.full(shape, padding, np.int32),
        "targets": np.full(shape, padding, np.int32),
        "segment_ids": np.zeros(shape, np.int32),
        "positions": np.zeros(shape, np.int32),
        "weights": np.zeros(shape, np.float32),
    }
    count = np.arange(length, dtype=np.int32)
    for i, row in enumerate(rows):
        start = 0
        for segment, piece in enumerate(row, 1):
            stop = start + len(piece)
            batch["tokens"][i, start:stop] = piece
            batch["targets"][i, start : stop - 1] = piece[1:]
            batch["segment_ids"][i, start:stop] = segment
            batch["positions"][i, start:stop] = count[: len(piece)]
            batch["weights"][i, start : stop - 1] = 1
            start = stop
    return batch
