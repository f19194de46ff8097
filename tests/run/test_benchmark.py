"""Measuring a step, on eight devices."""

import dataclasses
import time

import jax
import numpy as np
import pytest

from maxfdl import graph
from maxfdl.report.facts import facts_of
from maxfdl.run import benchmark
from maxfdl.train.program import CompiledStep, Program

TOKENS = 8 * 64


@pytest.fixture(scope="module")
def experiment():
    return graph.build(graph.resolve("experiments.llama2_smoke+mesh(fsdp=8)"))


@pytest.fixture(scope="module")
def measured(experiment):
    """Figures of chips that do 1 TFLOP/s, and the two executables: real and light."""
    compiled: list[CompiledStep] = []
    compile_in_place = Program.compile_in_place

    def spy(program, step):
        compiled.append(compile_in_place(program, step))
        return compiled[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Program, "compile_in_place", spy)
        patch.setattr(benchmark, "peak_flops", lambda device: 1e12)
        figures = benchmark.measure(experiment, steps=3, warmup=1)
    return figures, [each.run for each in compiled]


@pytest.fixture(scope="module")
def figures(measured):
    return measured[0]


@pytest.mark.slow
def test_speed_follows_from_the_median_step(experiment, figures):
    median = figures.step_seconds.median
    assert figures.tokens_per_second == pytest.approx(TOKENS / median)
    flops = facts_of(experiment, 8).flops_per_step
    assert figures.model_tflops_per_second == pytest.approx(flops / median / 1e12)


def test_the_spread_of_steps_is_around_the_median(figures):
    spread = figures.step_seconds
    assert 0 < spread.p10 <= spread.median <= spread.p90


def test_mfu_is_over_all_chips(figures):
    assert figures.mfu == pytest.approx(figures.model_tflops_per_second / 8)


def test_memory_is_planned_by_the_compiler_where_no_device_counts(experiment, figures):
    state = facts_of(experiment, 8).state_bytes_per_device
    assert figures.peak_bytes_from == "compiler"
    assert figures.peak_bytes > sum(state.values())


def test_dispatch_is_measured_on_what_the_step_takes_and_gives(figures, measured):
    real, light = measured[1]
    assert figures.dispatch_microseconds > 0
    assert light.in_tree == real.in_tree and light.out_tree == real.out_tree
    assert light.input_shardings == real.input_shardings
    aliased = [each.memory_analysis().alias_size_in_bytes for each in (real, light)]
    assert aliased[0] == aliased[1] > 0
    assert light.cost_analysis()["flops"] < 1000 < real.cost_analysis()["flops"]


def test_steps_are_timed_from_end_to_end():
    @dataclasses.dataclass
    class Slow:
        calls: int = 0

        def run(self, state, batch):
            self.calls += 1
            time.sleep(0.01)
            return state, jax.numpy.zeros(())

    step = Slow()
    _, wall, cpu = benchmark._time_steps(step, {}, {}, 4)
    assert step.calls == 5 and wall.shape == cpu.shape == (4,)
    assert np.median(wall) >= 0.009


def test_the_age_of_the_process_grows_with_the_clock():
    first = benchmark.seconds_since_process_start()
    time.sleep(0.05)
    grown = benchmark.seconds_since_process_start() - first
    assert first > 0 and grown == pytest.approx(0.05, abs=0.5)
