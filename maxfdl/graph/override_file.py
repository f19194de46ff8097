"""Overrides from a Python file whose `get_config()` returns a ConfigDict."""

import inspect
import runpy
from collections.abc import Iterator
from typing import Any

from ml_collections import config_dict

from maxfdl.errors import ConfigError
from maxfdl.graph import paths
from maxfdl.paths import fetched


def overrides_from_file(path: str) -> list[tuple[str, Any]]:
    """Returns the `(graph path, value)` pairs that the file asks for, in order.

    Nested dicts are dotted paths, and keys may be dotted or indexed themselves:
    `ConfigDict({"model": {"stacks[0].repeats": 2}, "steps": 5})`. The file is
    Python and runs: it deserves the trust that an experiment file has.

    Raises:
      ConfigError: If the file cannot be read or run, or returns anything else.
    """
    config = _get_config(path)
    if not isinstance(config, config_dict.ConfigDict):
        raise ConfigError(
            f"{path}: get_config() returned {type(config).__name__}; it must return an"
            " ml_collections.ConfigDict of graph paths."
        )
    out: dict[str, Any] = {}
    for where, value in _leaves(path, config, ""):
        if where in out:
            raise ConfigError(f"{path}: {where} is set twice; keep one of them.")
        out[where] = value
    return list(out.items())


def _get_config(path: str) -> Any:
    file = fetched(path)
    if not file.is_file():
        raise ConfigError(f"{path}: there is no such file of overrides.")
    if not path.endswith(".py"):
        raise ConfigError(f"{path}: a file of overrides must be Python (.py).")
    try:
        get_config = runpy.run_path(str(file)).get("get_config")
        if not callable(get_config):
            raise ConfigError(f"{path}: it must define get_config().")
        _refuse_arguments(path, get_config)
        return get_config()
    except ConfigError:
        raise
    except SyntaxError as e:
        raise ConfigError(f"{path}: line {e.lineno}: {e.msg}.") from e
    except (Exception, SystemExit) as e:
        raise ConfigError(f"{path}: it failed with {type(e).__name__}: {e}.") from e


def _refuse_arguments(path: str, get_config: Any) -> None:
    needed = [
        p.name
        for p in inspect.signature(get_config).parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if needed:
        raise ConfigError(
            f"{path}: get_config() must work without arguments, but needs"
            f" {', '.join(needed)}."
        )


def _leaves(
    file: str, config: config_dict.ConfigDict, above: str
) -> Iterator[tuple[str, Any]]:
    for key in config:
        if not isinstance(key, str) or paths.parse(key) is None:
            raise ConfigError(f"{file}: the key {key!r} is not a graph path.")
        path = f"{above}{'' if not above or key.startswith('[') else '.'}{key}"
        try:
            value = config[key]
        except config_dict.RequiredValueError as e:
            raise ConfigError(
                f"{file}: {path} is a placeholder without a value."
            ) from e
        if isinstance(value, config_dict.ConfigDict):
            yield from _leaves(file, value, path)
        else:
            yield path, value
