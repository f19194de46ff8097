"""The process that renders a chat template: a program of its own, run by `chat.py`.

A template is untrusted code. Jinja's sandbox keeps it from files and imports, but not
from looping or filling the memory, which no check inside Python prevents reliably. So
it runs in a process with limits that the kernel enforces.

It reads one JSON object, with a template, its variables and the limits, and writes one
that has the text or an error. It imports Jinja and nothing of maxfdl.
"""

import datetime
import json
import resource
import sys
from collections.abc import Mapping
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox
import jinja2.utils


def main() -> None:
    request = json.load(sys.stdin)
    _limit(resource.RLIMIT_CPU, request["cpu_seconds"])
    _limit(resource.RLIMIT_AS, request["memory_bytes"])
    _limit(resource.RLIMIT_CORE, 0)
    json.dump(_answer(**request["render"]), sys.stdout)


def _answer(
    template: str, variables: Mapping[str, Any], most_characters: int
) -> dict[str, str]:
    """Returns the text or an error; whatever is raised is the fault of the template."""
    try:
        text = render(template, variables)
        if len(text) > most_characters:
            return {"error": f"it makes {len(text):,} characters"}
        return {"text": text}
    except MemoryError:
        return {"error": "it needs too much memory"}
    except RecursionError:
        return {"error": "it is nested too deeply, or calls itself without end"}
    except Exception as error:
        return {"error": str(error) or type(error).__name__}


def render(template: str, variables: Mapping[str, Any]) -> str:
    """Returns the text of a template, in the environment that transformers gives it."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationTag, jinja2.ext.loopcontrols],
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": _raise,
        "strftime_now": _strftime_now,
        "namespace": _Namespace,
        "dict": _Dict(),
    }
    return environment.from_string(template).render(variables)


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}`, which marks what the assistant says; it renders as it is."""

    tags = {"generation"}

    def parse(self, parser: Any) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # A scope of its own, as in transformers: what is set inside ends there.
        call = self.call_method("_as_it_is")
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _as_it_is(self, caller: Any) -> str:
        return caller()


class _Namespace(jinja2.utils.Namespace):
    """Jinja's namespace; like that of transformers, it refuses names such as `_x`."""

    def __init__(*args: Any, **kwargs: Any):
        self, *positional = args
        values = dict(*positional, **kwargs)
        for name in values:
            _refuse_private(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot hold {name!r}")


class _Dict:
    """`dict(...)` and `dict.fromkeys(...)`, without the rest of the class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict:
        return dict.fromkeys(*args)


# Unlike Jinja's own filter, it escapes nothing for HTML.
def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _limit(kind: int, amount: int) -> None:
    """Sets a limit of this process, or keeps the lower one that it has."""
    _, hard = resource.getrlimit(kind)
    if hard == resource.RLIM_INFINITY or amount < hard:
        resource.setrlimit(kind, (amount, hard))


if __name__ == "__main__":
    main()
