"""Kinds of values in a study file: numbers, texts, names of engines and runners, durations, times of day, schedules."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, time
from types import MappingProxyType
from typing import Annotated, Any
from zoneinfo import ZoneInfo, available_timezones

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from llem_airflow.study.names import (
    ENGINE_ALIASES,
    ENGINES,
    LONGEST_DAG_ID,
    METERS,
    METRIC_NAMES,
    PEER_SAMPLERS,
    dag_id_of,
    split_runner,
)
from llem_airflow.study.problems import KeyPath, closest, show

LONGEST_S = 30 * 86400.0
"""Longest pause, limit or deadline of a study, in seconds: far more, and dates overflow while a DAG is built."""
PRESET_SCHEDULES = [
    "@once",
    "@continuous",
    "@hourly",
    "@daily",
    "@weekly",
    "@monthly",
    "@quarterly",
    "@yearly",
]
_TIMES = re.compile(r"\s*(\d{1,2}):(\d\d)\s*-\s*(\d{1,2}):(\d\d)\s*\Z")
_UNITS_S = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(s|min|m|h|d)\s*\Z")


def refuse(
    found: str, allowed: str, path: KeyPath = (), suggestion: str | None = None
) -> PydanticCustomError:
    """The error of a validator that says itself what is wrong, at a path below the value, and what was meant."""
    said = {"found": found, "allowed": allowed, "path": path, "suggestion": suggestion}
    return PydanticCustomError("refused", "{found}; {allowed}", said)


def _whole(value: Any) -> Any:
    """``3.0`` is a whole number, and no database holds one of more than 63 bits."""
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        value = int(value)
    if type(value) is int and abs(value) >= 2**63:
        raise ValueError
    return value


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError
    return text


def finite(value: Any, path: KeyPath = ()) -> Any:
    """Any JSON value with finite numbers: what passes through to an engine."""
    if isinstance(value, float) and not math.isfinite(value):
        raise refuse(f"found {value}", "allowed: a finite number", path)
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in pairs:
        finite(child, (*path, key))
    return value


def _one_of(names: tuple[str, ...], aliases: Mapping[str, str] = MappingProxyType({})) -> AfterValidator:
    def check(name: str) -> str:
        name = aliases.get(name, name)
        if name not in names:
            raise ValueError
        return name

    return AfterValidator(check)


def _enum(*names: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "enum": [*names]})


Whole = Annotated[int, BeforeValidator(_whole)]
# A finite number stays as it is written: 10 is stored as a whole number.
Number = Annotated[Annotated[int, Field(gt=-(2**63), lt=2**63)] | float, WithJsonSchema({"type": "number"})]
Text = Annotated[str, AfterValidator(_not_blank), Field(min_length=1)]
Anything = Annotated[Any, AfterValidator(finite)]
Mapped = Annotated[dict[str, Any], AfterValidator(finite)]
Engine = Annotated[str, _one_of(ENGINES, ENGINE_ALIASES), _enum(*ENGINES, *ENGINE_ALIASES)]
MeterName = Annotated[str, _one_of(METERS), _enum(*METERS)]
SamplerName = Annotated[str, _one_of((*METERS, *PEER_SAMPLERS)), _enum(*METERS, *PEER_SAMPLERS)]
Metric = Annotated[str, _one_of(METRIC_NAMES), _enum(*METRIC_NAMES)]


@dataclass(frozen=True, slots=True)
class DailyWindow:
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


def _daily_window(text: Any) -> DailyWindow:
    """``22:00-06:00``."""
    match = _TIMES.match(text) if isinstance(text, str) else None
    try:
        hour, minute, end_hour, end_minute = (int(part) for part in match.groups()) if match else (0, 0, 0, 0)
        window = DailyWindow(time(hour, minute), time(end_hour, end_minute))
    except ValueError:
        window = None
    if window is None or window.start == window.end:
        raise refuse(f"found {show(text)}", "allowed: two different times of day such as 22:00-06:00")
    return window


def _duration_s(value: Any) -> float:
    """``90``, ``"5m"`` or ``"1.5h"`` in seconds."""
    if type(value) in {int, float}:
        found_s = float(value) if abs(value) < 2**63 else -1.0
    else:
        match = _DURATION.match(value) if isinstance(value, str) else None
        found_s = float(match[1]) * _UNITS_S[match[2]] if match else -1.0
    if not 0 <= found_s <= LONGEST_S:
        allowed = "allowed: seconds, or a text such as 30s, 5m, 1h, at most 30 days"
        raise refuse(f"found {show(value)}", allowed)
    return found_s


def _timezone(name: Any) -> str:
    try:
        return str(ZoneInfo(name))
    except (KeyError, ValueError, OSError, TypeError, AttributeError):
        near = closest(name, available_timezones()) if isinstance(name, str) else None
        allowed = "allowed: a name of the IANA list such as Europe/Berlin or UTC"
        raise refuse(f"found {show(name)}", allowed, suggestion=near) from None


def _date(text: Any) -> str:
    try:
        # Years at the ends of the calendar overflow as soon as a time zone is applied.
        if 1970 <= datetime.fromisoformat(text).year <= 2100:
            return str(text)
    except (ValueError, TypeError):
        pass
    allowed = (
        "allowed: a date such as 2026-03-01, or with a time 2026-03-01T02:00:00+00:00, from 1970 to 2100"
    )
    raise refuse(f"found {show(text)}", allowed)


def _schedule(text: Any) -> str:
    """A preset, or five fields that croniter takes and that mean the same at every evaluation."""
    from croniter import CroniterBadDateError, croniter  # noqa: PLC0415  # most studies have no schedule

    allowed = f"allowed: a cron expression of 5 fields, one of {', '.join(PRESET_SCHEDULES)}, or null"
    if not isinstance(text, str):
        raise refuse(f"found {show(text)}", allowed)
    if text in PRESET_SCHEDULES:
        return text
    fields = text.split()
    if len(fields) in {6, 7} and not text.startswith("@"):
        found = f"found {show(text)}, which has {len(fields)} fields"
        raise refuse(found, f"{allowed}; seconds and years have no place")
    if re.search(r"(?i)(?<![a-z])[hr](?![a-z])", text) and len(fields) == 5:
        raise refuse(f"found {show(text)}, with a hashed or random field", allowed)
    if len(fields) != 5 or text.startswith("@"):
        raise refuse(f"found {show(text)}", allowed, suggestion=closest(text, PRESET_SCHEDULES))
    try:
        croniter(text, datetime(2026, 1, 1, tzinfo=UTC)).get_next()
    except CroniterBadDateError:
        raise refuse(f"found {show(text)}, which never comes", allowed) from None
    except (ValueError, KeyError) as error:
        raise refuse(f"found {show(text)}: {f'{error}'.partition('] ')[2] or error}", allowed) from None
    return text


def _study_name(text: str) -> str:
    if not text.isprintable():
        raise refuse(f"found {text[:60]!r}", "allowed: a text of one line without control characters")
    if any(sign in text for sign in ("{{", "{%", "{#")):
        raise refuse(f"found {text[:60]!r}", "Airflow renders {{, {% and {# as templates: leave them out")
    return text


def _dag_id(text: str) -> str:
    if dag_id_of(text) != text or not text.isascii():
        allowed = f"allowed: letters, digits, dots, dashes and underscores, at most {LONGEST_DAG_ID}"
        raise refuse(f"found {text[:60]!r}", allowed)
    return text


def _runner(text: str) -> str:
    if split_runner(text) is None:
        allowed = "allowed: process, container or container:<image> (also local, docker, docker:<image>), kubernetes"
        raise refuse(f"found {show(text)}", allowed)
    return text


def _at_most(most: int) -> AfterValidator:
    """Airflow's database has columns of this length."""

    def check(text: str) -> str:
        if len(text) > most:
            raise refuse(f"found {len(text)} characters", f"allowed: at most {most}")
        return text

    return AfterValidator(check)


def _tags(tags: list[str]) -> list[str]:
    wrong = next((tag for tag in tags if not tag.strip() or len(tag) > 100), None)
    if wrong is not None:
        raise refuse(f"found the tag {wrong[:60]!r}", "allowed: tags of 1 to 100 characters")
    return tags


def _gpu_indices(indices: list[int]) -> list[int]:
    if any(index < 0 for index in indices):
        raise refuse(f"found {indices}", "allowed: indices from 0, as nvidia-smi shows them")
    return indices


def _each_once(what: str) -> AfterValidator:
    def check(names: list[Any]) -> list[Any]:
        if len(set(names)) != len(names):
            raise refuse(f"found {names}", f"name each {what} once")
        return names

    return AfterValidator(check)


_TEXT = WithJsonSchema({"type": "string"})
Duration = Annotated[float, PlainValidator(_duration_s), WithJsonSchema({"type": ["number", "string"]})]
TimesOfDay = Annotated[DailyWindow, PlainValidator(_daily_window), PlainSerializer(str), _TEXT]
TimeZone = Annotated[str, PlainValidator(_timezone), _TEXT]
Date = Annotated[str, PlainValidator(_date), _TEXT]
Schedule = Annotated[str, PlainValidator(_schedule), _TEXT]
StudyName = Annotated[Text, AfterValidator(_study_name), _at_most(500)]
DagId = Annotated[str, AfterValidator(_dag_id)]
Runner = Annotated[str, AfterValidator(_runner)]
Owner = Annotated[Text, _at_most(250)]
Pool = Annotated[Text, _at_most(256)]
HostNames = Annotated[list[Pool], _each_once("host")]
Tags = Annotated[list[str], AfterValidator(_tags)]
GpuIndices = Annotated[list[Whole], Field(min_length=1), AfterValidator(_gpu_indices), _each_once("GPU")]
GpuIds = Annotated[list[str], Field(min_length=1), _each_once("GPU")]
