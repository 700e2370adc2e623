"""Times in a study: durations, dates, its schedule, its time zone, the window in which experiments may start."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, time
from difflib import get_close_matches
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

_WINDOW = re.compile(r"\s*(\d{1,2}):(\d\d)\s*-\s*(\d{1,2}):(\d\d)\s*\Z")
LONGEST_S = 30 * 86400.0
"""Longest pause, limit or deadline of a study, in seconds: far more, and dates overflow while a DAG is built."""
_UNITS_S = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(s|min|m|h|d)\s*\Z")
_PRESET_SCHEDULES = (
    "@once",
    "@continuous",
    "@hourly",
    "@daily",
    "@weekly",
    "@monthly",
    "@quarterly",
    "@yearly",
)


@dataclass(frozen=True, slots=True)
class Window:
    """The part of each day in which experiments may start; it may go over midnight.

    Attributes:
        start: Its first moment, on the study's clock.
        end: The first moment after it.
    """

    start: time
    end: time

    def holds(self, moment: datetime) -> bool:
        """Whether a moment, given on the study's clock, lies in it."""
        now = moment.time()
        if self.start < self.end:
            return self.start <= now < self.end
        return now >= self.start or now < self.end

    def __str__(self) -> str:
        return f"{self.start:%H:%M}-{self.end:%H:%M}"


def window_of(text: str) -> Window | None:
    """``22:00-06:00`` as a window; None when it is none."""
    match = _WINDOW.match(text)
    if match is None:
        return None
    hour, minute, end_hour, end_minute = (int(part) for part in match.groups())
    try:
        window = Window(time(hour, minute), time(end_hour, end_minute))
    except ValueError:
        return None
    return window if window.start != window.end else None


def wrong_window(text: str) -> tuple[str, str] | None:
    """What is wrong with the text of a window and what is allowed, or None."""
    if window_of(text) is not None:
        return None
    return f"found {text!r}", "allowed: two different times of day such as 22:00-06:00"


def wrong_timezone(name: str) -> tuple[str, str] | None:
    """What is wrong with the name of a time zone and what is allowed, or None."""
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        near = get_close_matches(name, available_timezones(), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"found {name!r}", f"allowed: a name of the IANA list such as Europe/Berlin or UTC{hint}"
    return None


def duration_s(value: Any) -> float | None:
    """``90``, ``"5m"`` or ``"1.5h"`` in seconds; None when it is no duration, or longer than 30 days."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        found_s = float(value)
    else:
        match = _DURATION.match(value) if isinstance(value, str) else None
        found_s = float(match[1]) * _UNITS_S[match[2]] if match else -1.0
    return found_s if 0 <= found_s <= LONGEST_S else None


def wrong_duration(value: Any) -> tuple[str, str] | None:
    """What is wrong with a duration and what is allowed, or None."""
    return (
        None
        if duration_s(value) is not None
        else (f"found {value!r}", "allowed: seconds, or a text such as 30s, 5m, 1h, at most 30 days")
    )


def wrong_date(value: str) -> tuple[str, str] | None:
    """What is wrong with a date and what is allowed, or None."""
    try:
        # Years at the ends of the calendar overflow as soon as a time zone is applied.
        if 1970 <= datetime.fromisoformat(value).year <= 2100:
            return None
    except ValueError:
        pass
    return (
        f"found {value!r}",
        "allowed: a date such as 2026-03-01, or with a time 2026-03-01T02:00:00+00:00, from 1970 to 2100",
    )


def wrong_schedule(value: str) -> tuple[str, str] | None:
    """What Airflow would refuse or take as something else; it checks the numbers of an expression itself."""
    if value in _PRESET_SCHEDULES:
        return None
    allowed = f"allowed: a cron expression of 5 fields, one of {', '.join(_PRESET_SCHEDULES)}, or null"
    fields = value.split()
    if len(fields) in {6, 7} and not value.startswith("@"):
        return (
            f"found {value!r}, which has {len(fields)} fields",
            f"{allowed}; seconds and years have no place",
        )
    if len(fields) != 5 or value.startswith("@"):
        return f"found {value!r}", allowed
    if re.search(r"(?i)(?<![a-z])[hr](?![a-z])", value):
        return f"found {value!r}, with a hashed or random field", allowed
    return None
