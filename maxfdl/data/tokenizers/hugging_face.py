"""A tokenizer.json file of the Hugging Face `tokenizers` library."""

import dataclasses
import functools
import json
import pathlib
from typing import TYPE_CHECKING, Literal

from maxfdl.data.tokenizers.rust import RustTokenizer
from maxfdl.errors import UserError, did_you_mean

if TYPE_CHECKING:
    import tokenizers

Role = Literal["bos", "eos", "pad"]

# The usual names of special tokens, the most telling first.
_USUAL: dict[Role, tuple[str, ...]] = {
    "bos": (
        "<|begin_of_text|>",
        "<|startoftext|>",
        "<bos>",
        "<s>",
        "[BOS]",
        "<|bos|>",
        "<｜begin▁of▁sentence｜>",
    ),
    "eos": (
        "<|end_of_text|>",
        "<|endoftext|>",
        "<eos>",
        "</s>",
        "[EOS]",
        "<|eos|>",
        "<｜end▁of▁sentence｜>",
    ),
    "pad": ("<pad>", "<|pad|>", "[PAD]", "<|finetune_right_pad_id|>"),
}


@dataclasses.dataclass(frozen=True)
class HuggingFaceTokenizer(RustTokenizer):
    """A `tokenizer.json`, which `tokenizers` reads without `transformers`.

    That file does not say which special token begins or ends a text. Each of `bos`,
    `eos` and `pad` is looked for here, in this order: the field of this class, a
    `tokenizer_config.json` beside the file, the usual names among the added tokens.
    What is not found is None; documents then have no such token.

    Args:
      file: Path of the `tokenizer.json`.
      bos: The token that begins a document, as text.
      eos: The token that ends one.
      pad: The token that fills rows.
    """

    file: str = "tokenizer.json"
    bos: str | None = None
    eos: str | None = None
    pad: str | None = None

    @functools.cached_property
    def vocab_size(self) -> int:
        return 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())

    @functools.cached_property
    def bos_id(self) -> int | None:
        return self._special("bos", self.bos)

    @functools.cached_property
    def eos_id(self) -> int | None:
        return self._special("eos", self.eos)

    @functools.cached_property
    def pad_id(self) -> int | None:
        return self._special("pad", self.pad)

    def for_source(self, source) -> "HuggingFaceTokenizer":
        return self

    def _load(self) -> "tokenizers.Tokenizer":
        import tokenizers

        path = pathlib.Path(self.file).expanduser()
        if not path.is_file():
            raise UserError(
                f"HuggingFaceTokenizer.file [{self.file}] must be the path of a"
                " tokenizer.json, but there is no such file."
            )
        # The library raises plain Exceptions.
        try:
            return tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:
            raise UserError(
                f"HuggingFaceTokenizer.file [{self.file}] must be a tokenizer.json of"
                f" the library tokenizers, but: {error}"
            ) from None

    def _special(self, role: Role, token: str | None) -> int | None:
        if token is None:
            return self._find(role)
        index = self._tokenizer.token_to_id(token)
        if index is None:
            near = did_you_mean(token, self._tokenizer.get_vocab())
            raise UserError(
                f"HuggingFaceTokenizer.{role} [{token}] must be a token of"
                f" [{self.file}].{near}"
            )
        return index

    def _find(self, role: Role) -> int | None:
        added = self._tokenizer.get_added_tokens_decoder()
        ids = {token.content: index for index, token in added.items()}
        named = self._beside.get(f"{role}_token")
        if isinstance(named, dict):
            named = named.get("content")
        return next((ids[name] for name in (named, *_USUAL[role]) if name in ids), None)

    @functools.cached_property
    def _beside(self) -> dict:
        """The `tokenizer_config.json` in the same folder, if there is one."""
        path = pathlib.Path(self.file).expanduser().with_name("tokenizer_config.json")
        return json.loads(path.read_text("utf-8")) if path.is_file() else {}
