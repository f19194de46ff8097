"""The search, with figures that are made up: nothing is compiled."""

import dataclasses
import functools
import types

import jax
import pytest

from maxfdl import graph
from maxfdl.errors import UserError
from maxfdl.graph.expression import parse_call
from maxfdl.graph.resolve import mutate
from maxfdl.report import ahead_text, search
from maxfdl.report.ahead import Ahead
from maxfdl.report.roofline import Roofline
from tests import tiny


def make(mutations, base=()):
    config = tiny.experiment()
    for text in (*base, *mutations):
        config = mutate(config, parse_call(text), ())
    return config


@pytest.fixture
def costs(monkeypatch):
    """Makes up the report of a program: what does not recompute has no room, the axis
    tensor is fast, and tiles are slow."""

    def program_of(experiment, devices):
        sharding = experiment.make_sharding(devices)
        return types.SimpleNamespace(sharding=sharding, experiment=experiment)

    def compile_ahead(name, program):
        experiment = program.experiment
        remat = experiment.model.keywords["decoder"].keywords["stacks"][0]
        sizes = experiment.mesh.sizes(8)
        tiles = getattr(experiment.loss.cross_entropy, "num_tiles", 1)
        has_room = remat.keywords.get("remat", "none") != "none"
        seconds = 8.0 / sizes["tensor"] + (tiles > 1)
        report = Ahead(name, "cpu", sizes, 1, 0.0, 0.0, 1.0, 1.0)
        return dataclasses.replace(
            report,
            refusal=None if has_room else "Ran out of memory",
            peak_bytes=5 if has_room else 20,
            roofline=Roofline(seconds, 0.0, 0.0, 0.0),
        ), None

    def estimate_on(name, program, device):
        batch = program.experiment.batch_size
        return types.SimpleNamespace(peak_bytes=batch, memory_bytes=10)

    monkeypatch.setattr(search, "program_of", program_of)
    monkeypatch.setattr(search, "compile_ahead", compile_ahead)
    monkeypatch.setattr(search, "estimate_on", estimate_on)


def tried(budget=50, base=()):
    make_it = functools.partial(make, base=base)
    return [*search.trials(make_it, jax.devices(), budget)]


def test_it_goes_on_from_the_best_and_names_it(costs):
    best = search.best(tried())
    assert best is not None and best.report.roofline.seconds == 1.0
    assert best.mutations[:2] == ("remat(policy=full)", "mesh(fsdp=1,tensor=8)")


def test_it_compiles_no_graph_twice_and_no_more_than_the_budget(costs):
    found = tried()
    texts = [graph.as_text(make(t.mutations)) for t in found if t.report]
    assert len(set(texts)) == len(texts)
    # The graph itself has all devices along fsdp, as `mesh(fsdp=8)` says in full.
    full = functools.partial(make, base=("remat(policy=full)",))
    found = [*search.trials(full, jax.devices(), 50)]
    assert [t for t in found if t.mutations == ("mesh(fsdp=8)",)] == []
    assert found[0].mutations == ()


def test_what_is_a_default_need_not_be_written(costs):
    plain = [t.mutations for t in tried(base=("mesh(fsdp=8)",)) if t.report is not None]
    assert ("remat(policy=none)",) not in plain


def test_of_equal_times_the_least_memory_is_the_best():
    def trial(seconds, peak):
        report = Ahead("x", "cpu", {"fsdp": 8}, 1, 0.0, 0.0, 1.0, 1.0)
        times = Roofline(seconds, 0.0, 0.0, 0.0)
        report = dataclasses.replace(report, roofline=times, peak_bytes=peak)
        return search.Trial((), report)

    found = [trial(1.0, 6), trial(1.0 - 1e-9, 7), trial(1.0, 5), trial(1.01, 1)]
    assert search.best(found) is found[2]


def test_half_of_the_budget_is_kept_for_what_comes_after_the_mesh(costs):
    found = [trial for trial in tried(budget=8) if trial.report is not None]
    assert len(found) == 8
    meshes = {text for t in found for text in t.mutations if text.startswith("mesh")}
    assert meshes == {"mesh(fsdp=8)", "mesh(fsdp=4,tensor=2)", "mesh(fsdp=4,data=2)"}
    assert "vocab_tiling(num_tiles=8)" in found[-1].mutations


def test_a_graph_that_cannot_run_so_is_told_and_costs_nothing(costs, monkeypatch):
    fits = search.program_of

    def program_of(experiment, devices):
        if experiment.mesh.tensor == 8:
            raise UserError("kernel: dim 'heads' of size 4 cannot be cut into 8.")
        return fits(experiment, devices)

    monkeypatch.setattr(search, "program_of", program_of)
    found = tried()
    refused = {trial.mutations[1]: trial for trial in found if trial.report is None}
    assert "cannot be cut into 8" in refused["mesh(fsdp=1,tensor=8)"].refusal
    assert "pipeline stages (8)" in refused["mesh(fsdp=1,stage=8)"].refusal
    best = search.best(found)
    assert best is not None and best.mutations[1] == "mesh(fsdp=2,tensor=4)"
    # A budget that is exactly that of the others is enough.
    compiled = len(found) - len(refused)
    assert len([t for t in tried(budget=2 * compiled) if t.report]) == compiled


def test_a_graph_that_is_far_too_large_is_told_and_costs_nothing(costs, monkeypatch):
    def estimate_on(name, program, device):
        is_cut = program.experiment.mesh.sizes(8)["tensor"] > 1
        return types.SimpleNamespace(peak_bytes=1 if is_cut else 16, memory_bytes=10)

    monkeypatch.setattr(search, "estimate_on", estimate_on)
    found = tried(budget=6)
    assert len([trial for trial in found if trial.report is not None]) == 6
    refused = [trial for trial in found if trial.report is None]
    assert "about 16 B on a device, which has 10 B" in refused[0].refusal
    assert not any("tensor" in "+".join(trial.mutations) for trial in refused[:2])


def test_nothing_is_best_where_nothing_fits(costs):
    only = [trial for trial in tried(budget=1)]
    assert search.best(only) is None


def test_one_that_fails_to_compile_does_not_end_the_search(costs, monkeypatch):
    compiles = search.compile_ahead

    def compile_ahead(name, program):
        if program.experiment.mesh.tensor == 8:
            raise jax.errors.JaxRuntimeError("INTERNAL: no such layout\nat line 3")
        return compiles(name, program)

    monkeypatch.setattr(search, "compile_ahead", compile_ahead)
    found = tried()
    (failed,) = (trial for trial in found if trial.failure)
    told = "mesh(fsdp=1,tensor=8): failed: JaxRuntimeError: INTERNAL: no such layout"
    assert ahead_text.line(failed).endswith(told)
    best = search.best(found)
    assert best is not None and best.mutations[1] == "mesh(fsdp=2,tensor=4)"
