"""Tokenizers: text to token ids and back."""

from collections.abc import Iterable
from typing import Protocol

import numpy as np

from maxfdl.data.tokenizers.byte import ByteTokenizer
from maxfdl.data.tokenizers.hugging_face import HuggingFaceTokenizer
from maxfdl.data.tokenizers.trained_bpe import TrainedBpe

__all__ = ["ByteTokenizer", "HuggingFaceTokenizer", "Tokenizer", "TrainedBpe"]


class Tokenizer(Protocol):
    """What data and generation need of a tokenizer.

    `encode` adds no special token; `decode` drops them, and never fails: bytes that
    are no UTF-8, such as a character cut in two, come out as U+FFFD.
    """

    @property
    def vocab_size(self) -> int: ...
    @property
    def bos_id(self) -> int | None: ...
    @property
    def eos_id(self) -> int | None: ...
    @property
    def pad_id(self) -> int | None: ...
    @property
    def fingerprint(self) -> str:
        """The same for all tokenizers that give the same ids, of about any text."""
        ...

    def encode(self, text: str) -> list[int]: ...

    def encode_array(self, text: str) -> np.ndarray:
        """The ids of `encode` as int32, without a Python object for each."""
        ...

    def decode(self, ids: Iterable[int]) -> str: ...

    def for_source(self, source) -> "Tokenizer":
        """Returns the tokenizer to use on `source`: itself, unless it is trained."""
        ...
