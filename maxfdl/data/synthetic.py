"""Random tokens, for benchmarks."""

import dataclasses
from typing import TYPE_CHECKING, Annotated

import numpy as np

from maxfdl.data.data import Data
from maxfdl.data.identity import Identity
from maxfdl.data.packing import make_batch
from maxfdl.data.rows import check_rows, rows_of
from maxfdl.data.tokenizers import ByteTokenizer
from maxfdl.errors import UserError
from maxfdl.markers import FromParent, Operational

if TYPE_CHECKING:
    from maxfdl.data.stream import SavedBatches


@dataclasses.dataclass(frozen=True, kw_only=True)
class Synthetic(Data):
    """Rows of uniformly random tokens.

    Row `i` of the whole run is a function of (seed, i), so batches are the same for
    every number of processes. A perfect model's loss is log(vocab_size).

    Args:
      documents_per_row: Segments of a row, which is divided at random places.
      prefetch: Batches that a background thread keeps ready; 0 makes them on demand.
      batch_size, sequence_length, seed, process_index, process_count: As in
        `TextData`.
      vocab_size: Tokens are from 0 to one less than this.
    """

    documents_per_row: int = 1
    prefetch: Annotated[int, Operational] = 4
    batch_size: Annotated[int, FromParent]
    sequence_length: Annotated[int, FromParent]
    seed: Annotated[int, FromParent]
    process_index: Annotated[int | tuple[int, ...], FromParent] = 0
    process_count: Annotated[int, FromParent] = 1
    vocab_size: Annotated[int, FromParent]

    def __post_init__(self):
        check_rows(self)
        if not 1 <= self.documents_per_row <= self.sequence_length:
            raise UserError(
                f"Synthetic.documents_per_row [{self.documents_per_row}] must be from 1"
                f" to sequence_length [{self.sequence_length}]."
            )

    @property
    def tokenizer(self) -> ByteTokenizer:
        return ByteTokenizer()

    def train(self) -> "SavedBatches":
        """Returns this process's rows of every batch, without end."""
        from maxfdl.data.stream import SavedBatches, made_forever, prefetched

        batches = made_forever(lambda i: self._batch(self.seed, i))
        names = ("documents_per_row", "batch_size", "sequence_length", "seed")
        settings = {name: getattr(self, name) for name in (*names, "vocab_size")}
        return SavedBatches(
            prefetched(batches, self.prefetch), Identity("Synthetic", lambda: settings)
        )

    def evaluation(self, num_batches: int) -> list[dict[str, np.ndarray]]:
        """Returns this process's rows of batches that depend on no seed."""
        return [self._batch(2**32, index) for index in range(num_batches)]

    def _batch(self, seed: int, index: int) -> dict[str, np.ndarray]:
        first = index * self.batch_size
        rows = [self._row(seed, first + row) for row in rows_of(self)]
        return make_batch(rows, self.sequence_length, padding=0)

    def _row(self, seed: int, index: int) -> list[np.ndarray]:
        random = np.random.Generator(np.random.Philox(key=[seed, index]))
        tokens = random.integers(
            self.vocab_size, size=self.sequence_length, dtype=np.int32
        )
        places = self.sequence_length - 1
        cuts = random.choice(places, self.documents_per_row - 1, replace=False) + 1
        return np.split(tokens, np.sort(cuts))
