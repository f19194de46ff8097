"""Which parameters are trained.

A parameter that is frozen is not differentiated, and has neither an accumulated
gradient nor optimizer state. `trained` and `joined` split a tree of parameters and put
it together again.
"""

import dataclasses
import fnmatch
import re
from collections.abc import Mapping
from typing import Any

import jax

from maxfdl.errors import UserError, did_you_mean
from maxfdl.layers.parameter import DType, Parameter, Role, map_parameters

_INDEX = re.compile(r"\[(\d+|\*)\]")


@dataclasses.dataclass(frozen=True)
class Frozen:
    """Marks parameters as frozen.

    A parameter is frozen if `roles` or `paths` select it and neither `trained_roles`
    nor `trained_paths` do. Paths are those that `maxfdl.show` prints, of a parameter or
    of a layer, which selects all of its parameters: `embedding`,
    `decoder.stacks[0].layers[*].attention.query.kernel`. `*` stands for any part of a
    name or any index, `**` for any number of names (`**.attention`), and a list without
    an index for all of its items (`decoder.stacks`). The layers of a
    stack share one array, so they are frozen together.

    Args:
      roles: Roles of parameters that are frozen.
      paths: Paths of what is frozen.
      trained_roles: Roles of parameters that are trained all the same.
      trained_paths: Paths of what is trained all the same.
      dtype: Type in which frozen parameters are stored; None is the model's
        `param_dtype`.
    """

    roles: tuple[Role, ...] = ()
    paths: tuple[str, ...] = ()
    trained_roles: tuple[Role, ...] = ()
    trained_paths: tuple[str, ...] = ()
    dtype: DType | None = None

    def marked(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the declarations, those of frozen parameters marked as such.

        Raises:
          UserError: If a path matches no parameter, or if none is left to be trained.
        """
        found: list[str] = []
        map_parameters(lambda path, _: found.append(path), parameters)
        roles = {each.role for each in jax.tree.leaves(parameters)}
        for role in (*self.roles, *self.trained_roles):
            if role not in roles:
                raise UserError(
                    f"Frozen role [{role}] must be that of a parameter of the model,"
                    f" which has {', '.join(sorted(roles))}."
                )
        for pattern in (*self.paths, *self.trained_paths):
            if not any(matches(pattern, path) for path in found):
                raise UserError(
                    f"Frozen path [{pattern}] must match a parameter of the model;"
                    f" maxfdl.show prints their paths.{_near(pattern, found)}"
                )

        def mark(path: str, parameter: Parameter) -> Parameter:
            if not self._selects(path, parameter):
                return parameter
            if parameter.packing is not None:
                return parameter  # its types are those of codes and scales
            dtype = self.dtype or parameter.dtype
            return dataclasses.replace(parameter, trained=False, dtype=dtype)

        marked = map_parameters(mark, parameters)
        if not trained(marked):
            raise UserError(
                "Frozen leaves no parameter to train; freeze fewer roles or paths, or"
                " name some in unfreeze."
            )
        return marked

    def _selects(self, path: str, parameter: Parameter) -> bool:
        def named(roles: tuple[Role, ...], paths: tuple[str, ...]) -> bool:
            return parameter.role in roles or any(matches(p, path) for p in paths)

        return named(self.roles, self.paths) and not named(
            self.trained_roles, self.trained_paths
        )


def trained(parameters: Mapping[str, Any], tree: Any = None) -> dict[str, Any]:
    """Returns the part of `tree` that is trained, without empty dicts.

    Args:
      parameters: Declarations of all parameters.
      tree: A tree like them; None takes the declarations themselves.
    """
    return _part(parameters, parameters if tree is None else tree, is_trained=True)


def frozen(parameters: Mapping[str, Any], tree: Any) -> dict[str, Any]:
    """Returns the part of a tree like `parameters` that is frozen."""
    return _part(parameters, tree, is_trained=False)


def joined(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Returns one tree of two that have no leaf in common."""
    both = one.keys() & other.keys()
    return {**one, **other} | {name: joined(one[name], other[name]) for name in both}


def _part(declared: Mapping[str, Any], tree: Any, is_trained: bool) -> dict[str, Any]:
    part = {}
    for name, node in declared.items():
        if isinstance(node, Parameter):
            if node.trained == is_trained:
                part[name] = tree[name]
        elif below := _part(node, tree[name], is_trained):
            part[name] = below
    return part


def matches(pattern: str, path: str) -> bool:
    """Says whether a pattern, as `Frozen` takes it, selects a parameter or a layer, or
    something that holds it. `path` is that in the parameter tree."""
    return _match(_names(pattern), path.split("/"))


def tree_path(path: str) -> str:
    """Returns the path in the parameter tree of a layer at `path` in the graph."""
    return "/".join(_names(path))


def _match(patterns: list[str], names: list[str]) -> bool:
    if not patterns:
        return True
    if patterns[0] == "**":
        return any(_match(patterns[1:], names[i:]) for i in range(len(names)))
    if not names or not _is_called(names[0], patterns[0]):
        return False
    return _match(patterns[1:], names[1:])


def _is_called(name: str, pattern: str) -> bool:
    """Says whether a pattern fits a name, or the list whose item it names."""
    in_list = re.sub(r"_\d+$", "", name)
    return any(fnmatch.fnmatchcase(each, pattern) for each in (name, in_list))


def _names(pattern: str) -> list[str]:
    """Returns the names of a path: `stacks[0]` is called `stacks_0` in the tree."""
    return _INDEX.sub(r"_\1", pattern).split(".")


def _near(pattern: str, found: list[str]) -> str:
    """Returns a hint at parts of the model whose paths look like `pattern`."""
    holders = {
        "/".join(names[:n])
        for names in (path.split("/") for path in found)
        for n in range(1, len(names) + 1)
    }
    shown = {re.sub(r"_(\d+)(?=\.|$)", r"[\1]", h.replace("/", ".")) for h in holders}
    return did_you_mean(pattern, sorted(shown))
