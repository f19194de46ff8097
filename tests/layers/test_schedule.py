"""Every unit of a pipeline runs once and in time, and the bubble is the formula's."""

import itertools

import numpy as np

from maxfdl.layers.schedule import Schedule


def schedules():
    for stages, microbatches, repeats in itertools.product(
        (1, 2, 3, 4), (1, 2, 4, 6), (1, 2, 3)
    ):
        if repeats == 1 or not microbatches % stages:
            yield Schedule(stages, microbatches, repeats)


def test_every_unit_runs_once_and_follows_what_it_needs_by_one_iteration():
    for schedule in schedules():
        number = np.arange(schedule.units)
        repeat, microbatch = schedule.unit(number)
        units = list(zip(repeat.tolist(), microbatch.tolist(), strict=True))
        assert len(set(units)) == schedule.microbatches * schedule.repeats
        for unit, at in zip(units, range(schedule.units), strict=True):
            repeat, microbatch = unit
            if repeat:  # leaves the last stage one iteration before the first runs it
                before = units.index((repeat - 1, microbatch))
                assert before + schedule.stages == at


def test_a_stage_has_nothing_to_do_in_as_many_iterations_as_the_formula_says():
    for schedule in schedules():
        times = np.arange(schedule.iterations)
        for stage in range(schedule.stages):
            idle = np.sum(~schedule.is_due(times - stage))
            assert idle == schedule.stages - 1
            assert schedule.bubble == idle / schedule.iterations
    assert Schedule(4, 8, 1).bubble == 3 / 11
    assert Schedule(4, 8, 2).bubble == 3 / 19
