"""What a step does after the optimizer, in which order, and to which part of a tree."""

import dataclasses

import jax.numpy as jnp
import pytest

from maxfdl.train.nested import part_at, with_part
from maxfdl.train.qk_clip import QkClip
from maxfdl.train.router import SelectionBias
from maxfdl.train.updates import Step, Update, updated
from maxfdl.train.weight_average import WeightAverage

STEP = Step({}, {}, jnp.array(True))


@dataclasses.dataclass(frozen=True)
class Note(Update):
    """Appends its rank to a list in the variables."""

    rank: int
    name: str

    def __call__(self, variables, memory, step):
        return {"ran": [*variables["ran"], self.rank]}, memory + 1


@pytest.mark.parametrize("ranks", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_updates_run_by_rank_wherever_they_are_listed(ranks):
    updates = [Note(rank=rank, name=f"note {rank}") for rank in ranks]
    memories = {update.name: update.rank for update in updates}
    variables, memories = updated(updates, {"ran": []}, memories, STEP)
    assert variables["ran"] == [0, 1, 2]
    assert memories == {f"note {rank}": rank + 1 for rank in ranks}


def test_averages_see_weights_that_were_clipped_before():
    assert SelectionBias.rank < QkClip.rank < WeightAverage.rank


def test_a_part_of_a_tree_is_found_and_replaced():
    tree = {"a": {"b": {"c": 1}, "d": 2}, "e": 3}
    assert part_at(tree, ("a", "b")) == {"c": 1} and part_at(tree, ()) is tree
    assert part_at(tree, ("a", "x", "c")) is None is part_at(tree, ("e", "f"))
    assert with_part(tree, ("a", "b", "c"), 7) == {
        "a": {"b": {"c": 7}, "d": 2},
        "e": 3,
    }
    assert tree["a"]["b"] == {"c": 1}
