"""What mutations of rates keep, remove and refuse."""

import pytest

from maxfdl import graph
from maxfdl.errors import MutationError
from tests.experiments.catalogue import experiment
from tests.mutations.cases import apply

CFG = experiment("experiments.llama2_smoke")


@pytest.mark.parametrize("kind", ["constant", "linear", "inverse_square_root"])
def test_another_schedule_keeps_peak_and_warmup(kind):
    schedule = apply(CFG, f"use_schedule(kind={kind})").optimizer.schedule
    old = CFG.optimizer.schedule
    assert (schedule.peak, schedule.warmup_steps) == (old.peak, old.warmup_steps)


def test_a_schedule_refuses_a_field_that_it_has_not():
    with pytest.raises(MutationError, match="no field 'final_fraction'. It has peak"):
        apply(CFG, "use_schedule(kind=constant, final_fraction=0.0)")


def test_a_decay_of_nothing_is_none():
    assert apply(CFG, "weight_decay(rate=0.0)").optimizer.weight_decay is None


def test_equal_rates_for_all_leave_no_node():
    out = apply(CFG, "learning_rate_by_role(kernel=2.0)", "learning_rate_by_role")
    assert graph.as_text(out) == graph.as_text(CFG)


@pytest.mark.parametrize("rule", ["use_adamw", "use_muon", "use_adafactor"])
def test_another_rule_ends_the_average_of_weights(rule):
    out = apply(CFG, "use_schedule_free", rule)
    assert graph.as_text(out) == graph.as_text(apply(CFG, rule))
