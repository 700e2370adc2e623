"""Numbers for people: three significant digits, a unit that fits, and ``~ … estimate`` where it is one."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from llem_airflow.analysis.metrics import BY_NAME, Metric
from llem_airflow.analysis.statistics import SHOWN_FROM_N, Description

ABSENT = "\N{EN DASH}"
_SMALL_UNITS = {"s": ("ms", 1e3), "J/token": ("mJ/token", 1e3)}


def number(value: float | None, digits: int = 3) -> str:
    """A number with ``digits`` significant digits, without an exponent from 1e-9 to 1e15; a dash for None."""
    if value is None or not math.isfinite(value):
        return ABSENT
    if value == 0:
        return "0"
    text = f"{value:.{digits}g}"
    if "e" not in text:
        return text
    size = abs(value)
    if not 1e-9 <= size < 1e15:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.0f}" if size >= 1 else f"{value:.{digits - 1 - math.floor(math.log10(size))}f}"


def scale(metric: Metric, largest: float) -> tuple[str, float]:
    """Unit and factor in which values up to ``largest`` are easy to read."""
    if metric.unit == "ratio":
        return "%", 100.0
    small = _SMALL_UNITS.get(metric.unit)
    return small if small and 0 < abs(largest) < (1.0 if metric.unit == "s" else 0.1) else (metric.unit, 1.0)


def labelled(text: str, *, estimate: bool, tag: bool = True) -> str:
    """The text, marked when it is an estimate: with the sign ``~``, and with the word where no header says it."""
    if not estimate or text == ABSENT:
        return text
    return f"~ {text} estimate" if tag else f"~ {text}"


def with_unit(name: str, value: float | None, *, estimate: bool = False, tag: bool = True) -> str:
    """A value of a metric with its unit, such as ``12.3 ms`` or ``~ 0.61 J/token estimate``."""
    if value is None:
        return ABSENT
    metric = BY_NAME[name]
    unit, factor = scale(metric, value)
    return labelled(f"{number(value * factor)} {unit}", estimate=estimate and metric.energy, tag=tag)


def interval(found: Description, factor: float = 1.0) -> str:
    """The 95 % interval as ``low to high``; says so when there is none, or too few values for one that tells."""
    shown = found.shown_interval
    if shown is None:
        return f"no interval (n = {found.n})" if found.n < SHOWN_FROM_N else "no interval"
    return f"{number(shown.low * factor)} to {number(shown.high * factor)}"


def percent(ratio: float | None, digits: int = 2) -> str:
    """A ratio as percent."""
    return ABSENT if ratio is None else f"{number(ratio * 100, digits)} %"


def signed(ratio: float | None) -> str:
    """A change in percent with its sign, to a tenth; a dash for None."""
    if ratio is None:
        return ABSENT
    rounded = round(ratio * 100, 1)
    return f"{rounded:+,.1f} %".replace("-", "\N{MINUS SIGN}") if rounded else "0.0 %"


def change_interval(low_ratio: float | None, high_ratio: float | None) -> str:
    """The 95 % interval of a change; "cannot tell" when both half and double lie in it, empty when there is none."""
    if low_ratio is None or high_ratio is None:
        return ""
    if low_ratio <= -0.5 and high_ratio >= 1.0:
        return "cannot tell (half to double)"
    return f"{signed(low_ratio)} to {signed(high_ratio)}"


def detectable(ratio: float | None) -> str:
    """The smallest difference that would have been found; empty for None."""
    if ratio is None:
        return ""
    return f"detects from {percent(ratio)}" if ratio < 1 else "would not detect a doubling"


def when(epoch_ns: int | None) -> str:
    """An instant in UTC, to the second."""
    if epoch_ns is None:
        return ABSENT
    return datetime.fromtimestamp(epoch_ns / 1e9, tz=UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def sentence(text: str) -> str:
    """The text with a capital and one full stop."""
    text = text.strip().rstrip(".")
    return f"{text[:1].upper()}{text[1:]}."


def change(ratio: float) -> str:
    """A change in percent with its sign: ``+430 %``, ``-61 %``, ``+1.2 %`` (with a minus sign, not a hyphen)."""
    digits = 0 if abs(ratio) >= 0.0995 else 1
    percent = round(ratio * 100, digits)
    return f"{percent:+,.{digits}f} %".replace("-", "\N{MINUS SIGN}") if percent else "0 %"


def p_value(p: float | None) -> str:
    """A p value with two digits; small ones as a bound."""
    return "< 0.001" if p is not None and p < 0.001 else number(p, 2)
