"""What there is to choose from: experiments, mutations, paths of a graph."""

import ast
import importlib.util
import inspect
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import fiddle as fdl

from maxfdl.graph import names
from maxfdl.graph.annotations import choices
from maxfdl.graph.overrides import settable_paths
from maxfdl.graph.signatures import hints_of


def listing(cfg: fdl.Buildable | None = None, trust: Sequence[str] = ()) -> str:
    """Returns the names that commands accept: with arguments, and what each does.

    Experiments are listed without importing them.
    """
    configs = names.config_names(("experiments", *trust))
    mutations = names.mutations().items()
    sections = [
        ("Experiments (--fdl_config):", [*map(_experiment, configs)]),
        ("Mutations (--fiddler):", [_mutation(n, f) for n, f in mutations]),
    ]
    if cfg is not None:
        paths = [f"  {path}" for path in settable_paths(cfg)]
        sections.append(("Paths (--fdl_set=PATH=VALUE):", paths))
    return "\n\n".join(
        "\n".join([head, *(rows or ["  none"])]) for head, rows in sections
    )


def _row(name: str, arguments: Sequence[str], doc: str | None) -> str:
    """Two lines: how it is called, and the first line of its doc."""
    call = f"{name}({', '.join(arguments)})" if arguments else name
    call = textwrap.fill(call, 88, initial_indent=" " * 2, subsequent_indent=" " * 8)
    first = (doc or "").strip().split("\n")[0]
    return f"{call}\n      {first}".rstrip()


def _mutation(name: str, function: Callable) -> str:
    parameters = list(inspect.signature(function).parameters.values())[1:]
    hints = hints_of(function)
    arguments = [_argument(each, hints.get(each.name, Any)) for each in parameters]
    return _row(name, arguments, function.__doc__)


def _argument(parameter: inspect.Parameter, hint: Any) -> str:
    """The name, with the default; of one that must be given, with its choices."""
    default = parameter.default
    if default is parameter.empty:
        shown = "|".join(map(str, choices(hint)))
    else:
        shown = f"{default:g}" if isinstance(default, float) else repr(default)
    return f"{parameter.name}={shown}" if shown else parameter.name


def _experiment(module: str) -> str:
    """The row of a module, read from its source."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return _row(module, [], None)
    with open(spec.origin, encoding="utf-8") as file:
        try:
            tree = ast.parse(file.read())
        except SyntaxError:
            return _row(module, [], "(does not parse)")
    functions = [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name == "experiment"
    ]
    arguments = [a for function in functions for a in _arguments(function.args)]
    return _row(module, arguments, ast.get_docstring(tree))


def _arguments(args: ast.arguments) -> Iterator[str]:
    """The arguments that a command may give, with their defaults."""
    places = [*args.posonlyargs, *args.args]
    missing = [None] * (len(places) - len(args.defaults))
    defaults = [*missing, *args.defaults, *args.kw_defaults]
    for arg, default in zip([*places, *args.kwonlyargs], defaults, strict=True):
        yield arg.arg if default is None else f"{arg.arg}={ast.unparse(default)}"
