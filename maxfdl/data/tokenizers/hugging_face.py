"""A tokenizer.json file of the Hugging Face `tokenizers` library."""

import dataclasses
import functools
import os
import pathlib
import shutil
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal

from maxfdl import outside
from maxfdl.bucket import BucketPath
from maxfdl.data.tokenizers.files import TokenizerFiles
from maxfdl.data.tokenizers.rust import RustTokenizer
from maxfdl.data.tokenizers.saving import (
    GENERATION_CONFIG,
    TOKENIZER,
    TOKENIZER_CONFIG,
    TOKENIZER_FILES,
    copy_tokenizer_files,
    in_other_format,
    write_json,
)
from maxfdl.errors import UserError, did_you_mean
from maxfdl.markers import Operational
from maxfdl.paths import as_path, fetched

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
# Roles whose tokens stand in text, or are what a model answers with.
_IN_TEXT = ("bos_token", "eos_token", "unk_token")


@dataclasses.dataclass(frozen=True)
class HuggingFaceTokenizer(RustTokenizer):
    """A `tokenizer.json`, which `tokenizers` reads without `transformers`.

    A text has the ids that transformers gives it. Which tokens begin and end it is in
    that file; which token ends a document of the training data, and which fills rows,
    is looked for here, in this order: the field of this class, the files beside
    tokenizer.json (see `TokenizerFiles`), and where these say nothing of a role, not
    even null, the usual names among the added tokens. What is not found is None.

    Args:
      file: Path of the `tokenizer.json`. A run may go on when it has been moved, for it
        compares what is in it.
      bos: The token named BOS, as text; it is added to texts only if the file says so.
      eos: The token that ends a document.
      pad: The token that fills rows.
    """

    file: Annotated[str, Operational] = "tokenizer.json"
    bos: str | None = None
    eos: str | None = None
    pad: str | None = None

    @functools.cached_property
    def vocab_size(self) -> int:
        """One more than the highest id that a text can become.

        Placeholders do not count: tokens that the files name for padding, masks, images
        and the like. Models of text alone often have no row for them.
        """
        vocab = self._tokenizer.get_vocab(with_added_tokens=True)
        added = self._tokenizer.get_added_tokens_decoder()
        roles = self.files.roles.items()
        placeholders = {text for role, text in roles if role not in _IN_TEXT}
        placeholders -= {text for role, text in roles if role in _IN_TEXT}
        return 1 + max(
            (
                index
                for text, index in vocab.items()
                if not (text in placeholders and index in added)
            ),
            default=-1,
        )

    @functools.cached_property
    def bos_id(self) -> int | None:
        return self._special("bos", self.bos)

    @functools.cached_property
    def eos_id(self) -> int | None:
        return self._special("eos", self.eos)

    @functools.cached_property
    def pad_id(self) -> int | None:
        return self._special("pad", self.pad)

    @functools.cached_property
    def files(self) -> TokenizerFiles:
        """The files that it stands for: chat templates and stop tokens, too.

        Raises:
          UserError: If there is no such file.
        """
        path = as_path(self.file)
        if isinstance(path, BucketPath):
            beside = (path.name, "config.json", *TOKENIZER_FILES)
            path = fetched(path.parent, only=beside) / path.name
        if not os.path.lexists(path):
            other, remedy = in_other_format(path.parent), ""
            if other is not None:
                folder = repr(str(path.parent))
                remedy = (
                    f" Beside it lies {other.name}, which is not read here:"
                    " transformers makes a tokenizer.json of it, AutoTokenizer"
                    f".from_pretrained({folder}).save_pretrained({folder})."
                )
            raise UserError(
                f"HuggingFaceTokenizer.file [{self.file}] must be the path of a"
                f" tokenizer.json, but there is no such file.{remedy}"
            )
        return TokenizerFiles(path)

    def decode(self, ids: Iterable[int]) -> str:
        text = super().decode(ids)
        return _without_spaces(text) if self.files.cleans_up_spaces else text

    def for_source(self, source) -> "HuggingFaceTokenizer":
        return self

    def save(self, folder: pathlib.Path) -> None:
        """Copies the files, with the roles that this class gives other tokens.

        Generated text will end at EOS, too, which ends the documents of the training
        data.
        """
        copy_tokenizer_files(self.files.file.parent, folder)
        shutil.copyfile(self.files.file, folder / TOKENIZER)
        roles = {"bos_token": self.bos, "eos_token": self.eos, "pad_token": self.pad}
        given = {role: text for role, text in roles.items() if text is not None}
        _change(folder / TOKENIZER_CONFIG, given)
        if os.path.lexists(folder / "special_tokens_map.json"):
            _change(folder / "special_tokens_map.json", given)
        stop = self.files.stop_tokens
        if self.eos_id is not None and self.eos_id not in stop:
            changed = {"eos_token_id": [*stop, self.eos_id]}
            _change(folder / GENERATION_CONFIG, changed)
        elif stop and not os.path.lexists(folder / GENERATION_CONFIG):
            write_json(folder / GENERATION_CONFIG, {"eos_token_id": list(stop)})

    @property
    def _name(self) -> str:
        return self.file

    def _load(self) -> "tokenizers.Tokenizer":
        return self.files.tokenizer

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
        if f"{role}_token" in self.files.roles:
            text = self.files.roles[f"{role}_token"]
            return None if text is None else self._tokenizer.token_to_id(text)
        added = self._tokenizer.get_added_tokens_decoder()
        ids = {token.content: index for index, token in added.items()}
        return next((ids[name] for name in _USUAL[role] if name in ids), None)


def _change(file: pathlib.Path, changes: dict[str, Any]) -> None:
    """Sets keys of the JSON object in a file, which is made if it is missing."""
    content = outside.read_object(file).content if os.path.lexists(file) else {}
    if any(content.get(key) != value for key, value in changes.items()):
        write_json(file, {**content, **changes})


def _without_spaces(text: str) -> str:
    """Returns `text` without the blanks that a WordPiece leaves at punctuation."""
    for before, after in _CLEANED:
        text = text.replace(before, after)
    return text


# What transformers replaces, in its order.
_CLEANED = (
    *((f" {mark}", mark) for mark in ".?!,"),
    (" ' ", "'"),
    *((f" {end}", end) for end in ("n't", "'m", "'s", "'ve", "'re")),
)
