"""What `freeze` and `unfreeze` write into a graph, one after the other."""

import pytest

from maxfdl.errors import MutationError, UserError
from maxfdl.mutations import freeze, multi_token_prediction, to_linen, unfreeze
from tests import tiny


def frozen_of(config):
    return config.backend.frozen


def test_what_is_frozen_adds_up_in_any_order():
    first = freeze(freeze(tiny.experiment(), paths=("head",)), paths=("embedding",))
    other = freeze(freeze(tiny.experiment(), paths=("embedding",)), paths=("head",))
    assert first == other and frozen_of(first).paths == ("embedding", "head")


def test_unfreeze_takes_back_what_was_frozen():
    config = freeze(tiny.experiment(), roles=("embedding",))
    more = freeze(config, paths=("head",), dtype="bfloat16")
    assert frozen_of(unfreeze(more, paths=("head",))).roles == ("embedding",)
    assert unfreeze(more) == unfreeze(config) == tiny.experiment()
    assert unfreeze(config, roles=("embedding",)) == tiny.experiment()


def test_unfreeze_makes_an_exception_and_freeze_ends_it():
    config = freeze(tiny.experiment(), paths=("decoder",))
    but = unfreeze(config, paths=("**.mlp",))
    assert frozen_of(but).trained_paths == ("**.mlp",)
    assert freeze(but, paths=("**.mlp",)) != config  # both are named now
    assert (
        "trained_paths" not in frozen_of(freeze(but, paths=("**.mlp",))).__arguments__
    )


def test_it_names_a_module_that_another_mutation_adds_later():
    config = freeze(tiny.experiment(), paths=("later",))
    with pytest.raises(UserError, match=r"\[later\] must match a parameter"):
        tiny.program(config)
    tiny.program(multi_token_prediction(config))


def test_it_holds_in_both_families():
    config = freeze(tiny.experiment(), paths=("**.attention",))
    models = [tiny.program(c).trainer.model for c in (config, to_linen(config))]
    assert models[0].parameters() == models[1].parameters()


def test_freeze_of_nothing_is_refused():
    with pytest.raises(MutationError, match="freeze takes roles or paths"):
        freeze(tiny.experiment())
