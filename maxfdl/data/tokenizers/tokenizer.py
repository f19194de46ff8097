"""The interface of tokenizers."""

import abc
import pathlib
from collections.abc import Iterable

import numpy as np


class Tokenizer(abc.ABC):
    """Base: what data and generation need of a tokenizer.

    Text becomes ids in three ways, and BOS has one rule: a text that stands alone, be
    it a prompt or a document of the training data, begins with the tokens that
    transformers' `tokenizer(text)` puts in front of it.

    | method            | adds                                                        |
    |-------------------|-------------------------------------------------------------|
    | `encode`          | nothing: for text that holds its own special tokens, such   |
    |                   | as a rendered chat                                          |
    | `encode_text`     | what the tokenizer adds to a text: usually BOS              |
    | `encode_document` | the same, and EOS behind it, so that a model learns where a |
    |                   | text ends                                                   |

    `decode` leaves special tokens out and never fails: bytes that are no UTF-8, such as
    a character cut in two, come out as U+FFFD.
    """

    @property
    @abc.abstractmethod
    def vocab_size(self) -> int:
        """Rows that a model needs for every id that text can become."""

    @property
    @abc.abstractmethod
    def bos_id(self) -> int | None: ...
    @property
    @abc.abstractmethod
    def eos_id(self) -> int | None: ...
    @property
    @abc.abstractmethod
    def pad_id(self) -> int | None: ...

    @property
    @abc.abstractmethod
    def fingerprint(self) -> str:
        """The same for all tokenizers that give the same ids, of about any text."""

    @abc.abstractmethod
    def encode(self, text: str) -> list[int]: ...

    @abc.abstractmethod
    def encode_text(self, text: str) -> list[int]: ...

    @abc.abstractmethod
    def encode_document(self, text: str) -> np.ndarray:
        """Returns int32 ids. EOS is left out if there is none, or if `encode_text`
        has put it there."""

    @abc.abstractmethod
    def decode(self, ids: Iterable[int]) -> str: ...

    @abc.abstractmethod
    def token(self, index: int) -> str:
        """Returns the text of one id, special or not, for messages."""

    @abc.abstractmethod
    def for_source(self, source) -> "Tokenizer":
        """Returns the tokenizer to use on `source`: itself, unless it is trained."""

    @abc.abstractmethod
    def save(self, folder: pathlib.Path) -> None:
        """Writes the files that transformers reads this tokenizer from.

        These are tokenizer.json, tokenizer_config.json and generation_config.json, with
        the chat template if there is one. The folder must exist.
        """
