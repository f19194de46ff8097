"""Tests of tracing some steps of a run."""

import jax
import pytest

from maxfdl.errors import UserError
from maxfdl.run.profile import Profile


@pytest.fixture
def traced(monkeypatch):
    """Notes what the profiler is told."""
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda _: calls.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    return calls


def run(profile: Profile, steps: range, calls: list) -> None:
    for step in steps:
        profile.before(step, None)
        calls.append(step)
        profile.after(step, None)
    profile.end(None)


@pytest.mark.parametrize(
    "steps, expected",
    [
        (range(1, 5), [1, "start", 2, 3, "stop", 4]),
        (range(3, 5), ["start", 3, "stop", 4]),  # continued inside the range
        (range(4, 6), [4, 5]),  # continued after it
        (range(1, 3), [1, "start", 2, "stop"]),  # stopped inside it
    ],
)
def test_the_steps_asked_for_are_traced_as_far_as_they_run(
    traced, tmp_path, steps, expected
):
    run(Profile.parse("2:3", tmp_path), steps, traced)
    assert traced == expected


def test_one_number_is_one_step(tmp_path):
    profile = Profile.parse("7", tmp_path)
    assert (profile.first, profile.last) == (7, 7)


@pytest.mark.parametrize("text", ["", "a", "3:x", "-1:2", "3:2", "0:2"])
def test_other_texts_are_refused(tmp_path, text):
    with pytest.raises(UserError, match=f"--profile_steps={text} must"):
        Profile.parse(text, tmp_path)
