"""Learning rates by step."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from maxfdl.optim.schedules import (
    InverseSquareRoot,
    WarmupConstant,
    WarmupCosine,
    WarmupLinear,
    WarmupStableDecay,
)
from tests import goldens


def values(schedule, steps, upto):
    return [float(schedule(jnp.int32(step), steps)) for step in range(upto)]


SETTINGS = goldens.topic("schedules")["params"]
PEAK = dict(peak=SETTINGS["base_lr"], warmup_steps=SETTINGS["warmup"])
WSD = PEAK | dict(decay_steps=SETTINGS["wsd_decay"], final_fraction=0.1)
THEIRS = {
    "constant_with_warmup": WarmupConstant(**PEAK),
    "linear": WarmupLinear(**PEAK, final_fraction=0.0),
    "cosine": WarmupCosine(**PEAK, final_fraction=0.0),
    "cosine_min_lr_0.1": WarmupCosine(**PEAK, final_fraction=0.1),
    "inverse_sqrt": InverseSquareRoot(**PEAK),
    "wsd_linear": WarmupStableDecay(**WSD),
    "wsd_cosine": WarmupStableDecay(**WSD, shape="cosine"),
    "wsd_1-sqrt": WarmupStableDecay(**WSD, shape="one_minus_sqrt"),
}


@pytest.mark.parametrize("name", THEIRS)
def test_agrees_with_transformers(name):
    expected = goldens.topic("schedules")["scalars"][name]
    upto = SETTINGS["total"] + 1
    # Their WSD warms up from the lowest rate, ours from 0 as all others do.
    start = SETTINGS["warmup"] if name.startswith("wsd") else 0
    ours = values(THEIRS[name], SETTINGS["total"], upto)
    # Theirs is float64; ours is float32, and 1 + cos loses digits near the end.
    atol = SETTINGS["base_lr"] * 2e-7
    np.testing.assert_allclose(ours[start:], expected[start:upto], rtol=0, atol=atol)


def test_rises_in_a_line_to_the_peak_and_falls_to_its_fraction():
    schedule = WarmupCosine(peak=2.0, warmup_steps=4, final_fraction=0.25)
    rates = values(schedule, 12, 13)
    np.testing.assert_allclose(rates[:5], [0, 0.5, 1, 1.5, 2])
    assert rates[8] == pytest.approx((2 + 0.5) / 2)  # half way down
    assert rates[12] == pytest.approx(0.5)
    assert all(a > b for a, b in zip(rates[4:], rates[5:], strict=False))


def test_stays_where_it_ended():
    rates = values(WarmupCosine(peak=2.0, final_fraction=0.25), 5, 20)
    assert rates[5:] == [0.5] * 15


def test_without_warmup_the_first_step_has_the_peak():
    assert values(WarmupCosine(peak=3.0), 10, 1) == [3.0]


def test_a_run_shorter_than_its_warmup_is_finite():
    rates = values(WarmupCosine(peak=1.0, warmup_steps=10), 5, 15)
    assert np.all(np.isfinite(rates)) and rates[5] == 0.5


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        (
            dict(warmup_steps=-1, final_fraction=0.1),
            "Schedule warmup_steps (-1) must be at least 0.",
        ),
        (
            dict(warmup_steps=0, final_fraction=1.5),
            "Schedule final_fraction (1.5) must lie between 0 and 1.",
        ),
        (
            dict(warmup_steps=0, final_fraction=0.1, decay_steps=0),
            "Schedule decay_steps (0) must be at least 1.",
        ),
    ],
)
def test_refuses_what_makes_no_schedule(fields, problem):
    node = types.SimpleNamespace(**{"peak": 1.0, "decay_steps": None} | fields)
    assert list(WarmupCosine.check_config(node)) == [problem]


@pytest.mark.parametrize("made", [WarmupCosine, WarmupLinear])
def test_a_decay_of_so_many_steps_does_not_depend_on_the_length_of_the_run(made):
    """It is that of a run that ends with it; then the rate stays where it is."""
    fixed, following = made(**PEAK, decay_steps=9), made(**PEAK)
    end = PEAK["warmup_steps"] + 9
    expected = values(following, end, end + 5)
    assert all(values(fixed, steps, end + 5) == expected for steps in (3, end, 900))
    assert fixed.decay(3) == fixed.decay(900) == range(end) == following.decay(end)


@pytest.mark.parametrize("name", THEIRS)
def test_rates_before_the_decay_do_not_depend_on_the_length_of_the_run(name):
    schedule, short = THEIRS[name], SETTINGS["total"]
    decay = schedule.decay(short)
    same = decay.start if decay else short
    longer = values(schedule, 2 * short, same + 1)
    assert values(schedule, short, same) == longer[:same]
    assert decay.stop in (0, short)
