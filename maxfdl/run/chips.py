"""Peak speed of the chips that model FLOP utilisation is measured against."""

import jax

# Dense bfloat16 FLOP/s of one chip, from the vendors' data sheets: Google's pages of
# each TPU version and NVIDIA's of each card (SXM parts).
_PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 1153.5e12,  # per device, of which a chip has two
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}


def peak_flops(device: jax.Device) -> float | None:
    """Returns the peak of `device`, or None if it is not known (a CPU's is not)."""
    matches = [name for name in _PEAK_FLOPS if device.device_kind.startswith(name)]
    return _PEAK_FLOPS[max(matches, key=len)] if matches else None
