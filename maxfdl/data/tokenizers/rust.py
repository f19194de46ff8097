"""What tokenizers that stand on the `tokenizers` library share."""

import functools
import threading
import zlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import tokenizers

# What tokenizers split in different ways: case, digits, spaces, scripts, marks.
_MANY_SCRIPTS = (
    "The QUICK brown fox's 1234567 jumps;  over\tit -- 3.14e-10!\n\n  def f(x):\r\n"
    " Ünïcödé e\u0301 日本語 العربية русский हिन्दी 👩‍👩‍👧 <|endoftext|> </s>"
)

# Data pipelines encode in several threads; one of them loads, the others wait.
_LOADING = threading.Lock()


class RustTokenizer:
    """Encodes and decodes with a `tokenizers.Tokenizer`, loaded at the first use."""

    def encode(self, text: str) -> list[int]:
        # JSON can hold half of a surrogate pair, which has no UTF-8: "?" instead.
        valid = text.encode("utf-8", errors="replace").decode("utf-8")
        # The batch call lets other threads run, and leaves out the character offsets.
        (encoding,) = self._tokenizer.encode_batch_fast(
            [valid], add_special_tokens=False
        )
        return encoding.ids

    def encode_array(self, text: str) -> np.ndarray:
        return np.array(self.encode(text), np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    @functools.cached_property
    def fingerprint(self) -> str:
        """A CRC-32 of the vocabulary, and of how a text of many scripts is split."""
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        digest = zlib.crc32(repr(sorted(vocabulary.items())).encode(errors="replace"))
        digest = zlib.crc32(repr(self.encode(_MANY_SCRIPTS)).encode(), digest)
        return f"{digest:08x}"

    @property
    def _tokenizer(self) -> "tokenizers.Tokenizer":
        with _LOADING:
            return self._loaded

    @functools.cached_property
    def _loaded(self) -> "tokenizers.Tokenizer":
        return self._load()

    def _load(self) -> "tokenizers.Tokenizer":
        raise NotImplementedError
