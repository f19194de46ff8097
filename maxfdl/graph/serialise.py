"""Graphs as JSON: saved with every run, and loaded without trusting the file."""

import collections
import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import fiddle as fdl
from fiddle.experimental import serialization

from maxfdl.errors import ConfigError, did_you_mean
from maxfdl.graph import paths
from maxfdl.graph.pyref_policy import GraphPolicy, find_symbol, may_stand
from maxfdl.graph.select import iterate
from maxfdl.graph.signatures import fields, parameters, takes_any_field

_MAX_DEPTH = 200  # a graph of ours is about 60 deep in this format


def dump_json(cfg: fdl.Buildable, trust: Sequence[str] = ()) -> str:
    """Returns `cfg` as JSON that `load_json` reads back to an equal graph.

    Raises:
      ConfigError: If the graph holds a value that cannot be saved (a lambda, an
        array, a function of a package that is not trusted), with its path.
    """
    try:
        text = serialization.dump_json(cfg, pyref_policy=GraphPolicy(trust), indent=1)
    except serialization.PyrefPolicyError as e:
        raise ConfigError(
            f"this graph cannot be saved: {e.module}.{e.symbol} is outside the packages"
            " of maxfdl and those that you --trust."
        ) from e
    except (serialization.UnserializableValueError, AttributeError) as e:
        reason = re.sub(r" at 0x[0-9a-fA-F]+|\s+", " ", str(e)).strip()
        raise ConfigError(
            f"this graph cannot be saved: {reason} Use a literal, a class, or a"
            " function that a module defines."
        ) from e
    return f"{text}\n"


def load_json(text: str, trust: Sequence[str] = ()) -> fdl.Buildable:
    """Returns the graph in `text`.

    All symbols are checked before the first is imported, so a file that is refused
    has imported and run nothing. See `pyref_policy`.

    Args:
      text: What `dump_json` returned.
      trust: Packages that the file may name besides our own.

    Raises:
      ConfigError: If `text` is no saved graph, or names something else than classes
        and functions of the trusted packages, or a field that does not exist.
    """
    document = _parse(text)
    policy = GraphPolicy(trust)
    symbols = sorted(set(_symbols(document)))
    for module, symbol, is_type in symbols:
        _check_symbol(policy, module, symbol, is_type)
    for module, symbol, _ in symbols:
        find_symbol(policy, module, symbol)
    try:
        cfg = serialization.load_json(text, pyref_policy=policy)
        if not isinstance(cfg, fdl.Buildable):
            raise ConfigError(f"it holds {type(cfg).__name__}, not a graph.")
        _check_nodes(cfg)
    except ConfigError:
        raise
    except RecursionError:
        raise ConfigError("this is not a saved graph: it contains itself.") from None
    except Exception as e:
        first_line = str(e).strip().split("\n")[0]
        raise ConfigError(
            f"this is not a saved graph: {type(e).__name__}: {first_line}."
        ) from e
    return cfg


def _parse(text: str) -> dict:
    try:
        document = json.loads(
            text,
            object_pairs_hook=_object,
            parse_float=_finite,
            parse_constant=_finite,
        )
    except (ValueError, TypeError) as e:
        raise ConfigError(f"this is not a saved graph: not JSON ({e}).") from e
    except RecursionError:
        raise ConfigError("this is not a saved graph: it is nested too deep.") from None
    wanted = {"root": dict, "objects": dict}
    for key, kind in wanted.items():
        if not isinstance(document, dict) or not isinstance(document.get(key), kind):
            raise ConfigError(f"this is not a saved graph: it has no {key!r} object.")
    return document


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns a JSON object; one that holds a key twice is not what it seems to be."""
    found = dict(pairs)
    if len(found) < len(pairs):
        ((twice, _),) = collections.Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"an object has the key {twice!r} twice")
    return found


def _finite(text: str) -> float:
    """Returns the number that `text` spells; `1e999` and `Infinity` are none."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    return number


def _symbols(document: dict) -> Iterator[tuple[str, str, bool]]:
    """Yields `(module, symbol, is the type of an object)` of each reference."""
    pending: list[tuple[Any, int, bool]] = [(document, 0, False)]
    while pending:
        value, depth, is_type = pending.pop()
        if depth > _MAX_DEPTH:
            raise ConfigError("this is not a saved graph: it is nested too deep.")
        if isinstance(value, dict):
            if value.get("type") == "pyref":
                module, symbol = value.get("module"), value.get("name")
                if not (isinstance(module, str) and isinstance(symbol, str)):
                    raise ConfigError(
                        "this is not a saved graph: a reference has no module and name."
                    )
                yield module, symbol, is_type
            pending += [(v, depth + 1, k == "type") for k, v in value.items()]
        elif isinstance(value, list):
            pending += [(item, depth + 1, False) for item in value]


def _check_symbol(policy: GraphPolicy, module: str, symbol: str, is_type: bool) -> None:
    """Refuses by name, before any import."""
    allowed = policy.allows_import(module, symbol)
    if allowed and may_stand(module, symbol, is_type):
        return
    if is_type and allowed:
        raise ConfigError(f"a saved graph may not hold an object of {module}.{symbol}.")
    raise ConfigError(
        f"a saved graph may not name {f'{module}.{symbol}'!r}: it is outside the"
        " packages of maxfdl and those that you --trust."
    )


def _check_nodes(cfg: fdl.Buildable) -> None:
    """Refuses what no Python code could have set: the loader bypasses signatures."""
    for path, node in iterate(cfg):
        fn = fdl.get_callable(node)
        if not callable(fn):
            raise ConfigError(
                f"{paths.label(path)} calls {fn!r}, which is no callable."
            )
        for name in node.__arguments__:
            known = name in parameters(node) or takes_any_field(node)
            if not isinstance(name, str) or not known:
                near = did_you_mean(str(name), fields(node))
                raise ConfigError(
                    f"{paths.label(path)} sets {name!r}, which is no field of"
                    f" {fn.__qualname__}.{near}"
                )
