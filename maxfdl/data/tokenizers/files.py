"""The only reader of the tokenizer files in a folder.

Training, generation and export all read other people's tokenizers here. The right
values are those that transformers 5 takes from the same files.
"""

import contextlib
import dataclasses
import functools
import os
import pathlib
from typing import TYPE_CHECKING

from maxfdl import outside
from maxfdl.data.tokenizers.rust import explained, without_panic_messages
from maxfdl.data.tokenizers.saving import GENERATION_CONFIG, TOKENIZER_CONFIG
from maxfdl.data.tokenizers.special import SpecialTokens, read_special_tokens
from maxfdl.errors import UserError
from maxfdl.outside import Either, Flag, Integer, Listing, Object, Text, Values

if TYPE_CHECKING:
    import tokenizers

_ID = Integer(least=-1)  # some files write -1 for none
_IDS = Either(_ID, Listing(_ID))


@dataclasses.dataclass(frozen=True)
class TokenizerFiles:
    """A `tokenizer.json` and the files that lie beside it.

    Settings that tokenizer.json stores for one use are ignored: truncation and padding,
    which transformers applies only when asked, and subword regularisation, because a
    text must have the same ids each time.

    Normalizer, pre-tokenizer and decoder are always those of tokenizer.json. Some
    classes of transformers 5 that tokenizer_config.json can name (`GPT2Tokenizer`,
    `LlamaTokenizer`, `Qwen2Tokenizer`) take only its vocabulary and bring their own.
    For a few models the two differ, such as SmolLM2, which splits numbers into digits;
    tokenizer.json then has what the model was trained with.

    Args:
      file: Path of the tokenizer.json, which may have another name.
    """

    file: pathlib.Path

    @functools.cached_property
    def tokenizer(self) -> "tokenizers.Tokenizer":
        """The tokenizer, with every special token that the files name.

        Raises:
          UserError: If a file cannot be read, or holds something else.
        """
        tokenizer, _ = self._stored
        known = tokenizer.get_added_tokens_decoder().values()
        special = self._special_tokens({token.content for token in known})
        split = self._config.take("split_special_tokens", Flag(), default=None)
        with explained(str(self.file)), without_panic_messages():
            tokenizer.add_tokens(special.to_add)
            tokenizer.encode_special_tokens = bool(split)
            _provoke_panic(tokenizer)
        return tokenizer

    @functools.cached_property
    def roles(self) -> dict[str, str | None]:
        """Special tokens by role, such as `bos_token`; None where a file says null."""
        roles = dict(self._special_tokens(known=set()).roles)
        if os.path.lexists(self.file) and (padding := self._stored[1]):
            roles.setdefault("pad_token", padding)
        return roles

    @functools.cached_property
    def chat_templates(self) -> dict[str, str]:
        """Chat templates by name; most folders have one, `default`, or none.

        Files ending in .jinja replace what tokenizer_config.json holds.
        """
        folder, found = self.file.parent, {}
        if os.path.lexists(single := folder / "chat_template.jinja"):
            found["default"] = outside.read_text(single)
        for file in sorted(folder.glob("chat_templates/*.jinja")):
            found[file.stem] = outside.read_text(file)
        return found or self._templates_in_config()

    @functools.cached_property
    def stop_tokens(self) -> tuple[int, ...]:
        """Ids after which a text ends when it is generated.

        generation_config.json decides if there is one, else config.json.
        """
        config = self._beside(GENERATION_CONFIG)
        if not os.path.lexists(config.file):
            config = self._beside("config.json")
            if config.content.get("eos_token_id") is None:
                config = config.within("text_config")
        ids = config.take("eos_token_id", _IDS, default=None)
        listed = ids if isinstance(ids, list) else [ids]
        return tuple(index for index in listed if index is not None and index >= 0)

    @functools.cached_property
    def cleans_up_spaces(self) -> bool:
        """Whether decoded text loses the blanks in front of punctuation.

        As in transformers, never with a BPE, whatever tokenizer_config.json says.
        """
        asked = self._config.take("clean_up_tokenization_spaces", Flag(), default=None)
        return bool(asked) and type(self.tokenizer.model).__name__ != "BPE"

    @functools.cached_property
    def _config(self) -> Values:
        return self._beside(TOKENIZER_CONFIG)

    def _beside(self, name: str) -> Values:
        """Returns the object in a file of this folder, empty if there is none."""
        path = self.file.with_name(name)
        if os.path.lexists(path):  # a dangling link is told, not passed over
            return outside.read_object(path)
        return Values(str(path), {})

    @functools.cached_property
    def _stored(self) -> tuple["tokenizers.Tokenizer", str | None]:
        """What tokenizer.json holds, and the token that it would pad with."""
        text = outside.read_text(self.file)
        try:
            with explained(str(self.file)), without_panic_messages():
                return _without_settings(text)
        except UserError:
            outside.parse_json(text, str(self.file))  # where it is no JSON, say so
            raise

    def _special_tokens(self, known: set[str]) -> SpecialTokens:
        return read_special_tokens(
            self._config,
            self._beside("special_tokens_map.json"),
            self._beside("added_tokens.json"),
            known,
        )

    def _templates_in_config(self) -> dict[str, str]:
        """Returns `chat_template`: one text, or several with their names."""
        kind = Either(Text(), Object(), Listing(Object()))
        content = self._config.take("chat_template", kind, default=None)
        if isinstance(content, str):
            return {"default": content}
        if isinstance(content, dict):
            named = self._config.within("chat_template")
            return {name: named.take(name, Text()) for name in content}
        entries = [
            Values(self._config.file, entry, f"chat_template.{number}.")
            for number, entry in enumerate(content or [])
        ]
        return {
            entry.take("name", Text()): entry.take("template", Text())
            for entry in entries
        }


def _without_settings(text: str) -> tuple["tokenizers.Tokenizer", str | None]:
    """Returns the tokenizer in a JSON text, and the token that it would pad with."""
    from tokenizers import Tokenizer, models

    tokenizer = Tokenizer.from_str(text)
    padding = (tokenizer.padding or {}).get("pad_token")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    model = tokenizer.model
    if isinstance(model, models.BPE):
        model.dropout = None
    if isinstance(model, models.Unigram):
        model.alpha = model.nbest_size = None
    return tokenizer, padding


def _provoke_panic(tokenizer: "tokenizers.Tokenizer") -> None:
    """Uses the tokenizer once: faults that make the library panic show only then.

    What it raises as an Exception may be no fault: this text need not be encodable.
    """
    with contextlib.suppress(Exception):
        tokenizer.decode(tokenizer.encode("Ab 1, é\n").ids)
