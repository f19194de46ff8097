"""A network beside the model stays as it is, unless a mutation is told otherwise."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import fiddle as fdl
import pytest

from experiments import zoo_smoke
from maxfdl import graph
from maxfdl.errors import MutationError
from maxfdl.experiment import Experiment
from maxfdl.model import Model, Network
from tests import tiny
from tests.mutations.cases import CASES, OF_EXPERTS, apply

SCOPED = (
    "compute_dtype(dtype=bfloat16{})",
    "freeze(roles=('embedding',){})",
    "offload_activations(save=('query',){})",
    "param_dtype(dtype=bfloat16{})",
    "remat(policy=full{})",
    "scan_layers(unroll=2{})",
    "to_linen{}",
    "unroll_layers{}",
)
"""Calls of mutations that take `under`, with room for it."""


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A network with its own backend."""

    model: Callable[..., Network]
    backend: Callable[..., Model]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distillation(Experiment):
    """An experiment with a second network."""

    teacher: Teacher


@functools.cache
def distillation(of_experts: bool = False) -> Any:
    config: Any = tiny.experiment()
    if of_experts:
        config.model = zoo_smoke.experiment("mixtral").model
    other = graph.copy(config)
    fdl.update_callable(config, Distillation)
    config.teacher = fdl.Config(Teacher, model=other.model, backend=other.backend)
    return config


@pytest.mark.parametrize("name", [name for name in CASES if name != "to_nnx"])
def test_a_network_beside_the_model_stays_what_it_is(name):
    base = distillation(name in OF_EXPERTS)
    config = apply(base, CASES[name].call)
    assert config.teacher == base.teacher
    alone = tiny.experiment()
    alone.model = base.model
    assert apply(alone, CASES[name].call).model == config.model


def told(call: str, *under: str) -> str:
    """Returns the call with one more argument, if it is given."""
    if "(" in call:
        return call.format("".join(f", {each}" for each in under))
    return call.format("".join(f"({each})" for each in under))


@pytest.mark.parametrize("call", SCOPED)
def test_told_so_it_changes_that_network_alone(call):
    config = apply(distillation(), told(call, "under='teacher.model'"))
    expected = apply(tiny.experiment(), told(call))
    assert config.teacher.model == expected.model
    assert config.teacher.backend == expected.backend
    assert config.teacher != distillation().teacher
    config.teacher = distillation().teacher
    assert config == distillation()


def test_a_path_of_no_network_is_refused_with_those_that_there_are():
    problem = r"under \[teachers.model\] .* has model, teacher.model. Did you mean"
    with pytest.raises(MutationError, match=problem):
        apply(distillation(), "remat(under='teachers.model')")
