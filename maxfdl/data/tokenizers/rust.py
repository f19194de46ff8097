"""Base of tokenizers that use the `tokenizers` library."""

import contextlib
import functools
import os
import sys
import tempfile
import threading
import zlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from maxfdl.data.tokenizers.tokenizer import Tokenizer
from maxfdl.errors import UserError

if TYPE_CHECKING:
    import tokenizers

# What tokenizers cut in different ways: case, digits, blanks, scripts, marks.
_MANY_SCRIPTS = (
    "The QUICK brown fox's 1234567 jumps;  over\tit -- 3.14e-10!\n\n  def f(x):\r\n"
    " Ünïcödé e\u0301 日本語 العربية русский हिन्दी 👩‍👩‍👧 <|endoftext|> </s>"
)

# Data pipelines encode in several threads; one of them loads, the others wait.
_LOADING = threading.Lock()
_STDERR = threading.RLock()


class RustTokenizer(Tokenizer):
    """Encodes and decodes with a `tokenizers.Tokenizer`, loaded at the first use."""

    @functools.cached_property
    def fingerprint(self) -> str:
        """A CRC-32 of the vocabulary, and of how a text of many scripts is encoded."""
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        digest = zlib.crc32(repr(sorted(vocabulary.items())).encode(errors="replace"))
        ids = self.encode_document(_MANY_SCRIPTS).tolist()
        return f"{zlib.crc32(repr(ids).encode(), digest):08x}"

    def encode(self, text: str) -> list[int]:
        return self._encoding(text, add_special_tokens=False).ids

    def encode_text(self, text: str) -> list[int]:
        return self._encoding(text, add_special_tokens=True).ids

    def encode_document(self, text: str) -> np.ndarray:
        ids = self.encode_text(text)
        if self.eos_id is not None and not self._adds_eos:
            ids.append(self.eos_id)
        with explained(self._name):  # a file may name ids that no int32 holds
            return np.array(ids, np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        with explained(self._name):
            return self._tokenizer.decode(
                [int(i) for i in ids], skip_special_tokens=True
            )

    def token(self, index: int) -> str:
        return self._tokenizer.id_to_token(index) or ""

    def _encoding(self, text: str, add_special_tokens: bool) -> "tokenizers.Encoding":
        # JSON can hold half of a surrogate pair, which has no UTF-8: "?" instead.
        valid = text.encode("utf-8", errors="replace").decode("utf-8")
        # The batch call lets other threads run, and leaves out the character offsets.
        with explained(self._name):
            (encoding,) = self._tokenizer.encode_batch_fast(
                [valid], add_special_tokens=add_special_tokens
            )
        return encoding

    @functools.cached_property
    def _adds_eos(self) -> bool:
        """Whether `encode_text` ends with EOS: the mask is 1 where it adds a token."""
        encoding = self._encoding("a", add_special_tokens=True)
        added = zip(encoding.ids, encoding.special_tokens_mask, strict=True)
        *_, last = [(None, 0), *added]
        return last == (self.eos_id, 1)

    @property
    def _name(self) -> str:
        """Who it is, in errors."""
        return type(self).__name__

    @property
    def _tokenizer(self) -> "tokenizers.Tokenizer":
        with _LOADING:
            return self._loaded

    @functools.cached_property
    def _loaded(self) -> "tokenizers.Tokenizer":
        return self._load()

    def _load(self) -> "tokenizers.Tokenizer":
        raise NotImplementedError


@contextlib.contextmanager
def explained(name: str) -> Iterator[None]:
    """Turns an error of the `tokenizers` library into a UserError about `name`.

    The library raises plain Exceptions, and PanicExceptions, which are none, where a
    file holds what its authors did not expect.
    """
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        is_panic = type(error).__name__ == "PanicException"
        if not (is_panic or isinstance(error, Exception)):
            raise
        reason = " ".join(str(error).split())
        raise UserError(
            f"{name} cannot be used by the library tokenizers: {reason.rstrip('.')};"
            " fetch it again."
        ) from None


@contextlib.contextmanager
def without_panic_messages() -> Iterator[None]:
    """Buffers stderr inside, and drops it if the block raises.

    A panic of the `tokenizers` library writes a page of Rust there before Python sees
    the exception. One thread at a time may do this: stderr belongs to all.
    """
    with _STDERR, tempfile.TemporaryFile() as held:
        if sys.stderr is not None:
            sys.stderr.flush()
        stderr = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
        held.seek(0)
        os.write(2, held.read())
