"""The least time of a step."""

import pytest

from maxfdl.report.roofline import Roofline, Sent, roofline
from maxfdl.run.chips import Chip

CHIP = Chip(
    peak_flops=100.0,
    hbm_bytes=0.0,
    hbm_bandwidth=10.0,
    link_bandwidth=2.0,
    dcn_bandwidth=1.0,
)


def test_each_time_is_work_over_speed():
    sent = [Sent(8.0, dims=1), Sent(8.0, dims=2), Sent(0.5, dims=0)]
    found = roofline(CHIP, flops=50.0, traffic=20.0, sent=sent)
    assert found == Roofline(compute=0.5, hbm=2.0, ici=8 / 4 + 8 / 8, dcn=0.5)


@pytest.mark.parametrize("name", ["compute", "hbm", "ici", "dcn"])
def test_the_longest_bounds_the_step(name):
    times = dict.fromkeys(("compute", "hbm", "ici", "dcn"), 1.0) | {name: 3.0}
    assert (Roofline(**times).seconds, Roofline(**times).bound_by) == (3.0, name)
