"""Groups of devices, in each of the ways that XLA writes them."""

import pytest

from maxfdl.report.hlo import axes_of, crosses
from maxfdl.report.hlo.groups import groups_of
from maxfdl.report.hlo.text import Instruction

MESH = {"data": 2, "fsdp": 2, "tensor": 2}


@pytest.mark.parametrize(
    ("written", "first", "axes"),
    [
        ("replica_groups={{0,4},{1,5},{2,6},{3,7}}", (0, 4), ("data",)),
        ("replica_groups=[4,2]<=[8]", (0, 1), ("tensor",)),
        ("replica_groups=[2,4]<=[2,2,2]T(1,0,2)", (0, 1, 4, 5), ("data", "tensor")),
        ("replica_groups=mesh['a'=4,'b'=2] {'a':(2)2}", (0, 2), ("fsdp",)),
        ("source_target_pairs={{0,2},{2,0},{4,6}}", (0, 2), ("fsdp",)),
        ("replica_groups={}", (0, 1, 2, 3, 4, 5, 6, 7), ("data", "fsdp", "tensor")),
    ],
)
def test_a_group_is_named_by_the_axes_that_it_spans(written, first, axes):
    instruction = Instruction("x", "f32[]", "all-reduce", "%y", f", {written}, more")
    groups = groups_of(instruction, num_devices=8)
    assert groups[0] == first
    assert axes_of(groups, MESH) == axes


def test_a_group_crosses_slices_that_it_has_devices_in():
    slices = [0, 0, 0, 0, 1, 1, 1, 1]
    assert crosses(((0, 4), (1, 5)), slices)
    assert not crosses(((0, 1, 2, 3), (4, 5, 6, 7)), slices)
