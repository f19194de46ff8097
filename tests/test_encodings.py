"""Text files are UTF-8 on every machine: a locale such as C would choose another.

Read from the source: a call that opens a text file must name its encoding.
"""

import ast

from tests.test_imports import sources

PACKAGES = ("maxfdl", "fdl_configs", "experiments")


def opens_text_without_encoding(call: ast.Call) -> bool:
    if any(keyword.arg == "encoding" for keyword in call.keywords):
        return False
    match call.func:
        case ast.Attribute(attr="read_text"):
            return not call.args
        case ast.Attribute(attr="write_text"):
            return len(call.args) < 2
        case ast.Attribute(attr="open"):  # without a mode it may be any method
            return any("b" not in mode for mode in modes(call, place=0))
        case ast.Name(id="open"):
            return not any("b" in mode for mode in modes(call, place=1))
    return False


def modes(call: ast.Call, place: int) -> list[str]:
    """The mode that a call names, if it does."""
    given = [keyword.value for keyword in call.keywords if keyword.arg == "mode"]
    given += call.args[place : place + 1]
    return [str(mode.value) for mode in given if isinstance(mode, ast.Constant)]


def test_every_text_file_is_opened_with_its_encoding():
    found = []
    for package in PACKAGES:
        for path in sources(package):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Call) and opens_text_without_encoding(node):
                    found.append(f"{path}:{node.lineno}")
    assert not found
