"""One page for one board: as text, and as HTML with plots that need neither a plotting library nor a script."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from html import escape

import numpy as np

from llem_airflow.gpu_check.collect import Seen
from llem_airflow.gpu_check.register import Floats, changes
from llem_airflow.protocol.gpu_profile import Finding, GpuProfile

VERDICT_WORDS = {"expected": "as expected", "differs": "differs", "unknown": "cannot be known"}
_COUNTED = {"expected": "as expected", "differs": "other than expected", "unknown": "cannot be known"}
_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --line: #d0d7de; --quiet: #57606a; --good: #166534;
  --odd: #9a3412; --dot: #1d4ed8 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --paper: #14181d; --line: #3b434c; --quiet: #9aa4af;
  --good: #4ade80; --odd: #fdba74; --dot: #7aa7ff } }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 80rem; margin: 2rem auto; padding: 0 1rem; color: var(--ink);
  background: var(--paper); overflow-wrap: anywhere }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; vertical-align: top; padding: .3rem .6rem;
  border-bottom: 1px solid var(--line) } td:first-child { white-space: nowrap }
  td:nth-child(2), td:nth-child(3) { width: 22% } td:nth-child(4) { width: 20% } .differs { color: var(--odd);
  font-weight: 600 } .unknown { color: var(--quiet) } .expected { color: var(--good) } .note { border-left: 4px solid
  var(--odd); padding-left: .8rem } .plots { display: grid; gap: 1.5rem; margin-top: 1.5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(28rem, 100%), 1fr)) } figure { margin: 0 } svg { width: 100% }
@media (max-width: 50rem) { thead { display: none } tr { display: block; padding: .5rem 0; border-bottom: 1px solid
  var(--line) } td { display: block; border: 0; padding: .1rem 0 } td:nth-child(n) { width: auto }
  td:empty { display: none } td[data-name]::before { content: attr(data-name) ": "; color: var(--quiet) } }
"""


def counted(profiles: Iterable[GpuProfile]) -> str:
    """How many numbers of the boards are as expected, other than expected, cannot be known."""
    verdicts = Counter(found.verdict for profile in profiles for found in profile.findings)
    return ", ".join(f"{verdicts[verdict]} {words}" for verdict, words in _COUNTED.items())


def text_page(profile: GpuProfile) -> str:
    """The page as plain text."""
    lines = [*_head(profile), ""]
    for found in profile.findings:
        lines.append(f"{VERDICT_WORDS[found.verdict]:<16}{found.what}: {found.value or '-'}")
        expected = f"expected {found.expected}" if found.expected else ""
        about = "; ".join(text for text in (expected, found.why) if text)
        if about:
            lines.append(f"{'':<16}{about}")
    return "\n".join(lines) + "\n"


def html_page(profile: GpuProfile, seen: Seen) -> str:
    """The page as HTML, without a script and without anything from elsewhere."""
    title, facts, *notes = (escape(line).replace("+-", "±") for line in _head(profile))
    rows = "".join(map(_row, profile.findings))
    said = "".join(f"<p class=note>{line}</p>" for line in notes)
    return (
        f'<!doctype html>\n<html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width">'
        f"<title>{title}</title><style>{_STYLE}</style>\n"
        f"<h1>{title}</h1><p>{facts}</p>{said}<p>{counted([profile])}.</p>\n"
        f"<table><thead><tr><th>Verdict<th>What<th>Found<th>Expected<th>Remark</thead>\n<tbody>{rows}</tbody></table>\n"
        f"<div class=plots>{''.join(_plots(seen))}</div></html>\n"
    )


def _row(found: Finding) -> str:
    what, value, expected, why = (
        escape(text).replace("+-", "±") for text in (found.what, found.value, found.expected, found.why)
    )
    return (
        f"<tr><td class={found.verdict}>{VERDICT_WORDS[found.verdict]}</td><td>{what}</td>"
        f"<td data-name=found>{value or '-'}</td>{_cell('expected', expected)}{_cell('remark', why)}</tr>\n"
    )


def _cell(name: str, text: str) -> str:
    return f"<td data-name={name}>{text}</td>" if text else "<td></td>"


def _head(profile: GpuProfile) -> list[str]:
    said = [profile.uuid or "UUID not known", f"driver {profile.driver or 'not known'}"]
    if profile.power_limit_w:
        said.append(f"limit {profile.power_limit_w:.0f} W")
    said.append(f"load: {profile.load}")
    if profile.made_epoch_ns is not None:
        said.append(
            f"{datetime.fromtimestamp(profile.made_epoch_ns / 1e9, UTC):%Y-%m-%d %H:%M} UTC, {profile.made_by}"
        )
    name = profile.name or "a board without a name"
    return [f"Power meter of {name}", ", ".join(said), *([profile.note] if profile.note else [])]


def _plots(seen: Seen) -> list[str]:
    power = seen.readings("power_instant_mw", 1e-3)
    square, load = seen.readings("power_instant_mw", 1e-3, "square"), seen.load("square")
    found = []
    if len(square.values) and len(load.on_s):
        at = np.searchsorted(load.on_s, square.before_s) - 1
        since_s = np.where(at >= 0, square.before_s - load.on_s[np.maximum(at, 0)], np.inf)
        rows = since_s < load.off_s[np.maximum(at, 0)] - load.on_s[np.maximum(at, 0)]
        found.append(
            plot("Instant power after the load was switched on", "s", "W", since_s[rows], square.values[rows])
        )
    moved_s, _ = changes(seen.readings("energy_mj", 1.0))
    if len(moved_s) > 2:
        found.append(
            plot(
                "Time between two changes of the energy counter",
                "s",
                "ms",
                moved_s[1:],
                np.diff(moved_s) * 1e3,
            )
        )
    if len(power.values):
        found.append(plot("Instant power, all readings", "s", "W", power.before_s, power.values))
    temperature = seen.readings("temperature_c", 1.0)
    if len(temperature.values) > 1:
        found.append(plot("Temperature", "s", "°C", temperature.before_s, temperature.values))
    return found


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
