"""What there is to choose from: experiments, mutations, paths of a graph."""

import ast
import importlib.util
import inspect
from collections.abc import Sequence

import fiddle as fdl

from maxfdl.graph import names
from maxfdl.graph.overrides import settable_paths


def listing(cfg: fdl.Buildable | None = None, trust: Sequence[str] = ()) -> str:
    """Returns the names that commands accept, each with its first line of doc.

    Experiments are listed without importing them.
    """
    configs = names.config_names(("experiments", *trust))
    mutations = names.mutations().items()
    sections = [
        ("Experiments (--fdl_config):", [_row(n, _module_doc(n)) for n in configs]),
        (
            "Mutations (--fiddler):",
            [_row(_usage(n, f), f.__doc__) for n, f in mutations],
        ),
    ]
    if cfg is not None:
        sections.append(("Paths (--fdl_set=PATH=VALUE):", settable_paths(cfg)))
    return "\n\n".join(
        "\n  ".join([head, *(rows or ["none"])]) for head, rows in sections
    )


def _row(name: str, doc: str | None) -> str:
    first = (doc or "").strip().split("\n")[0]
    return f"{name:40}  {first}".rstrip()


def _usage(name: str, mutation) -> str:
    parameters = list(inspect.signature(mutation).parameters)[1:]
    return f"{name}({', '.join(parameters)})" if parameters else name


def _module_doc(module: str) -> str | None:
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return None
    with open(spec.origin, encoding="utf-8") as file:
        try:
            return ast.get_docstring(ast.parse(file.read()))
        except SyntaxError:
            return "(does not parse)"
