"""Imports run one way, as DESIGN.md draws them: read from the source, not from memory.

A part is a package or a module directly under `maxfdl`. Each has a line below that
names the parts it may import; a new part needs a line of its own.
"""

import ast
import functools
import graphlib
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
NOTHING = frozenset()
WORDS = frozenset({"errors", "markers"})
ENTRY_POINTS = frozenset({"bench", "convert", "diff", "generate", "launch", "show"})

LIBRARY = {
    "errors": NOTHING,
    "markers": NOTHING,
    "hush": NOTHING,
    "files": NOTHING,
    "outside": WORDS,
    "ops": {"errors"},
    "sharding": WORDS,
    "layers": WORDS | {"ops", "sharding"},
    "model": WORDS | {"ops", "sharding", "layers"},
    "optim": WORDS | {"layers.parameter", "sharding.memory"},
    "inference": WORDS
    | {"ops", "sharding.room", "layers.cache", "model", "data.tokenizers"},
    "data": WORDS | {"files", "outside"},
    "checkpoint": WORDS | {"hush", "sharding.memory"},
    "train": WORDS
    | {"ops", "sharding", "layers.parameter", "layers.sinks", "model", "optim"}
    | {"files"},
    "experiment": WORDS | {"sharding", "model", "data", "optim", "checkpoint", "train"},
    "run": WORDS
    | {"files", "ops", "layers.sinks", "sharding", "data", "checkpoint", "train"}
    | {"experiment", "inference", "outside", "hf.folder", "hf.weights"},
}
KNOW_FIDDLE = {
    "graph": WORDS | {"outside"},
    "mutations": WORDS | LIBRARY.keys() | {"graph"},
    "hf": WORDS | LIBRARY.keys() | {"graph", "mutations"},
    "gguf": WORDS | {"files", "outside", "data.tokenizers", "hf"},
    "commandline": WORDS | {"graph", "run.processes", "terminal"},
    "terminal": WORDS,
    "__main__": WORDS | {"terminal"},
    "report": WORDS | LIBRARY.keys() | {"graph"},
    "saved_graph": WORDS | {"graph", "checkpoint", "run.directory"},
    "saved_run": WORDS | LIBRARY.keys() | {"graph", "saved_graph"},
} | dict.fromkeys(
    ENTRY_POINTS,
    WORDS
    | LIBRARY.keys()
    | {"graph", "hf", "gguf", "commandline", "report", "saved_graph", "saved_run"},
)
ALLOWED = LIBRARY | KNOW_FIDDLE


def sources(package):
    return sorted((ROOT / package).rglob("*.py"))


def module_name(path):
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


@functools.cache
def imported_by(path):
    """Returns the modules that a file imports, at any place in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            is_ours = is_module(node.module)
            found |= {node.module if is_ours and not is_module(n) else n for n in names}
    return found


def is_module(name):
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def part(module):
    return module.split(".")[1]


def inside(module, package):
    return module == package or module.startswith(f"{package}.")


def ours(path, package="maxfdl"):
    return {name for name in imported_by(path) if inside(name, package)}


MODULES = {module_name(path): path for path in sources("maxfdl")}
PARTS = sorted({part(name) for name in MODULES if name != "maxfdl"})


@pytest.mark.parametrize("name", PARTS)
def test_a_part_imports_only_what_its_line_allows(name):
    assert name in ALLOWED, f"say in {__file__} what maxfdl.{name} may import"
    may = {f"maxfdl.{each}" for each in ALLOWED[name] | {name}}
    for module, path in MODULES.items():
        if inside(module, f"maxfdl.{name}"):
            for other in ours(path):
                assert any(inside(other, each) for each in may), f"{module}: {other}"


def test_the_library_never_imports_fiddle():
    for module, path in MODULES.items():
        if module != "maxfdl" and part(module) in LIBRARY:
            assert not ours(path, "fiddle"), module


def test_what_training_needs_of_hugging_face_never_imports_fiddle():
    pending, seen = {"maxfdl.hf.folder", "maxfdl.hf.weights"}, set()
    while pending:
        module = pending.pop()
        seen.add(module)
        assert not ours(MODULES[module], "fiddle"), module
        assert not ours(MODULES[module], "maxfdl.graph"), module
        pending |= {m for m in ours(MODULES[module]) if inside(m, "maxfdl.hf")} - seen


def test_the_library_knows_no_graphs_and_no_experiments():
    for path in sources("maxfdl"):
        for package in ("fdl_configs", "experiments", "tests"):
            assert not ours(path, package), path


def test_nothing_imports_experiments():
    for path in sources("fdl_configs"):
        assert not ours(path, "experiments"), path


@pytest.mark.parametrize(("family", "twin"), [("nnx", "linen"), ("linen", "nnx")])
def test_a_family_of_layers_does_not_know_its_twin(family, twin):
    for path in sources(f"maxfdl/layers/{family}"):
        assert not ours(path, f"maxfdl.layers.{twin}"), path
        stock = {name.split(".")[:2] == ["flax", twin] for name in imported_by(path)}
        assert not any(stock), path


def test_what_both_families_stand_on_knows_neither():
    for path in (ROOT / "maxfdl/layers").glob("*.py"):
        assert not ours(path, "flax"), path
        assert not ours(path, "maxfdl.layers.nnx"), path
        assert not ours(path, "maxfdl.layers.linen"), path


def test_no_module_imports_itself_by_a_detour():
    files = {k: v for k, v in MODULES.items() if v.stem != "__init__"}
    arrows = {module: ours(path) for module, path in files.items()}
    graphlib.TopologicalSorter(arrows).prepare()


def test_no_line_is_left_over():
    assert ALLOWED.keys() == set(PARTS)
