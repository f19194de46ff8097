"""Paths of users become paths in one place, so that all of them may be URLs."""

import ast
import pathlib

import pytest

from maxfdl.errors import UserError
from maxfdl.files import cache_directory

ROOT = pathlib.Path(__file__).parents[1]
OF_THIS_MACHINE = {
    "bucket.py",  # the other side of a copy
    "checkpoint/emergency.py",  # a disk of this machine, by its meaning
    "data/sources/paths.py",  # globs of a local disk
    "files.py",
    "gguf/unpacking.py",  # the cache
    "paths.py",
    "run/accelerator/processes.py",
    "run/processes/local.py",  # /dev
    "run/profile.py",  # a temporary folder
    "sharding/room.py",  # /proc
    "tensors/staging.py",  # a temporary folder
    "train/compiler_options.py",  # an installed package
}


def makes_a_path(node):
    """Says whether a call makes a path of something that is not known here."""
    return (
        isinstance(node, ast.Call)
        and ast.unparse(node.func) == "pathlib.Path"
        and "__file__" not in ast.unparse(node)
        and "spec." not in ast.unparse(node)
        and "sysconfig." not in ast.unparse(node)
    )


def test_nothing_else_makes_paths_of_strings():
    for folder in ("maxfdl", "fdl_configs", "experiments"):
        for file in (ROOT / folder).rglob("*.py"):
            if file.relative_to(ROOT / folder).as_posix() not in OF_THIS_MACHINE:
                calls = filter(makes_a_path, ast.walk(ast.parse(file.read_text())))
                assert not [f"{file}:{call.lineno}" for call in calls]


def test_a_cache_in_a_bucket_is_refused(monkeypatch):
    monkeypatch.setenv("MAXFDL_CACHE", "gs://bucket/cache")
    with pytest.raises(UserError, match="MAXFDL_CACHE .*must be a folder on a disk"):
        cache_directory()
