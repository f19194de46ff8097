"""The table of chips."""

import types

import pytest

from maxfdl.run.chips import chip_of, peak_flops


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),  # v5p calls itself so
        ("TPU v6 lite", 918e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("cpu", None),
    ],
)
def test_the_longest_name_that_a_device_begins_with_is_its_own(kind, peak):
    assert peak_flops(types.SimpleNamespace(device_kind=kind)) == peak


def test_links_and_memory_are_those_of_the_data_sheet():
    chip = chip_of(types.SimpleNamespace(device_kind="TPU v5"))
    assert chip is not None
    # 1200 GB/s in both directions, over six links.
    assert 6 * 2 * chip.link_bandwidth == 1200e9
    assert chip.hbm_bytes == 95 * 2**30
