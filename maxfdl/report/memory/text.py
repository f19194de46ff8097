"""The estimate of a step's memory as lines that a person reads."""

from collections.abc import Mapping

from maxfdl.report.memory.estimate import Estimate, Held
from maxfdl.report.text import aligned, devices_text
from maxfdl.sharding.room import size_text

_OF_CPUS = (
    "Ops are those of CPUs, whose attention holds all scores; give --topology=v5e:4x4,"
    " or the like, for TPUs."
)


def lines(found: Estimate) -> list[str]:
    """Returns the table of what a device holds, and the largest arrays at the peak."""
    axes = " x ".join(f"{name} {size}" for name, size in found.mesh.items())
    chip = found.device_kind or found.platform
    rows = [
        *_sum("arguments", found.argument_bytes, found.arguments),
        *_sum("at the peak, beside them", found.temp_bytes, found.temporaries),
        ["peak", size_text(found.peak_bytes)],
    ]
    if found.host_bytes:
        rows.append(["in the memory of the host", size_text(found.host_bytes)])
    return [
        found.name,
        "",
        f"memory of each of {devices_text(found.devices)} ({chip}), mesh {axes};"
        " estimated from shapes",
        "",
        *aligned(rows),
        f"fits: {_fits(found)}",
        *([_OF_CPUS] if found.platform == "cpu" else []),
        "",
        "largest arrays at the peak",
        *aligned([_row(held) for held in found.largest]),
    ]


def _sum(label: str, total: int, parts: Mapping[str, int]) -> list[list[str]]:
    """Returns a row for the sum, and one for each part but the tiny ones."""
    shown = {name: size for name, size in parts.items() if 1000 * size >= total}
    return [
        [label, size_text(total)],
        *([f"  {name}", size_text(size)] for name, size in shown.items()),
    ]


def _fits(found: Estimate) -> str:
    if found.memory_bytes is None:
        return "not known: the memory of this device is not"
    have = size_text(int(found.memory_bytes))
    return f"{'yes' if found.fits else 'no'}, a device has {have}"


def _row(held: Held) -> list[str]:
    count = f"{held.count} x " if held.count > 1 else ""
    return [
        f"  {size_text(held.bytes)}",
        f"{count}{list(held.shape)}",
        held.dtype,
        held.kind,
        held.source,
    ]
