"""Short forms for many paths."""

import itertools

import pytest

from maxfdl.graph.collapse import collapse


@pytest.mark.parametrize(
    "paths, short",
    [
        ([], []),
        (["a.b"], ["a.b"]),
        (["a.q.dot", "a.k.dot"], ["a.{q,k}.dot"]),
        (["a.q", "a.k.dot"], ["a.q", "a.k.dot"]),
        (["l[0].x", "l[1].x", "l[3].x"], ["l[0..1,3].x"]),
        (["q", "k"], ["{q,k}"]),
        (["a.q.x", "a.k.x", "b.q.x"], ["a.{q,k}.x", "b.q.x"]),
        (["t['x']", "t['y']"], ["t['x','y']"]),
        (["l[0]", "l.a"], ["l[0]", "l.a"]),
        (["<root>"], ["<root>"]),
    ],
)
def test_paths_that_differ_in_one_step_become_one(paths, short):
    assert collapse(paths) == short


def test_a_whole_grid_becomes_one_pattern():
    grid = itertools.product(range(80), "qkvo")
    paths = [f"layers[{i}].attention.{name}.dot" for i, name in grid]
    assert collapse(paths) == ["layers[0..79].attention.{q,k,v,o}.dot"]
