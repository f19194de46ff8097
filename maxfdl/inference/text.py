"""Text around a generator: prompts to ids, and ids to text as they are generated."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from maxfdl.data.tokenizers import Tokenizer
from maxfdl.inference.chat import ChatTemplate
from maxfdl.model import Model

Decode = Callable[[Iterable[int]], str]


@dataclasses.dataclass(frozen=True)
class Writer:
    """A model with what it needs to read and write text.

    Args:
      model, variables: The network and its weights.
      tokenizer: Turns prompts into ids, and ids into text.
      stop_tokens: Ids that end a text.
      template: Renders conversations; None if the model has no chat template.
    """

    model: Model
    variables: Mapping[str, Any]
    tokenizer: Tokenizer
    stop_tokens: tuple[int, ...]
    template: ChatTemplate | None = None


class TextStream:
    """Turns ids that come one by one into text that can be shown at once.

    A character of several tokens is held back until it is complete. Ids are decoded
    together with those of the last piece, since the text of a token may depend on the
    one before it.
    """

    def __init__(self, decode: Decode):
        self._decode = decode
        self._ids: list[int] = []  # of the piece before the last, and what follows
        self._shown = 0  # how many of these are out

    def push(self, token: int) -> str:
        """Returns what can be shown now."""
        self._ids.append(token)
        whole = self._decode(self._ids)
        if whole.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        return self._piece(whole)

    def rest(self) -> str:
        """Returns what was held back."""
        return self._piece(self._decode(self._ids))

    def _piece(self, whole: str) -> str:
        before = self._decode(self._ids[: self._shown])
        self._ids = self._ids[self._shown :]
        self._shown = len(self._ids)
        return whole[len(before) :]
