"""The vocabulary in a GGUF file: tokens, their types, and which of them are special.

Rules and lists are those of llama.cpp (`llama_vocab::impl::load`), which finds some
special tokens by their text, whatever the file says of them.
"""

import dataclasses
import enum
import functools

from maxfdl.gguf.file import GgufFile
from maxfdl.outside import Integer, Listing, Text


class Type(enum.IntEnum):
    """Values of `tokenizer.ggml.token_type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


# Texts that end what a model writes, whatever the file says of them.
_END = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
)
# Marks in code to fill in, by the key that names them; the first three end nothing.
_FILL_IN = {
    "fim_pre": (
        "<|fim_prefix|>",
        "<fim-prefix>",
        "<fim_prefix>",
        "<｜fim▁begin｜>",
        "<PRE>",
        "▁<PRE>",
        "<|code_prefix|>",
        "<|prefix|>",
    ),
    "fim_suf": (
        "<|fim_suffix|>",
        "<fim-suffix>",
        "<fim_suffix>",
        "<｜fim▁hole｜>",
        "<SUF>",
        "▁<SUF>",
        "<|code_suffix|>",
        "<|suffix|>",
    ),
    "fim_mid": (
        "<|fim_middle|>",
        "<fim-middle>",
        "<fim_middle>",
        "<｜fim▁end｜>",
        "<MID>",
        "▁<MID>",
        "<|code_middle|>",
        "<|middle|>",
    ),
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": (
        "<|fim_repo|>",
        "<|repo_name|>",
        "<fim-repo>",
        "<REPO>",
        "<reponame>",
    ),
    "fim_sep": ("<|file_sep|>",),
}
_ENDING_KEYS = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The tokens of a file.

    Args:
      file: The file.
      defaults: Ids of special tokens that its kind of tokenizer has where the file
        names none, by role.
    """

    file: GgufFile
    defaults: dict[str, int]

    @functools.cached_property
    def texts(self) -> list[str]:
        """Raises a UserError if a token comes twice: its id would be ambiguous."""
        given = self.file.settings.take("tokenizer.ggml.tokens", Listing(Text()))
        texts = [text or f"[EMPTY_{index}]" for index, text in enumerate(given)]
        if len(set(texts)) < len(texts):
            twice = next(text for text in texts if texts.count(text) > 1)
            raise self.file.settings.wrong(f"tokenizer.ggml.tokens has {twice!r} twice")
        return texts

    @functools.cached_property
    def ids(self) -> dict[str, int]:
        return {text: index for index, text in enumerate(self.texts)}

    @functools.cached_property
    def types(self) -> list[int]:
        """The type of each token; all are normal where the file has no types."""
        key, size = "tokenizer.ggml.token_type", len(self.texts)
        normal = [int(Type.NORMAL)] * size
        return self.file.settings.take(key, Listing(Integer(), length=size), normal)

    def special(self, role: str) -> int | None:
        """Returns the id of a role such as `bos`, None if there is none.

        Raises:
          UserError: If the file names an id that it has no token for.
        """
        most = len(self.texts) - 1
        key = f"tokenizer.ggml.{role}_token_id"
        default = self.defaults.get(role)
        if default is not None and default > most:
            default = None
        found = self.file.settings.take(key, Integer(most=most), None)
        if found is not None:
            return found
        texts = _FILL_IN.get(role, ())
        return next((self.ids[text] for text in texts if text in self.ids), default)

    @functools.cached_property
    def ends(self) -> list[int]:
        """Ids after which a text ends, in order."""
        named = {self.special(role) for role in _ENDING_KEYS}
        found = {self.ids[text] for text in _END if text in self.ids}
        return sorted(index for index in named | found if index is not None)

    @functools.cached_property
    def control(self) -> set[int]:
        """Ids that are marks and no text, which `decode` leaves out."""
        by_type = (Type.CONTROL, Type.UNKNOWN)
        typed = {index for index, kind in enumerate(self.types) if kind in by_type}
        by_text = {self.special(role) for role in _FILL_IN} - {None}
        by_text |= {self.ids[text] for text in _END if text in self.ids}
        return typed | {index for index in by_text if index is not None}

    @functools.cached_property
    def strips_right(self) -> set[int]:
        """Ids that take the blanks behind them away; llama.cpp knows by the name."""
        name = self.file.settings.take("general.name", Text(), "").lower()
        if not ("phi-3" in name or "phi3" in name):
            return set()
        kept = {self.ids.get(text) for text in ("<unk>", "<s>", "<|endoftext|>")}
        return (self.control | self.user_defined) - kept

    @functools.cached_property
    def user_defined(self) -> set[int]:
        """Ids of text that is cut out before anything else."""
        kinds = enumerate(self.types)
        return {index for index, kind in kinds if kind == Type.USER_DEFINED}
