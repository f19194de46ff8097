"""Options of XLA that make the step faster on some devices.

`python -m maxfdl.bench --accelerator` measures candidates. An entry of the table names
who measured it.
"""

import os
import pathlib
from typing import Any

from jax.sharding import Mesh

# (beginning of the device's kind, devices of the mesh at least, options)
_TABLE: tuple[tuple[str, int, dict[str, Any]], ...] = (
    # Runs collectives beside products. NVIDIA's images of JAX set it for everyone
    # (https://docs.nvidia.com/jax-toolbox/environment-variables), and it is a part of
    # XLA's level O1 (https://openxla.org/xla/gpu_optimization_levels).
    ("NVIDIA", 2, {"xla_gpu_enable_latency_hiding_scheduler": True}),
)


def compiler_options(mesh: Mesh) -> dict[str, Any]:
    """Returns the options for a step on `mesh`.

    Options that the user sets in XLA_FLAGS are left out, so the user's values hold.
    """
    named = {flag.lstrip("-").partition("=")[0] for flag in xla_flags().split()}
    kind = mesh.devices.flat[0].device_kind
    return {
        name: value
        for beginning, devices, options in _TABLE
        if kind.startswith(beginning) and mesh.size >= devices
        for name, value in options.items()
        if name not in named
    }


def xla_flags() -> str:
    """Returns the user's flags: XLA_FLAGS holds them, or names a file that does."""
    text = os.environ.get("XLA_FLAGS", "").strip()
    if not text or text.startswith("-"):
        return text
    return pathlib.Path(text).read_text("utf-8").strip()
