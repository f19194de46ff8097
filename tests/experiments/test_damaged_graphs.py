"""Damaged graphs and hostile values are refused in a sentence, or are graphs still."""

import copy
import functools
import json
import random

import pytest

from experiments import zoo_smoke
from maxfdl import graph
from maxfdl.errors import UserError

LEAVES = ("x", "", 3, -1, 0, 1e308, 10**30, True, None, [], [1], {}, {"a": 1})
TEXTS = ("0", "-1", "7", "1000000000000", "-0.5", "1e300", "nan", "x", "None", "[1]")
FAMILIES = ("deepseek_v3", "qwen3_next", "gpt2", "llama4")


@functools.cache
def config(family: str):
    return zoo_smoke.experiment(family)


def places(value, at=()):
    """Yields the path of everything in a JSON document."""
    yield at
    items = enumerate(value) if isinstance(value, list) else ()
    for key, item in value.items() if isinstance(value, dict) else items:
        yield from places(item, (*at, key))


def damaged(document, rng: random.Random):
    """A copy in which one place is another value, is missing, or is another place's."""
    out = copy.deepcopy(document)
    *above, last = rng.choice([place for place in places(document) if place])
    owner = functools.reduce(lambda value, key: value[key], above, out)
    other = functools.reduce(
        lambda value, key: value[key], rng.choice([*places(document)]), document
    )
    match rng.randrange(3):
        case 0:
            del owner[last]
        case 1:
            owner[last] = copy.deepcopy(rng.choice(LEAVES))
        case 2:
            owner[last] = copy.deepcopy(other)
    return out


def is_refused(make, *args) -> bool:
    try:
        graph.validate(make(*args))
    except UserError:
        return True
    return False


@pytest.mark.parametrize("seed", range(3))
def test_a_damaged_file_is_refused_or_is_a_graph(seed):
    rng = random.Random(seed)
    document = json.loads(graph.dump_json(config(FAMILIES[seed])))
    texts = [json.dumps(damaged(document, rng)) for _ in range(40)]
    assert sum(is_refused(graph.load_json, text) for text in texts) > 20


@pytest.mark.parametrize("family", FAMILIES)
def test_any_value_at_any_path_is_refused_or_fits(family):
    rng = random.Random(family)
    cfg = config(family)
    paths = rng.choices(graph.settable_paths(cfg), k=60)
    assert any(is_refused(graph.set_value, cfg, p, rng.choice(TEXTS)) for p in paths)
