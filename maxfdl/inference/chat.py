"""Chat templates: conversations rendered as text."""

import json
import pathlib
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from maxfdl.data.tokenizers import TokenizerFiles
from maxfdl.errors import UserError

Message = Mapping[str, Any]

_WORKER = pathlib.Path(__file__).with_name("chat_worker.py")
CPU_SECONDS = 2
MEMORY_BYTES = 2**30
MOST_CHARACTERS = 2**24
_BACKSTOP = 60  # seconds, for a process that does not even compute
_LONGEST_REASON = 300  # characters of what a template raises

# Names under which an assistant's reasoning is found, the one of today first.
_REASONING = ("reasoning_content", "thinking", "reasoning")


class ChatTemplate:
    """A Jinja template, or several by name, rendered as transformers renders them.

    Each rendering runs in a process of its own (about 0.1 s) with limits on time and
    memory, since templates come from the hub and may loop forever.

    Args:
      source: The template, or templates by name: `default`, and `tool_use` for
        conversations with tools.
      special: Texts of special tokens by name, such as `bos_token`.
      name: Name of the template in error messages.
    """

    def __init__(
        self,
        source: str | Mapping[str, str],
        special: Mapping[str, str],
        name: str = "the chat template",
    ):
        self.sources = {"default": source} if isinstance(source, str) else dict(source)
        self.special = dict(special)
        self.name = name

    @classmethod
    def of_folder(cls, folder: pathlib.Path) -> "ChatTemplate | None":
        """Returns the template beside a tokenizer.json, if there is one."""
        return cls.of_files(TokenizerFiles(folder / "tokenizer.json"))

    @classmethod
    def of_files(cls, files: TokenizerFiles) -> "ChatTemplate | None":
        if not files.chat_templates:
            return None
        special = {role: text for role, text in files.roles.items() if text is not None}
        name = f"the chat template of {files.file.parent}"
        return cls(files.chat_templates, special, name)

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """Returns the text of a conversation.

        Args:
          messages: Objects with `role`, `content` and whatever else the template reads,
            in JSON's types. A key whose value is None counts as missing.
          tools: JSON schemas of functions that the model may call.
          documents: Objects with `title` and `text` that it may quote.
          add_generation_prompt: Whether to end where the model's answer begins.

        Raises:
          UserError: If the template refuses the conversation, is broken, or takes too
            much time or memory.
        """
        variables = {
            **self.special,
            "messages": [_cleaned(message) for message in messages],
            "tools": tools,
            "documents": documents,
            "add_generation_prompt": add_generation_prompt,
        }
        return self._rendered(self._choose(tools), variables)

    def _choose(self, tools: Any) -> str:
        if tools is not None and "tool_use" in self.sources:
            return self.sources["tool_use"]
        if "default" not in self.sources:
            names = ", ".join(sorted(self.sources))
            raise self._refused(f"has no default, but only {names}")
        return self.sources["default"]

    def _rendered(self, template: str, variables: Mapping[str, Any]) -> str:
        request = {
            "cpu_seconds": CPU_SECONDS,
            "memory_bytes": MEMORY_BYTES,
            "render": {
                "template": template,
                "variables": variables,
                "most_characters": MOST_CHARACTERS,
            },
        }
        try:
            # -P: the folder of the program is no place to import from.
            done = subprocess.run(
                [sys.executable, "-P", _WORKER],
                input=json.dumps(request),
                capture_output=True,
                text=True,
                timeout=_BACKSTOP,
            )
        except subprocess.TimeoutExpired:
            raise self._refused(f"took more than {_BACKSTOP} s") from None
        if done.returncode == -signal.SIGXCPU:
            raise self._refused(
                f"took more than {CPU_SECONDS} s of a processor, as if it looped"
                " without end"
            )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [f"code {done.returncode}"])[-1]
            raise self._refused(f"ended the process that rendered it ({last})")
        answer = json.loads(done.stdout)
        if "error" in answer:
            reason = " ".join(answer["error"].split())[:_LONGEST_REASON]
            raise self._refused(f"cannot take this conversation ({reason})")
        return answer["text"]

    def _refused(self, why: str) -> UserError:
        return UserError(
            f"{self.name} {why}; mend it, or use --nochat to continue plain text."
        )


def _cleaned(message: Message) -> dict[str, Any]:
    """Returns a message as transformers passes it to templates.

    What is None is left out, and reasoning has the names that templates know.
    """
    cleaned = {key: value for key, value in message.items() if value is not None}
    found = [cleaned[name] for name in _REASONING if name in cleaned]
    if found:
        cleaned = {"thinking": found[0], **cleaned, "reasoning_content": found[0]}
    return cleaned
