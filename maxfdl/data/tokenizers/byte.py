"""Bytes as tokens."""

import dataclasses
import pathlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from maxfdl.data.tokenizers.saving import BOS, EOS, PAD, begin_with_bos, save_ours
from maxfdl.data.tokenizers.tokenizer import Tokenizer

if TYPE_CHECKING:
    import tokenizers


@dataclasses.dataclass(frozen=True)
class ByteTokenizer(Tokenizer):
    """The bytes of UTF-8 as ids 0 to 255, and three special tokens after them.

    A text that stands alone begins with BOS.
    """

    bos_id: ClassVar[int] = 256
    eos_id: ClassVar[int] = 257
    pad_id: ClassVar[int] = 258
    vocab_size: ClassVar[int] = 259
    fingerprint: ClassVar[str] = "bytes"

    def encode(self, text: str) -> list[int]:
        return list(_utf8(text))

    def encode_text(self, text: str) -> list[int]:
        return [self.bos_id, *_utf8(text)]

    def encode_document(self, text: str) -> np.ndarray:
        data = _utf8(text)
        ids = np.empty(len(data) + 2, np.int32)
        ids[0], ids[-1] = self.bos_id, self.eos_id
        ids[1:-1] = np.frombuffer(data, np.uint8)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        data = bytes(byte for byte in map(int, ids) if 0 <= byte < 256)
        return data.decode("utf-8", errors="replace")

    def token(self, index: int) -> str:
        return repr(bytes([index])) if index < 256 else (BOS, EOS, PAD)[index - 256]

    def for_source(self, source) -> "ByteTokenizer":
        return self

    def save(self, folder: pathlib.Path) -> None:
        save_ours(folder, _byte_level_bpe())


def _utf8(text: str) -> bytes:
    # JSON can hold half of a surrogate pair, which has no UTF-8; it becomes "?".
    return text.encode("utf-8", errors="replace")


def _byte_level_bpe() -> "tokenizers.Tokenizer":
    """Returns the same tokenizer as a byte-level BPE that merges nothing."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    vocab = {character: byte for byte, character in enumerate(byte_characters())}
    made = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([BOS, EOS, PAD])
    begin_with_bos(made)
    return made


def byte_characters() -> list[str]:
    """Returns the character that stands for each byte in a byte-level BPE.

    A byte that is a visible Latin-1 character stands for itself; the others take the
    characters from U+0100, in order. From GPT-2's encoder.
    """
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in visible else next(others)) for byte in range(256)]
