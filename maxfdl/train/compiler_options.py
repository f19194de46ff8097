"""Options of XLA that make the step faster on some devices.

`python -m maxfdl.bench --accelerator` measures candidates. An entry of the table names
who measured it. `maxfdl aot` shows which collectives run beside products.
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
    # Gathers of FSDP run beside products. On v5e 71 % of their bytes do by default,
    # llama2 7B on 4x4. On v5p none do, and with these 66 % on 2x2x2 and 78 % on 4x4x4
    # (llama3 8B): by the schedule that `maxfdl aot` reports, no time was measured. The
    # options that do the same for reduce-scatters are left out, for with them libtpu
    # 0.0.42 fails to compile some programs (BUILD_NOTES.md, 2026-11-27).
    (
        "TPU",
        2,
        {
            "xla_enable_async_all_gather": True,
            "xla_tpu_enable_async_collective_fusion_fuse_all_gather": True,
        },
    ),
)


def compiler_options(mesh: Mesh) -> dict[str, Any]:
    """Returns the options for a step on `mesh`.

    Options that the user sets in XLA_FLAGS, or for TPUs in LIBTPU_INIT_ARGS, are left
    out, so the user's values hold.
    """
    flags = f"{xla_flags()} {os.environ.get('LIBTPU_INIT_ARGS', '')}".split()
    named = {flag.lstrip("-").partition("=")[0] for flag in flags}
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
