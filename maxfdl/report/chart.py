"""Curves as a picture: one SVG file, which browsers show."""

import html
import math
from collections.abc import Callable, Sequence

from maxfdl.report.curves import Curve
from maxfdl.run.progress import quantity

_WIDTH, _HEIGHT = 760, 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 190, 30, 50
# Okabe and Ito's colours, which colour-blind readers tell apart.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000")


def chart(
    curves: Sequence[Curve], x_label: str, y_label: str, *, log_x: bool = False
) -> str:
    """Returns the picture of at least one point, as SVG.

    On a logarithmic x axis, points at 0 are left out.
    """
    if log_x:
        curves = [Curve(c.label, [p for p in c.points if p[0] > 0]) for c in curves]
    xs, ys = zip(*(point for curve in curves for point in curve.points), strict=True)
    bend = math.log10 if log_x else float
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    to_x = _scale(bend(min(xs)), bend(max(xs)), _LEFT, right)
    to_y = _scale(min(ys), max(ys), bottom, _TOP)
    ticks_x = _decades(min(xs), max(xs)) if log_x else _ticks(min(xs), max(xs))
    parts = [
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<path d="M{_LEFT} {_TOP}V{bottom}H{right}" fill="none" stroke="black"/>',
        _text((_LEFT + right) / 2, _HEIGHT - 12, x_label),
        _text(_LEFT, 18, y_label),
    ]
    for tick in ticks_x:
        parts.append(_line(to_x(bend(tick)), _TOP, to_x(bend(tick)), bottom))
        parts.append(_text(to_x(bend(tick)), bottom + 18, quantity(tick)))
    for tick in _ticks(min(ys), max(ys)):
        parts.append(_line(_LEFT, to_y(tick), right, to_y(tick)))
        parts.append(_text(_LEFT - 6, to_y(tick) + 4, quantity(tick), "end"))
    for number, curve in enumerate(curves):
        colour = _COLOURS[number % len(_COLOURS)]
        dots = [f"{to_x(bend(x)):.1f},{to_y(y):.1f}" for x, y in curve.points]
        parts.append(
            f'<polyline points="{" ".join(dots)}" fill="none" stroke="{colour}"'
            ' stroke-width="1.8"/>'
        )
        at = _TOP + 18 * number
        parts.append(_line(right + 12, at, right + 36, at, colour, 3))
        parts.append(_text(right + 42, at + 4, curve.label, "start"))
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}"'
            f' width="{_WIDTH}" height="{_HEIGHT}" font-family="sans-serif"'
            ' font-size="12">',
            *parts,
            "</svg>\n",
        ]
    )


def _scale(low: float, high: float, start: float, end: float) -> Callable:
    width = high - low or 1.0
    return lambda value: start + (value - low) / width * (end - start)


def _ticks(low: float, high: float) -> list[float]:
    """Returns round numbers from low to high, about five of them."""
    rough = (high - low or abs(high) or 1.0) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(n * power for n in (1, 2, 5, 10) if n * power >= rough)
    return [n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _decades(low: float, high: float) -> list[float]:
    """Returns the powers of ten from low to high; the ends if there is none."""
    powers = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
    return [10.0**power for power in powers] or [low, high]


def _line(x1, y1, x2, y2, colour: str = "#ddd", width: float = 1) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
        f' stroke="{colour}" stroke-width="{width}"/>'
    )


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    escaped = html.escape(text)
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escaped}</text>'
