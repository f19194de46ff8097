"""Imports run one way, as DESIGN.md draws them: read from the source, not from memory.

A part is a package or a module directly under `maxfdl`. Each has a line below that
names the parts it may import; a new part needs a line of its own. Imports by a string
(`importlib.import_module`, `__import__`) count as imports where the string is written
out, and are refused where it is not.
"""

import ast
import functools
import graphlib
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
NOTHING = frozenset()
WORDS = frozenset({"batch", "bucket", "errors", "markers", "paths"})
ENTRY_POINTS = frozenset(
    {
        "aot",
        "bench",
        "checkpoint.__main__",
        "convert",
        "diff",
        "generate",
        "launch",
        "plot",
        "quantize",
        "show",
    }
)

LIBRARY = {
    "batch": frozenset({"errors"}),
    "errors": NOTHING,
    "markers": NOTHING,
    "hush": NOTHING,
    "bucket": frozenset({"errors"}),
    "files": frozenset({"bucket", "errors"}),
    "paths": frozenset({"bucket", "errors", "files"}),
    "outside": WORDS,
    "ops": {"errors", "markers"},
    "sharding": WORDS,
    "layers": WORDS | {"ops", "sharding"},
    "model": WORDS | {"ops", "sharding", "layers"},
    "optim": WORDS | {"ops", "layers.parameter", "sharding.memory"},
    "inference": WORDS
    | {"ops", "sharding.room", "layers.cache", "model", "data.tokenizers"},
    "data": WORDS | {"files", "outside"},
    "checkpoint": WORDS | {"hush", "files", "sharding.memory", "data.places"},
    "train": WORDS
    | {"ops", "sharding", "model", "optim", "files"}
    | {"layers.frozen", "layers.parameter", "layers.sinks"},
    "experiment": WORDS
    | {"sharding", "layers.frozen", "model", "data", "optim", "checkpoint", "train"},
    "tensors": WORDS
    | {"ops.initializers", "ops.state", "layers.parameter", "layers.checks", "model"}
    | {"sharding", "outside", "files", "data.tokenizers", "ops.codec"}
    | {"ops.numbers"}
    | {"layers.embedding", "layers.head", "layers.on_disk"},
    "run": WORDS
    | {"files", "ops", "layers.sinks", "sharding", "data", "checkpoint", "train"}
    | {"experiment", "inference", "outside", "terminal"}
    | {"tensors.hugging_face.folder", "tensors.maxtext", "tensors.weights"}
    | {"layers.frozen", "optim"},
}
KNOW_FIDDLE = {
    "graph": WORDS | {"outside"},
    "mutations": WORDS | LIBRARY.keys() | {"graph"},
    "hf": WORDS | LIBRARY.keys() | {"graph", "mutations"},
    "maxtext": WORDS | LIBRARY.keys() | {"graph", "mutations", "hf"},
    "gguf": WORDS | {"files", "outside", "data.tokenizers", "tensors", "hf"},
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
    | {
        "graph",
        "hf",
        "maxtext",
        "gguf",
        "commandline",
        "terminal",
        "report",
        "saved_graph",
        "saved_run",
    },
)
ALLOWED = LIBRARY | KNOW_FIDDLE
ABOVE_CONFIGS = ENTRY_POINTS | {"hf", "maxtext", "report.zoo"}
BELOW_CONFIGS = LIBRARY.keys() | {"graph", "mutations"}
DYNAMIC_IMPORTS = {
    "maxfdl/graph/names.py",  # experiments and mutations that a command names
    "maxfdl/graph/pyref_policy.py",  # symbols of a saved graph, from a list of packages
    "maxfdl/graph/resolve.py",  # an expression
    "maxfdl/mutations/family.py",  # the twin of a layer, which may be a user's own
}
DYNAMIC = "<a name that is not written out>"
BY_NAME = {"import_module", "__import__", "load_module", "find_config"}


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
        if isinstance(node, ast.Call) and called(node) in BY_NAME:
            found.add(named_module(node))
    return found


def called(node):
    return getattr(node.func, "attr", getattr(node.func, "id", None))


def named_module(call):
    """Returns the module that a call imports by name, if the name is written out.

    Of a name that goes on inside a module, such as that of a function, it is the
    longest part that is a module.
    """
    name = call.args[0]
    if not (isinstance(name, ast.Constant) and isinstance(name.value, str)):
        return DYNAMIC
    parts = name.value.split(".")
    prefixes = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next(filter(is_module, prefixes), name.value)


def is_module(name):
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def part(module):
    """Returns the part that a module is in; what a package runs as a command is one."""
    return (
        module.removeprefix("maxfdl.") if is_command(module) else module.split(".")[1]
    )


def is_command(module):
    return module.endswith(".__main__") and module != "maxfdl.__main__"


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
        if module != "maxfdl" and part(module) == name:
            for other in ours(path):
                assert any(inside(other, each) for each in may), f"{module}: {other}"


def test_the_library_never_imports_fiddle():
    for module, path in MODULES.items():
        if module != "maxfdl" and part(module) in LIBRARY:
            assert not ours(path, "fiddle"), module


def test_what_knows_graphs_stands_above_them():
    for module, path in MODULES.items():
        if not any(inside(module, f"maxfdl.{each}") for each in ABOVE_CONFIGS):
            assert not ours(path, "fdl_configs"), path


def test_graphs_stand_above_the_library():
    may = {f"maxfdl.{each}" for each in BELOW_CONFIGS}
    for path in sources("fdl_configs"):
        for other in ours(path):
            assert any(inside(other, each) for each in may), f"{path}: {other}"


def test_nothing_imports_experiments_or_tests():
    for path in sources("maxfdl") + sources("fdl_configs"):
        assert not ours(path, "experiments") | ours(path, "tests"), path


def test_only_what_a_user_names_is_imported_by_name():
    found = {
        str(path.relative_to(ROOT))
        for package in ("maxfdl", "fdl_configs", "experiments")
        for path in sources(package)
        if DYNAMIC in imported_by(path)
    }
    assert found == DYNAMIC_IMPORTS


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("importlib.import_module('fdl_configs.bench')", "fdl_configs.bench"),
        ("__import__('maxfdl.model')", "maxfdl.model"),
        ("find_config('fdl_configs.bench.deep')", "fdl_configs.bench"),
        ("import_module(f'fdl_configs.{name}')", DYNAMIC),
        ("def f():\n  import maxfdl.model", "maxfdl.model"),
    ],
)
def test_imports_by_name_are_seen(line, found, tmp_path):
    (tmp_path / "module.py").write_text(line)
    assert imported_by(tmp_path / "module.py") == {found}


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
