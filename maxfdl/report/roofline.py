"""The time that a step takes at least, by what its devices compute, move and send."""

import dataclasses
from collections.abc import Iterable

from maxfdl.run.chips import Chip


@dataclasses.dataclass(frozen=True)
class Sent:
    """Bytes that a device sends over one network.

    Args:
      wire: The bytes.
      dims: Dims of the torus that their groups span, each of which has two links; 0 is
        the data-centre network.
    """

    wire: float
    dims: int


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds a step for each thing that a device does, at data-sheet speed.

    A step takes as long as the longest of them if all overlap perfectly: a bound, not
    an estimate.

    Args:
      compute: FLOPs of matrix products.
      hbm: Bytes to and from main memory.
      ici: Bytes to neighbours, each over the links of the dims that it spans.
      dcn: Bytes over the data-centre network.
    """

    compute: float
    hbm: float
    ici: float
    dcn: float

    @property
    def seconds(self) -> float:
        return max(dataclasses.astuple(self))

    @property
    def bound_by(self) -> str:
        """What takes longest: `compute`, `hbm`, `ici` or `dcn`."""
        times = dataclasses.asdict(self)
        return max(times, key=lambda name: times[name])


def roofline(
    chip: Chip, flops: float, traffic: float, sent: Iterable[Sent]
) -> Roofline:
    """Returns the times of a device that does so much in a step."""
    ici = dcn = 0.0
    for each in sent:
        if each.dims:
            ici += each.wire / (2 * each.dims * chip.link_bandwidth)
        else:
            dcn += each.wire / chip.dcn_bandwidth
    return Roofline(
        compute=flops / chip.peak_flops,
        hbm=traffic / chip.hbm_bandwidth,
        ici=ici,
        dcn=dcn,
    )
