"""Ops choose their implementation for the devices that a program is compiled for."""

import pytest

from maxfdl.ops.attention import DotProductAttention
from maxfdl.ops.grouped_dot import GroupedDot
from maxfdl.ops.target import target_platform, tracing_for


def chosen():
    return DotProductAttention().resolve(), GroupedDot().resolve()


def test_a_program_for_tpus_has_their_kernels_wherever_it_is_traced():
    assert (target_platform(), chosen()) == ("cpu", ("xla", "blocks"))
    with tracing_for("tpu"):
        assert (target_platform(), chosen()) == ("tpu", ("tokamax", "ragged"))
    assert target_platform() == "cpu"


def test_an_error_while_tracing_leaves_nothing_behind():
    with pytest.raises(ZeroDivisionError), tracing_for("tpu"):
        raise ZeroDivisionError
    assert target_platform() == "cpu"
