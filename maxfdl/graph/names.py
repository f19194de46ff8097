"""What a dotted name may mean, and the import of nothing else."""

import importlib
import importlib.util
import inspect
import pkgutil
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NoReturn

from maxfdl.errors import ConfigError, did_you_mean

MUTATIONS = "maxfdl.mutations"
CONFIGS = ("experiments", "fdl_configs")


def _is_within(name: str, packages: Sequence[str]) -> bool:
    return any(f"{name}.".startswith(f"{package}.") for package in packages)


def exists(module: str) -> bool:
    """Says whether there is such a module; imports at most the packages above it."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError as e:
        if e.name and f"{module}.".startswith(f"{e.name}."):
            return False
        raise  # a package above exists and fails to import something else


def load_module(name: str) -> ModuleType:
    """Imports a module by its name.

    For what a user names. Where our own code imports by name, the dependency is hidden
    from readers, and tests/test_imports.py refuses it.
    """
    return importlib.import_module(name)


def find_config(name: str, trust: Sequence[str] = ()) -> Callable:
    """Returns the function that `name` means; a module means its `experiment`.

    Raises:
      ConfigError: If the name is outside `experiments`, `fdl_configs` and the
        trusted packages, or means nothing there.
    """
    packages = (*CONFIGS, *trust)
    _refuse_outside(name, packages)
    module, rest = _longest_module(name, packages)
    if module is None:
        raise ConfigError(f"no config {name!r}: there is no package of that name.")
    found = vars(module).get(rest[0] if rest else "experiment")
    if found is not None and len(rest) <= 1 and _is_ours(found, packages):
        return found
    if rest:
        _fail_unknown(module, rest[0], name, packages)
    if hasattr(module, "__path__"):
        below = config_names((name,))
        raise ConfigError(
            f"{name} is a package; name one of its modules:"
            f" {', '.join(below) or 'none'}."
        )
    raise ConfigError(f"{name} has no function experiment() that returns a graph.")


def _is_ours(value: Any, packages: Sequence[str]) -> bool:
    """A function of these packages, not one that they import from elsewhere."""
    return inspect.isfunction(value) and _is_within(value.__module__, packages)


def _longest_module(
    name: str, packages: Sequence[str]
) -> tuple[ModuleType | None, list[str]]:
    """Imports the longest part of `name` that is a module within `packages`."""
    parts = name.split(".")
    module, used = None, 0
    for count in range(1, len(parts) + 1):
        prefix = ".".join(parts[:count])
        if not _is_within(prefix, packages):
            continue  # above a trusted package such as a.b
        if not exists(prefix):
            break
        module, used = load_module(prefix), count
    return module, parts[used:]


def _fail_unknown(
    module: ModuleType, attribute: str, name: str, packages: Sequence[str]
) -> NoReturn:
    functions = [
        f"{module.__name__}.{key}"
        for key, value in vars(module).items()
        if not key.startswith("_") and _is_ours(value, (module.__name__,))
    ]
    near_by = [package for package in packages if _is_within(name, (package,))]
    near = did_you_mean(name, [*functions, *config_names(near_by)])
    raise ConfigError(f"{module.__name__} has no {attribute!r}.{near}")


def _refuse_outside(name: str, packages: Sequence[str]) -> None:
    if any(part.startswith("_") for part in name.split(".")):
        raise ConfigError(f"{name!r} is private; a config has a public name.")
    if not _is_within(name, packages):
        near = did_you_mean(name, config_names(packages))
        raise ConfigError(
            f"{name!r} is not in {', '.join(packages)}.{near} To use another package,"
            " name it with --trust=PACKAGE."
        )


def config_names(packages: Sequence[str]) -> list[str]:
    """Returns the dotted names of all modules in `packages`, without importing them."""
    return [name for package in packages for name in _modules_below(package)]


def _modules_below(package: str) -> list[str]:
    spec = importlib.util.find_spec(package) if exists(package) else None
    if spec is None or spec.submodule_search_locations is None:
        return []
    names = []
    pending = [(package, list(spec.submodule_search_locations))]
    while pending:
        above, folders = pending.pop(0)
        for module in pkgutil.iter_modules(folders):
            if module.name.startswith("_"):
                continue
            name = f"{above}.{module.name}"
            if module.ispkg:
                pending.append((name, [f"{f}/{module.name}" for f in folders]))
            else:
                names.append(name)
    return sorted(names)


def mutations() -> dict[str, Callable]:
    """Returns the public functions of `maxfdl.mutations`, by name."""
    if not exists(MUTATIONS):
        return {}
    module = load_module(MUTATIONS)
    return {
        name: value
        for name, value in sorted(vars(module).items())
        if not name.startswith("_") and _is_ours(value, (MUTATIONS,))
    }


def ways_to_set() -> dict[type, str]:
    """Returns, by the class of a node, what puts such nodes in place."""
    return load_module(f"{MUTATIONS}.ways").WAYS


def find_mutation(name: str, trust: Sequence[str] = ()) -> Callable:
    """Returns the mutation `name`: of `maxfdl.mutations`, or a dotted name.

    A dotted one is a function of `fdl_configs`, such as a preset of
    `fdl_configs.meshes`, of `experiments` or of a trusted package.

    Raises:
      ConfigError: If there is none.
    """
    known = mutations()
    short = name.removeprefix(f"{MUTATIONS}.")
    if short in known:
        return known[short]
    packages = (*CONFIGS, *trust)
    if "." in short and _is_within(short, packages):
        module, rest = _longest_module(name, packages)
        if module is not None and len(rest) == 1:
            if _is_ours(vars(module).get(rest[0]), packages):
                return vars(module)[rest[0]]
            _fail_unknown(module, rest[0], name, trust)
    near = did_you_mean(short, known) or f" There are: {', '.join(known) or 'none'}."
    raise ConfigError(f"no mutation {name!r}.{near}")
