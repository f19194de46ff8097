"""What tokenizers that stand on the `tokenizers` library share."""

import functools
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import tokenizers

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

    @property
    def _tokenizer(self) -> "tokenizers.Tokenizer":
        with _LOADING:
            return self._loaded

    @functools.cached_property
    def _loaded(self) -> "tokenizers.Tokenizer":
        return self._load()

    def _load(self) -> "tokenizers.Tokenizer":
        raise NotImplementedError
