"""Conversations as text: the chat template that comes with a tokenizer."""

import datetime
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from maxfdl.errors import UserError

Message = Mapping[str, str]


class ChatTemplate:
    """A Jinja template, run in a sandbox that can neither write nor import.

    Args:
      source: The template.
      special: Texts of special tokens by name, such as `bos_token`.
    """

    def __init__(self, source: str, special: Mapping[str, str]):
        self.source = source
        self.special = dict(special)

    @classmethod
    def of_folder(cls, folder: pathlib.Path) -> "ChatTemplate | None":
        """Returns the template that lies beside a tokenizer.json, if there is one."""
        config = read_json(folder / "tokenizer_config.json")
        file = folder / "chat_template.jinja"
        source = file.read_text("utf-8") if file.is_file() else None
        source = source or _default(config.get("chat_template"))
        return cls(source, _special_tokens(config)) if source else None

    def render(self, messages: Sequence[Message]) -> str:
        """Returns the text up to where the model's answer begins.

        Raises:
          UserError: If the template refuses the messages, or is broken.
        """
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols"],
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = _now
        try:
            return environment.from_string(self.source).render(
                messages=list(messages), add_generation_prompt=True, **self.special
            )
        except TemplateError as error:
            raise UserError(
                f"the chat template cannot take this conversation ({error}); use"
                " --nochat to continue plain text."
            ) from None


def read_json(file: pathlib.Path) -> dict[str, Any]:
    """Returns what a JSON file holds, nothing if there is no such file."""
    return json.loads(file.read_text("utf-8")) if file.is_file() else {}


def _default(entry: Any) -> str | None:
    """Older files list named templates; `default` is the one for plain chat."""
    if isinstance(entry, list):
        return {each["name"]: each["template"] for each in entry}.get("default")
    return entry


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    named = {}
    for role in ("bos_token", "eos_token", "pad_token", "unk_token"):
        token = config.get(role)
        token = token.get("content") if isinstance(token, dict) else token
        named[role] = token or ""
    return named


# Unlike Jinja's own filter, it escapes nothing for HTML.
def _to_json(value: Any, indent: int | None = None, ensure_ascii: bool = False) -> str:
    return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii)


def _refuse(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)
