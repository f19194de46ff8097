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
    """Returns the name of the family that a normalised config.json means."""
    found = [name for name, each in tables().items() if model_type in each.model_types]
    assert len(found) == 1, (model_type, found)  # held by tests/hf/test_table.py
    return found[0]


def table_of(model_type: str) -> NameTable:
    return tables()[family_of(model_type)]
