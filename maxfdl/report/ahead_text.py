"""The report of a compiled step as lines that a person reads."""

import math
import re
from collections.abc import Sequence

from maxfdl.report.ahead import Ahead, Exchange
from maxfdl.report.search import Trial
from maxfdl.report.text import devices_text
from maxfdl.run.progress import duration, quantity
from maxfdl.sharding.room import size_text

# Parts of a name stack that say nothing of what is computed.
_EVERYWHERE = re.compile(
    r"while|body|cond|branch_\d+_fun|closed_call|checkpoint|rematted_computation"
    r"|shard_map|(?:declared|expected)_flops_\d+"
)

_BOUNDS = {
    "compute": "matrix products",
    "hbm": "main memory",
    "ici": "the interconnect",
    "dcn": "the data-centre network",
}


def lines(report: Ahead) -> list[str]:
    """Returns the report; of a refusal, what is known."""
    return [label + ": " + value for label, value in _rows(report)] + _table(report)


def line(trial: Trial) -> str:
    """Returns what came of one trial of a search."""
    name = "+".join(trial.mutations) or "as it is"
    report = trial.report
    if trial.failure is not None:
        return f"{name}: failed: {trial.failure}"
    if report is None:
        return f"{name}: refused: {trial.refusal}"
    if not report.fits:
        return f"{name}: does not fit: {report.refusal or _fits(report)}"
    assert report.peak_bytes is not None
    text = f"{name}: peak {size_text(report.peak_bytes)}"
    if report.roofline is not None:
        bound = report.roofline
        text += (
            f", at least {_seconds(bound.seconds)} a step, bound by"
            f" {_BOUNDS[bound.bound_by]}"
        )
    return text


def side_by_side(reports: Sequence[Ahead]) -> list[str]:
    """Returns reports in columns, the ratio of the second to the first in the last."""
    rows = [dict(_rows(report)) for report in reports]
    labels = dict.fromkeys(label for row in rows for label in row)
    ratios = _ratios(*reports)
    table = [
        [label, *(row.get(label, "") for row in rows), ratios.get(label, "")]
        for label in labels
    ]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    out = [
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]
    for report in reports:
        out += ["", f"collectives of {report.name}", *_table(report)]
    return out


def _rows(report: Ahead) -> list[tuple[str, str]]:
    """Returns labels and values, the same labels of every step that fits."""
    axes = " x ".join(f"{name} {size}" for name, size in report.mesh.items())
    slices = f" in {report.num_slices} slices" if report.num_slices > 1 else ""
    rows = [
        ("step", report.name),
        ("devices", f"{devices_text(report.devices)} ({report.device_kind}){slices}"),
        ("mesh", axes),
        (
            "compiled in",
            f"{duration(report.compile_seconds)}"
            f" ({duration(report.compile_cpu_seconds)} of CPU)",
        ),
        ("fits", _fits(report)),
        ("arguments", size_text(report.argument_bytes or 0)),
    ]
    if report.refusal is not None:
        return rows
    assert report.flops is not None and report.peak_bytes is not None
    rows += [
        ("temporaries", size_text(report.temp_bytes or 0)),
        ("peak", size_text(report.peak_bytes)),
        ("FLOPs", _flops(report)),
        ("main memory", f"{_bytes(report.hbm_bytes)} moved (estimate)"),
        ("sent", _bytes(report.wire_bytes)),
    ]
    if report.roofline is not None and report.mfu is not None:
        bound = report.roofline
        rows += [
            ("least time", f"{_seconds(bound.seconds)} a step, {report.mfu:.1%} MFU"),
            ("bound by", _bound(report)),
        ]
    return rows


def _ratios(first: Ahead, second: Ahead) -> dict[str, str]:
    """Returns how many times the first report's figures the second's are."""
    figures = {
        "compiled in": lambda report: report.compile_cpu_seconds,
        "arguments": lambda report: report.argument_bytes,
        "temporaries": lambda report: report.temp_bytes,
        "peak": lambda report: report.peak_bytes,
        "FLOPs": lambda report: report.flops,
        "main memory": lambda report: report.hbm_bytes,
        "sent": lambda report: report.wire_bytes,
        "least time": lambda report: report.roofline and report.roofline.seconds,
    }
    both = {label: (of(first), of(second)) for label, of in figures.items()}
    return {label: f"x {b / a:.3f}" for label, (a, b) in both.items() if a and b}


def _fits(report: Ahead) -> str:
    if report.refusal is not None:
        return f"no: {report.refusal}"
    if report.memory_bytes is None:
        return "not known: the memory of this device is not"
    have = size_text(int(report.memory_bytes))
    return f"{'yes' if report.fits else 'no'}, a device has {have}"


def _flops(report: Ahead) -> str:
    assert report.flops is not None
    of_step = report.flops / report.written_flops
    of_model = report.flops / report.model_flops
    text = f"{quantity(report.flops)} ({of_step:.3f} of the step's formula"
    text += f" {quantity(report.written_flops)}, {of_model:.3f} of the model's"
    text += f" {quantity(report.model_flops)})"
    if report.routed_flops:
        routed = quantity(report.routed_flops)
        text += f"; {routed} of them in experts, if tokens spread evenly"
    if report.unknown_kernels:
        text += f"; not those of {', '.join(report.unknown_kernels)}"
    return text


def _bound(report: Ahead) -> str:
    assert report.roofline is not None
    times = {name: getattr(report.roofline, name) for name in _BOUNDS}
    others = ", ".join(f"{_BOUNDS[name]} {_seconds(t)}" for name, t in times.items())
    return f"{_BOUNDS[report.roofline.bound_by]} ({others})"


def _table(report: Ahead) -> list[str]:
    """Returns the collectives, a line each."""
    if not report.collectives:
        return [] if report.refusal else ["no collectives"]
    head = [
        "collective",
        "over",
        "group",
        "runs",
        "payload",
        "wire",
        "overlapped",
        "where",
        "largest from",
    ]
    rows = [head, *(_columns(each) for each in report.collectives)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["", *("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)]


def _columns(each: Exchange) -> list[str]:
    return [
        each.kind,
        " x ".join(each.axes) or "-",
        str(each.group_size),
        "?" if math.isnan(each.executions) else f"{each.executions:,.0f}",
        _bytes(each.payload_bytes),
        _bytes(each.wire_bytes),
        _overlap(each),
        f"{'in a loop' if each.in_loop else 'outside of loops'}, {each.network}",
        _origin(each.source),
    ]


def _origin(source: str) -> str:
    """Returns what says most of a name stack: the direction, and functions by name."""
    direction = ""
    if "rematted_computation" in source:
        direction = "recomputed "
    elif "transpose(" in source:
        direction = "backward "
    parts = re.sub(r"\b(?:transpose|jvp|vmap|jit)\(|\)", "", source).split("/")
    told = [part for part in parts[1:] if part and not _EVERYWHERE.fullmatch(part)]
    return direction + "/".join(told)


def _overlap(each: Exchange) -> str:
    """Returns which part of the bytes is sent while products run, and their FLOPs."""
    if not each.overlapped_wire_bytes:
        return "none"
    part = each.overlapped_wire_bytes / each.wire_bytes
    return f"{part:.0%} beside {quantity(each.beside_flops)} FLOPs"


def _bytes(number: float | None) -> str:
    """Returns a size; `?` where a loop of unknown length makes it no number."""
    if number is None or math.isnan(number):
        return "?"
    return size_text(int(number))


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"
