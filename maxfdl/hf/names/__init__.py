"""The name tables, one module per family; a new module is found by being here."""

import functools
import importlib
import pkgutil

from maxfdl.hf.table import NameTable


@functools.cache
def tables() -> dict[str, NameTable]:
    """Returns the table of each family, by its name, in alphabetical order."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return {name: importlib.import_module(f"{__name__}.{name}").TABLE for name in names}


def family_of(model_type: str) -> str:
    """Returns the name of the family that config.json means by `model_type`."""
    for name, table in tables().items():
        if model_type in table.model_types:
            return name
    raise NotImplementedError(f"there is no name table for {model_type}")


def table_of(model_type: str) -> NameTable:
    return tables()[family_of(model_type)]
