"""Bytes as tokens."""

import dataclasses
from collections.abc import Iterable
from typing import ClassVar

import numpy as np


@dataclasses.dataclass(frozen=True)
class ByteTokenizer:
    """The bytes of UTF-8 as ids 0 to 255, and three special tokens after them."""

    bos_id: ClassVar[int] = 256
    eos_id: ClassVar[int] = 257
    pad_id: ClassVar[int] = 258
    vocab_size: ClassVar[int] = 259
    fingerprint: ClassVar[str] = "bytes"

    def encode(self, text: str) -> list[int]:
        return list(_utf8(text))

    def encode_array(self, text: str) -> np.ndarray:
        return np.frombuffer(_utf8(text), np.uint8).astype(np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        data = bytes(byte for byte in map(int, ids) if 0 <= byte < 256)
        return data.decode("utf-8", errors="replace")

    def for_source(self, source) -> "ByteTokenizer":
        return self


def _utf8(text: str) -> bytes:
    # JSON can hold half of a surrogate pair, which has no UTF-8; it becomes "?".
    return text.encode("utf-8", errors="replace")
