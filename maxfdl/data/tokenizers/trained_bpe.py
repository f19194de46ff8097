"""Byte-pair encoding, trained on the data it will encode."""

import contextlib
import dataclasses
import hashlib
import logging
import pathlib
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from maxfdl.data.sources.source import Source
from maxfdl.data.split import document_hashes
from maxfdl.data.tokenizers.rust import RustTokenizer
from maxfdl.data.tokenizers.saving import BOS, EOS, PAD, begin_with_bos, save_ours
from maxfdl.errors import UserError
from maxfdl.files import cache_directory, write_atomically

if TYPE_CHECKING:
    import tokenizers

_SMALLEST = 256 + len((BOS, EOS, PAD))


@dataclasses.dataclass(frozen=True)
class TrainedBpe(RustTokenizer):
    """Byte-level BPE (as in GPT-2) trained on a sample of the source, and cached.

    Any text encodes and decodes exactly. The text of a special token, such as
    `<|eos|>` in a document, is ordinary text. A text that stands alone begins with
    BOS. Training takes about a second a megabyte and happens at the first use; the
    result is kept under `$MAXFDL_CACHE` (default `~/.cache/maxfdl`) by a hash of the
    sample and the settings.

    Args:
      vocab_size: Number of ids, with 256 bytes and 3 special tokens. A small sample
        may have fewer pairs to merge; the highest ids are then never used.
      sample_bytes: About how much text to train on. Whole documents are taken in an
        order that depends on nothing but their index.
      source: What to train on; None is the source of the data that holds it.
    """

    vocab_size: int = 4096
    sample_bytes: int = 8_000_000
    source: Source | None = None

    bos_id: ClassVar[int] = 0
    eos_id: ClassVar[int] = 1
    pad_id: ClassVar[int] = 2

    def __post_init__(self):
        if self.vocab_size < _SMALLEST:
            raise UserError(
                f"TrainedBpe.vocab_size [{self.vocab_size}] must be at least"
                f" {_SMALLEST}, for 256 bytes and 3 special tokens; use ByteTokenizer"
                " for single bytes."
            )

    def for_source(self, source) -> "TrainedBpe":
        return (
            self
            if self.source is not None
            else dataclasses.replace(self, source=source)
        )

    def save(self, folder: pathlib.Path) -> None:
        save_ours(folder, self._tokenizer)

    def _load(self) -> "tokenizers.Tokenizer":
        import tokenizers

        sample = self._sample()
        name = f"bpe-{self.vocab_size}-{_digest(sample)}.json"
        file = cache_directory() / "tokenizers" / name
        # A damaged file is trained again and replaced.
        with contextlib.suppress(Exception):
            return _ready(tokenizers.Tokenizer.from_file(str(file)))
        trained = _train(sample, self.vocab_size)
        _write(file, trained.to_str())
        return _ready(trained)

    def _sample(self) -> list[str]:
        if self.source is None:
            raise UserError(
                "TrainedBpe has no text to train on; put it into TextData, or set its"
                " source."
            )
        texts, size = [], 0
        for index in np.argsort(document_hashes(len(self.source)), kind="stable"):
            if size >= self.sample_bytes:
                break
            data = self.source[int(index)].encode("utf-8", errors="replace")
            texts.append(data.decode("utf-8"))
            size += len(data)
        return texts


def _train(sample: list[str], vocab_size: int) -> "tokenizers.Tokenizer":
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sample, trainer)
    return tokenizer


def _ready(tokenizer: "tokenizers.Tokenizer") -> "tokenizers.Tokenizer":
    """Sets what a tokenizer.json does not keep, or did not in older caches."""
    tokenizer.encode_special_tokens = True
    begin_with_bos(tokenizer)
    return tokenizer


def _digest(sample: list[str]) -> str:
    digest = hashlib.sha256(b"maxfdl byte-level bpe 1")
    for text in sample:
        data = text.encode("utf-8")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()[:32]


def _write(file: pathlib.Path, text: str) -> None:
    """Writes in one step, so that a reader or a second writer sees all or nothing."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, text)
    except OSError as error:
        logging.getLogger(__name__).warning(
            "TrainedBpe could not keep its merges (%s) and will train again next time;"
            " set MAXFDL_CACHE to a folder that can be written.",
            error,
        )
