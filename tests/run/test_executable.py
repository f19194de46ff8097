"""A compiled step in a file: it trains as the step that was compiled here."""

import dataclasses
import functools
import json

import jax
import pytest

from maxfdl import graph
from maxfdl.errors import UserError
from maxfdl.mutations import batch_ramp_up, mesh
from maxfdl.run import executable
from maxfdl.run.executable import Executable
from maxfdl.run.step_programs import StepPrograms
from maxfdl.train.program import CompiledStep
from tests import tiny

STEPS = 3


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Returns the program, the step that was compiled of it, and the file of that."""
    program = tiny.program(tiny.experiment())
    step = program.compile_step()
    file = tmp_path_factory.mktemp("step") / "x.step"
    executable.write(file, step, program, graph.dump_json(tiny.experiment()))
    return program, step, file


def losses(program, run):
    state, found = tiny.begin(program), []
    for i in range(STEPS):
        state, metrics = run(state, program.place(tiny.batch(i)))
        found.append(metrics["loss"].tobytes())
    return found


def test_it_trains_as_the_compiled_one_to_the_last_bit(made):
    program, step, file = made
    loaded = Executable.read(file).load(program)
    assert losses(program, loaded.run) == losses(program, step.run)


def test_a_run_takes_it_for_the_whole_batch_and_compiles_smaller_ones(
    made, monkeypatch
):
    program, _, file = made
    for owner, method in ((type(program), "compile_step"), (Executable, "load")):
        step = CompiledStep(method, trace_seconds=0.0, compile_seconds=0.0)
        monkeypatch.setattr(owner, method, lambda *args, step=step: step)
    ramp = functools.partial(batch_ramp_up, start=tiny.ROWS // 2, steps=2)
    experiment = graph.build(tiny.experiment(ramp))
    steps = StepPrograms(experiment, program.trainer, Executable.read(file))
    assert [steps.at(step).call for step in (1, 3)] == ["compile_step", "load"]
    steps.close()


def test_it_knows_the_graph_that_it_is_of(made):
    *_, file = made
    loaded = graph.load_json(Executable.read(file).graph_json)
    assert not graph.diff(loaded, tiny.experiment())


def test_other_devices_and_software_are_refused_line_by_line(made):
    program, _, file = made
    read = Executable.read(file)
    read.check(program.sharding.mesh)
    other = dataclasses.replace(read, made_for=read.made_for | {"JAX": "0.1"})
    eight = tiny.program(tiny.experiment(functools.partial(mesh, fsdp=8)), devices=8)
    with pytest.raises(UserError, match="compiled for something else") as refused:
        other.check(eight.sharding.mesh)
    assert f"  JAX: 0.1 in the file, {jax.__version__} here" in str(refused.value)
    assert "'fsdp': 1, 'tensor': 1} in the file, {" in str(refused.value)


def test_several_cpu_devices_are_refused_for_they_would_wait_for_ever(made):
    eight = tiny.program(tiny.experiment(functools.partial(mesh, fsdp=8)), devices=8)
    *_, file = made
    made_for = Executable.read(file).made_for | {
        "mesh": dict(eight.sharding.mesh.shape)
    }
    read = dataclasses.replace(Executable.read(file), made_for=made_for)
    with pytest.raises(UserError, match="8 CPU devices, which would wait"):
        read.check(eight.sharding.mesh)


def test_what_is_no_such_file_is_refused(made, tmp_path):
    *_, file = made
    with pytest.raises(UserError, match=r"no.step cannot be read \(No such file"):
        Executable.read(tmp_path / "no.step")
    other = tmp_path / "config.json"
    other.write_text(json.dumps({"format": 7}))
    with pytest.raises(UserError, match="is no compiled step of this version"):
        Executable.read(other)
    other.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match="is damaged"):
        Executable.read(other)
