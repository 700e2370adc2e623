"""Points over time as inline SVG, so that neither a plotting library nor a script is needed."""

from __future__ import annotations

from html import escape

import numpy as np

from llem_airflow.gpu_check.register import Floats

_WIDTH, _HEIGHT = 640, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 10, 10, 34
_TICKS = 6
_MOST_POINTS = 1500


def plot(title: str, x_unit: str, y_unit: str, x: Floats, y: Floats) -> str:
    """A figure of points; of many, some that are spread evenly."""
    if len(x) > _MOST_POINTS:
        rows = np.linspace(0, len(x) - 1, _MOST_POINTS).astype(int)
        x, y = x[rows], y[rows]
    x_ticks, y_ticks = _ticks(x), _ticks(y)
    across = _LEFT + (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]) * (_WIDTH - _LEFT - _RIGHT)
    down = _down(y, y_ticks)
    points = "".join(f"M{a:.1f} {b:.1f}h0" for a, b in zip(across, down, strict=True))
    x_at = np.linspace(_LEFT, _WIDTH - _RIGHT, len(x_ticks))
    lines = "".join(f"M{_LEFT} {at:.1f}H{_WIDTH - _RIGHT}" for at in _down(y_ticks, y_ticks))
    said = "".join(
        [
            *(_text(at, _HEIGHT - 18, "middle", tick) for at, tick in zip(x_at, x_ticks, strict=True)),
            *(
                _text(_LEFT - 6, at + 4, "end", tick)
                for at, tick in zip(_down(y_ticks, y_ticks), y_ticks, strict=True)
            ),
        ]
    )
    return (
        f"<figure><figcaption>{escape(title)}, {y_unit} over {x_unit}</figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role=img aria-label="{escape(title)}" font-size=12 fill=currentColor>'
        f'<path d="{lines}" fill=none style="stroke: var(--line)" />{said}'
        f'<path d="{points}" style="stroke: var(--dot)" stroke-width=3 stroke-linecap=round /></svg></figure>\n'
    )


def _text(x: float, y: float, anchor: str, tick: float) -> str:
    return f"<text x={x:.1f} y={y:.1f} text-anchor={anchor}>{tick:.6g}</text>"


def _down(y: Floats, ticks: Floats) -> Floats:
    down: Floats = _HEIGHT - _BOTTOM - (y - ticks[0]) / (ticks[-1] - ticks[0]) * (_HEIGHT - _TOP - _BOTTOM)
    return down


def _ticks(values: Floats) -> Floats:
    """Round numbers around all values: multiples of 1, 2 or 5 times a power of ten, at most eight of them."""
    low, high = float(np.min(values)), float(np.max(values))
    largest = max(abs(low), abs(high))
    if high - low <= 1e-4 * largest:  # as good as one value: it stands in the middle
        about = 0.05 * largest or 1.0
        low, high = low - about, high + about
    power = 10.0 ** np.floor(np.log10((high - low) / _TICKS))
    step = next(step for step in (power, 2 * power, 5 * power, 10 * power) if (high - low) / step <= _TICKS)
    first, last = np.floor(low / step), np.ceil(high / step)
    ticks: Floats = (first + np.arange(int(last - first) + 1)) * step
    return ticks
