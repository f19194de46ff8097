"""What the chips can do that runs are planned for and measured against."""

import dataclasses

import jax

_GB, _TB = 1e9, 1e12


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device, as JAX counts them, by its data sheet.

    Args:
      peak_flops: Dense bfloat16 FLOP/s.
      hbm_bytes: Main memory.
      hbm_bandwidth: Bytes that it reads and writes a second.
      link_bandwidth: Bytes a second that one link to a neighbour carries in one
        direction. A dim of a torus has two links. Of a GPU, half of what NVLink sends.
      dcn_bandwidth: Bytes a second that it sends over the data-centre network.
    """

    peak_flops: float
    hbm_bytes: float
    hbm_bandwidth: float
    link_bandwidth: float
    dcn_bandwidth: float


# TPUs: Google's pages on each version (docs.cloud.google.com/tpu/docs/v5e, v5p, v6e,
# tpu7x). The interconnect of a chip is given there in both directions, over four links
# (v5e, v6e: 2D torus) or six (v4, v5p, v7x: 3D); the data-centre network of v5e and v6e
# per pod of 256. A v7x chip has two devices, which share all that. Of v4, the
# data-centre network is taken to be that of v5p.
# GPUs: NVIDIA's data sheet of each card (SXM parts), one 400 Gbit/s adapter a card.
_CHIPS = {
    "TPU v4": Chip(275e12, 32 * 2**30, 1.228 * _TB, 50 * _GB, 6.25 * _GB),
    "TPU v5 lite": Chip(197e12, 16 * 2**30, 0.819 * _TB, 50 * _GB, 3.125 * _GB),
    "TPU v5e": Chip(197e12, 16 * 2**30, 0.819 * _TB, 50 * _GB, 3.125 * _GB),
    "TPU v5p": Chip(459e12, 95 * 2**30, 2.765 * _TB, 100 * _GB, 6.25 * _GB),
    "TPU v5": Chip(459e12, 95 * 2**30, 2.765 * _TB, 100 * _GB, 6.25 * _GB),
    "TPU v6 lite": Chip(918e12, 32 * 2**30, 1.638 * _TB, 100 * _GB, 12.5 * _GB),
    "TPU v6e": Chip(918e12, 32 * 2**30, 1.638 * _TB, 100 * _GB, 12.5 * _GB),
    "TPU7x": Chip(1153.5e12, 96 * 2**30, 3.69 * _TB, 50 * _GB, 6.25 * _GB),
    "NVIDIA A100": Chip(312e12, 80 * _GB, 2.039 * _TB, 150 * _GB, 50 * _GB),
    "NVIDIA H100": Chip(989e12, 80 * _GB, 3.35 * _TB, 225 * _GB, 50 * _GB),
    "NVIDIA H200": Chip(989e12, 141 * _GB, 4.8 * _TB, 225 * _GB, 50 * _GB),
    "NVIDIA B200": Chip(2250e12, 180 * _GB, 8.0 * _TB, 450 * _GB, 50 * _GB),
}


def chip_of(device: jax.Device) -> Chip | None:
    """Returns what `device` can do, or None if it is not known (a CPU's is not)."""
    matches = [name for name in _CHIPS if device.device_kind.startswith(name)]
    return _CHIPS[max(matches, key=len)] if matches else None


def peak_flops(device: jax.Device) -> float | None:
    """Returns the dense bfloat16 FLOP/s of `device`, if known."""
    chip = chip_of(device)
    return chip and chip.peak_flops
