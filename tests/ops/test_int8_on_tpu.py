"""Products in int8 compiled for a TPU v5e that need not be there."""

import re

import pytest
from jax.experimental import topologies

from maxfdl.ops.int8 import Int8
from maxfdl.ops.quantized_dot import QuantizedDot, QuantizedGroupedDot
from maxfdl.report import hlo
from tests.ops.test_fp8_on_tpu import GROUPS, INPUTS, OUTPUTS, compiled

pytest.importorskip("libtpu")
pytestmark = pytest.mark.slow


@pytest.fixture
def chip(monkeypatch):
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    # Else a second process of pytest-xdist finds the library taken.
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
    return topology.devices[0]


def test_units_are_given_int8_and_add_up_in_int32(chip):
    dims = (INPUTS, OUTPUTS), ("embed", "mlp"), chip
    text = compiled(QuantizedDot(Int8(backward=True)), *dims)
    assert hlo.factors(text) == [("s8", "s8")] * 3
    assert len(re.findall(r"= s32\[.* convolution\(", text)) == 3
    # Forward alone, gradients are in the type of activations.
    first, *others = hlo.factors(compiled(QuantizedDot(Int8()), *dims))
    assert first == ("s8", "s8") and len(others) == 2
    assert all("bf16" in factors for factors in others)


def test_units_are_given_int8_rows_of_groups(chip):
    dims = (GROUPS, INPUTS, OUTPUTS), ("experts", "embed", "expert_mlp"), chip
    dot = QuantizedGroupedDot(Int8(backward=True), "ragged")
    assert hlo.factors(compiled(dot, *dims, "sizes")) == [("s8", "s8")] * 3
