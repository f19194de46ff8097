"""Text for training and evaluation: a source, a tokenizer and a packing."""

import dataclasses
import functools
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Annotated

import numpy as np

from maxfdl.data.bad_documents import BadDocuments
from maxfdl.data.data import Data
from maxfdl.data.documents import Documents
from maxfdl.data.identity import Identity, described
from maxfdl.data.lanes import LanePlan
from maxfdl.data.order import EndlessOrder
from maxfdl.data.packing import (
    Batch,
    Concatenate,
    NoTextError,
    Packing,
    make_batch,
)
from maxfdl.data.rows import check_rows
from maxfdl.data.sources import Source
from maxfdl.data.sources.readable import ReadableSource
from maxfdl.data.split import split_documents
from maxfdl.data.tokenizers import Tokenizer, check_ids
from maxfdl.errors import UserError
from maxfdl.markers import FromParent, Operational

if TYPE_CHECKING:
    from maxfdl.data.stream import SavedBatches


_NO_EVALUATION = (
    "train without evaluation: trainer.eval_batches=0 and trainer.sample_tokens=0"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextData(Data):
    """Batches of packed text; see `make_batch` for their fields.

    A document becomes the tokens that its tokenizer gives a text that stands alone,
    usually with BOS in front, and EOS behind them (`Tokenizer.encode_document`).
    Documents are split once, by a hash of their index, into those for training and
    those held out.

    A document that cannot be read ends the run, with a sentence that says where it is;
    `skip_bad` lets that many pass, as if they were empty. Each counts once; training,
    evaluation and the sample that a tokenizer is trained on have counts of their own.

    Args:
      source: The documents.
      tokenizer: Turns them into ids. A trained one is trained on `source`.
      packing: `Concatenate()` or `FirstFit()`.
      eval_fraction: About which share of the documents is held out; 0 is none.
      shuffle: Whether every epoch has its own order, drawn from `seed`.
      interleave: Documents that a row of the batch takes turns with, one per batch.
      prefetch: Batches that a background thread keeps ready; 0 makes them on demand.
      skip_bad: How many bad documents to pass over. Several processes count together,
        when they log a step. A run may go on with another number.
      accept_source: Names a source that has changed since the run was saved, to go on
        with it all the same; the refusal tells the name. The number of documents must
        be what it was.
      batch_size: Rows of the global batch, a multiple of `process_count`.
      sequence_length: Tokens in a row.
      seed: Of the order of the training documents, and nothing else.
      process_index: Which share of every batch's rows to give; several, in order, where
        the devices of a process hold more than one.
      process_count: In how many shares. The global batch does not depend on it.
      vocab_size: The model's, which must have room for the tokenizer's ids; None
        leaves that unchecked.
    """

    source: Source
    tokenizer: Tokenizer
    packing: Packing = Concatenate()
    eval_fraction: float = 0.05
    shuffle: bool = True
    interleave: int = 16
    prefetch: Annotated[int, Operational] = 4
    skip_bad: Annotated[int, Operational] = 0
    accept_source: Annotated[str | None, Operational] = None
    batch_size: Annotated[int, FromParent]
    sequence_length: Annotated[int, FromParent]
    seed: Annotated[int, FromParent]
    process_index: Annotated[int | tuple[int, ...], FromParent] = 0
    process_count: Annotated[int, FromParent] = 1
    vocab_size: Annotated[int | None, FromParent] = None

    def __post_init__(self):
        for problem in self.check_config(self):
            raise UserError(problem)
        check_rows(self)
        source = ReadableSource(self.source, BadDocuments(self.skip_bad))
        tokenizer = self.tokenizer.for_source(source)
        object.__setattr__(self, "tokenizer", tokenizer)

    @staticmethod
    def check_config(node) -> Iterable[str]:
        if not 0 <= node.eval_fraction < 1:
            yield (
                f"TextData.eval_fraction [{node.eval_fraction}] must be at least 0 and"
                " less than 1."
            )
        if node.interleave < 1:
            yield f"TextData.interleave [{node.interleave}] must be positive."
        if node.prefetch < 0:
            yield (
                f"TextData.prefetch [{node.prefetch}] must not be negative; 0 makes"
                " batches on demand."
            )
        if node.skip_bad < 0:
            yield (
                f"TextData.skip_bad [{node.skip_bad}] must not be negative; it is how"
                " many bad documents to pass over."
            )

    def train(self) -> "SavedBatches":
        """Returns this process's rows of every training batch, without end.

        The iterator has Grain's `get_state` and `set_state`, in JSON values: a resumed
        one goes on with the very next batch, and refuses to if the batches would be
        other ones than those of the run that was saved.
        """
        from maxfdl.data.stream import PackedBatches, SavedBatches, prefetched

        self._check_vocabulary()
        indices, _ = self._split
        plan = self._plan(len(indices))
        seed = self.seed if self.shuffle else None
        documents = self._documents(
            EndlessOrder(indices, seed, plan.shift),
            BadDocuments(self.skip_bad),
            in_background=self.prefetch > 0,
        )
        batches = PackedBatches(
            documents,
            plan=plan,
            packing=self.packing,
            length=self.sequence_length,
            padding=self._padding,
        )
        return SavedBatches(
            prefetched(batches, self.prefetch),
            Identity("TextData", self._settings, self.source, self.accept_source),
            documents.bad,
        )

    def evaluation(self, num_batches: int) -> list[Batch]:
        """Returns this process's rows of batches from the held-out documents.

        They depend on the documents, the tokenizer, the packing and the shape of the
        batch alone. Held-out documents that do not fill them come again.

        Raises:
          UserError: If no document is held out, or the batches, of all processes, have
            no token to predict.
        """
        _, indices = self._split
        if not len(indices):
            raise UserError(
                f"TextData.eval_fraction [{self.eval_fraction}] holds no document out;"
                f" set it above 0, or {_NO_EVALUATION}."
            )
        self._check_vocabulary()
        plan = self._plan(len(indices))
        batches = self._evaluation_batches(indices, plan, num_batches)
        if not _has_targets(batches):
            whole = dataclasses.replace(plan, process_index=0, process_count=1)
            if not _has_targets(self._evaluation_batches(indices, whole, num_batches)):
                raise UserError(
                    f"TextData holds out {len(indices)} documents, in which"
                    f" {num_batches} batches find no token to predict: they are empty,"
                    " or single tokens; set data.eval_fraction"
                    f" [{self.eval_fraction}] higher, or {_NO_EVALUATION}."
                )
        return batches

    def _evaluation_batches(
        self, indices: np.ndarray, plan: LanePlan, num_batches: int
    ) -> list[Batch]:
        order = EndlessOrder(indices, shift=plan.shift)
        documents = self._documents(order, self._bad_held_out)
        lanes = plan.make_lanes(documents, self.packing, self.sequence_length)
        try:
            return [
                make_batch(plan.next_rows(lanes), self.sequence_length, self._padding)
                for _ in range(num_batches)
            ]
        except NoTextError:
            return []

    @functools.cached_property
    def _split(self) -> tuple[np.ndarray, np.ndarray]:
        num_documents = len(self.source)
        if num_documents < 2 and self.eval_fraction > 0:
            raise UserError(
                f"TextData.source has {num_documents} document and cannot hold one out;"
                " give it more (Files.split_bytes cuts a .txt file into smaller ones),"
                f" or set data.eval_fraction=0 and {_NO_EVALUATION}."
            )
        return split_documents(num_documents, self.eval_fraction)

    def _plan(self, num_documents: int) -> LanePlan:
        return LanePlan(
            batch_size=self.batch_size,
            interleave=self.interleave,
            num_documents=num_documents,
            process_index=self.process_index,
            process_count=self.process_count,
        )

    @functools.cached_property
    def _bad_held_out(self) -> BadDocuments:
        """Those that all evaluations have met, for each to be told once."""
        return BadDocuments(self.skip_bad)

    def _documents(
        self, order: EndlessOrder, bad: BadDocuments, in_background: bool = False
    ) -> Documents:
        return Documents(
            order=order,
            tokens=self._tokens,
            patience=max(1000, len(order.indices)),
            bad=bad,
            pool=ThreadPoolExecutor() if in_background else None,
        )

    def _tokens(self, index: int) -> np.ndarray:
        """The tokens of a document; none at all if it is empty."""
        text = self.source[int(index)]
        if not text:
            return np.zeros(0, np.int32)
        ids = self.tokenizer.encode_document(text)
        if self.vocab_size is not None:
            check_ids(ids, self.tokenizer, self.vocab_size)
        return ids

    def _settings(self) -> dict[str, str | int]:
        """What decides the batches, besides the source and the split into lanes."""
        used = self.tokenizer
        special = f"bos {used.bos_id}, eos {used.eos_id}, pad {used.pad_id}"
        name = f"{type(used).__name__} of {used.vocab_size} ids ({special})"
        return {
            "tokenizer": f"{name} {used.fingerprint}",
            "packing": described(self.packing),
            "batch_size": self.batch_size,
            "sequence_length": self.sequence_length,
            "seed": self.seed if self.shuffle else "none, for shuffle is False",
        }

    @property
    def _padding(self) -> int:
        """The id in places that hold no token; the model must have a row for it."""
        pad = self.tokenizer.pad_id or 0
        return pad if self.vocab_size is None or pad < self.vocab_size else 0

    def _check_vocabulary(self) -> None:
        needed = self.tokenizer.vocab_size
        if self.vocab_size is not None and self.vocab_size < needed:
            raise UserError(
                f"model.vocab_size [{self.vocab_size}] must be at least {needed}, the"
                f" number of ids of {type(self.tokenizer).__name__}; set it to that."
            )


def _has_targets(batches: list[Batch]) -> bool:
    return any(batch["weights"].any() for batch in batches)
