"""Which device this is, and which software speaks to it."""

import importlib.metadata

import jax

from maxfdl.run.accelerator.check import Bench, Check, Outcome


def describe(bench: Bench) -> Outcome:
    """Names the first device and the versions of what runs on it."""
    device = jax.devices()[0]
    memory = (device.memory_stats() or {}).get("bytes_limit")
    figures = {
        "platform": jax.default_backend(),
        "device_kind": device.device_kind,
        "devices_here": jax.device_count(),
        "memory_bytes": memory,
        "backend": device.client.platform_version,
        "packages": _packages(),
    }
    size = "" if memory is None else f", {memory / 2**30:.0f} GiB for JAX"
    text = f"{device.device_kind}{size}, JAX {jax.__version__}"
    return Outcome("measured", text, figures)


def _packages() -> dict[str, str]:
    """Returns the versions of JAX, its plugins, cuDNN and tokamax."""
    installed = {d.name: d.version for d in importlib.metadata.distributions()}
    return {
        name: version
        for name, version in installed.items()
        if name in ("jax", "jaxlib", "tokamax", "libtpu")
        or name.startswith(("jax-cuda", "nvidia-cudnn"))
    }


CHECK = Check("device", describe, seconds=120)
