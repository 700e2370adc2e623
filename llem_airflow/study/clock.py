"""Times of day in a study: its time zone, and the window in which experiments may start."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, time
from difflib import get_close_matches
from zoneinfo import ZoneInfo, available_timezones

_WINDOW = re.compile(r"\s*(\d{1,2}):(\d\d)\s*-\s*(\d{1,2}):(\d\d)\s*\Z")


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
