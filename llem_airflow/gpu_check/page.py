"""One page for one board: as text and as HTML with plots."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from llem_airflow.gpu_check.collect import Seen
from llem_airflow.gpu_check.register import Floats, changes
from llem_airflow.protocol.gpu_profile import Finding, GpuProfile

VERDICT_WORDS = {"expected": "as expected", "differs": "differs", "unknown": "cannot be known"}
_WIDTH, _HEIGHT, _MARGIN = 640, 220, 46
_MOST_POINTS = 1500
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24;
  background: #fff }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; vertical-align: top; padding: .3rem .6rem;
  border-bottom: 1px solid #d0d7de } .differs { color: #9a3412; font-weight: 600 } .unknown { color: #57606a }
.expected { color: #166534 } svg { max-width: 100%; height: auto } .note { border-left: 4px solid #9a3412;
  padding-left: .8rem } figure { margin: 1.5rem 0 }
"""


def text_page(profile: GpuProfile) -> str:
    """The page as plain text."""
    lines = [*_head(profile), ""]
    for found in profile.findings:
        lines.append(f"{VERDICT_WORDS[found.verdict]:<16}{found.what}: {found.value or '-'}")
        about = _about(found)
        if about:
            lines.append(f"{'':<16}{about}")
    return "\n".join(lines) + "\n"


def html_page(profile: GpuProfile, seen: Seen) -> str:
    """The page as HTML, without a script and without anything from elsewhere."""
    head = _head(profile)
    rows = "".join(
        f"<tr><td class={found.verdict}>{VERDICT_WORDS[found.verdict]}</td><td>{escape(found.what)}</td>"
        f"<td>{escape(found.value) or '-'}</td><td>{escape(_about(found))}</td></tr>\n"
        for found in profile.findings
    )
    notes = "".join(f"<p class=note>{escape(line)}</p>" for line in head[2:])
    return (
        f'<!doctype html>\n<html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width">'
        f"<title>Power meter of {escape(profile.name)}</title><style>{_STYLE}</style>\n"
        f"<h1>{escape(head[0])}</h1><p>{escape(head[1])}</p>{notes}\n"
        f"<table><thead><tr><th>Verdict<th>What<th>Found<th>Expected</thead>\n<tbody>{rows}</tbody></table>\n"
        f"{''.join(_plots(seen))}</html>\n"
    )


def _head(profile: GpuProfile) -> list[str]:
    limit = f", limit {profile.power_limit_w:.0f} W" if profile.power_limit_w else ""
    facts = f"{profile.uuid}, driver {profile.driver or 'not known'}{limit}, load: {profile.load}"
    return [f"Power meter of {profile.name}", facts, *([profile.note] if profile.note else [])]


def _about(found: Finding) -> str:
    expected = f"expected {found.expected}" if found.expected else ""
    return "; ".join(text for text in (expected, found.why) if text)


def _plots(seen: Seen) -> list[str]:
    power = seen.readings("power_instant_mw", 1e-3)
    square, load = seen.readings("power_instant_mw", 1e-3, "square"), seen.load("square")
    found = []
    if len(square.values) and len(load.on_s):
        at = np.searchsorted(load.on_s, square.before_s) - 1
        since_s = np.where(at >= 0, square.before_s - load.on_s[np.maximum(at, 0)], np.inf)
        rows = since_s < min(0.6, float(np.diff(load.on_s).max(initial=0.6)))
        found.append(
            _plot(
                "Instant power after the load was switched on", "s", "W", since_s[rows], square.values[rows]
            )
        )
    moved_s, _ = changes(seen.readings("energy_mj", 1.0))
    if len(moved_s) > 2:
        found.append(
            _plot(
                "Time between two changes of the energy counter",
                "s",
                "ms",
                moved_s[1:],
                np.diff(moved_s) * 1e3,
            )
        )
    if len(power.values):
        found.append(_plot("Instant power, all readings", "s", "W", power.before_s, power.values))
    temperature = seen.readings("temperature_c", 1.0)
    if len(temperature.values) > 1:
        found.append(_plot("Temperature", "s", "C", temperature.before_s, temperature.values))
    return found


def _plot(title: str, x_unit: str, y_unit: str, x: Floats, y: Floats) -> str:
    """Points as inline SVG, so that neither a plotting library nor a script is needed."""
    if len(x) > _MOST_POINTS:
        rows = np.linspace(0, len(x) - 1, _MOST_POINTS).astype(int)
        x, y = x[rows], y[rows]
    x_low, x_high = _span(x)
    y_low, y_high = _span(y)
    across = _MARGIN + (x - x_low) / (x_high - x_low) * (_WIDTH - _MARGIN - 10)
    down = _HEIGHT - 30 - (y - y_low) / (y_high - y_low) * (_HEIGHT - 45)
    points = "".join(f"M{a:.1f} {b:.1f}h0" for a, b in zip(across, down, strict=True))
    ticks = (
        f"<text x={_MARGIN - 4} y={_HEIGHT - 30} text-anchor=end>{y_low:.4g}</text>"
        f"<text x={_MARGIN - 4} y=18 text-anchor=end>{y_high:.4g}</text>"
        f"<text x={_MARGIN} y={_HEIGHT - 10}>{x_low:.3g} {x_unit}</text>"
        f"<text x={_WIDTH - 10} y={_HEIGHT - 10} text-anchor=end>{x_high:.3g} {x_unit}</text>"
    )
    axes = f"M{_MARGIN} 10V{_HEIGHT - 28}H{_WIDTH - 8}"
    return (
        f"<figure><figcaption>{escape(title)}, {y_unit}</figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width={_WIDTH} role=img aria-label="{escape(title)}" font-size=11>'
        f'<path d="{axes}" fill=none stroke=#57606a />{ticks}'
        f'<path d="{points}" stroke=#1d4ed8 stroke-width=3 stroke-linecap=round /></svg></figure>\n'
    )


def _span(values: Floats | Sequence[float]) -> tuple[float, float]:
    low, high = float(np.min(values)), float(np.max(values))
    room = (high - low) * 0.03 or max(abs(low) * 0.01, 1e-3)
    return low - room, high + room
