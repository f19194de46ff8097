"""The root of a graph: what it says of a run before it starts."""

import pytest

import maxfdl.launch
from experiments import zoo_smoke
from maxfdl import graph
from maxfdl.mutations import gradient_accumulation, router_losses
from maxfdl.run import loop
from tests.commands import Caller

PER_MICROBATCH = (
    "the loss term batch_balance is taken per microbatch: it is the mean over 4 of"
    " them, and not that of the whole batch."
)


@pytest.mark.parametrize(
    ("mutate", "notes"),
    [
        (lambda cfg: cfg, []),
        (lambda cfg: gradient_accumulation(cfg, steps=4), [PER_MICROBATCH]),
        (
            lambda cfg: gradient_accumulation(
                router_losses(cfg, sequence_balance=1e-2, z=1e-3), steps=4
            ),
            [],
        ),
    ],
)
def test_a_balance_of_the_whole_batch_is_noted_with_microbatches(mutate, notes):
    experiment = graph.build(mutate(zoo_smoke.experiment("mixtral")))
    assert list(experiment.notes()) == notes


def test_a_launch_prints_notes_on_standard_error(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop, "run", lambda *args: None)
    code, out, error = Caller(monkeypatch, capsys)(
        maxfdl.launch.main,
        "experiments.zoo_smoke(family=mixtral)",
        "gradient_accumulation(steps=4)",
    )
    assert (code, error) == (0, f"note: {PER_MICROBATCH}\n")
    assert PER_MICROBATCH not in out
