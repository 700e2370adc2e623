"""The layout of a results root: names of folders and files, and foreign text as a name that cannot escape it."""

from __future__ import annotations

import hashlib
import re

CONFIG = "config.json"
RESULT = "result.json"
ERROR = "error.json"
ENVIRONMENT = "environment.json"
EVENTS = "events.jsonl"
REQUESTS = "requests.parquet"
POWER = "power.parquet"
POWER_CHECK = "power_check.parquet"
METER_CHECK = "meter_check.json"
LOG = "container.log"
PROVENANCE = "provenance.json"

STUDY = "study.yaml"
PLAN = "plan.json"
RUN = "run.json"
SUMMARY = "summary.json"
EXPERIMENTS_TABLE = "experiments.parquet"
CYCLES_TABLE = "cycles.parquet"
POWER_TABLE = "power.parquet"
REPORT = "report.html"
PREVIOUS = "previous.json"

EXPERIMENTS_DIR = "experiments"
FAILED_DIR = "failed"
NOT_NEEDED_DIR = "skipped"
SKIPPED_DIR = "left"
LIVE_DIR = "live"
STAGING_DIR = ".staging"
GPU_PROFILES_DIR = ".gpu-profiles"
"""Profiles of boards, in the results root; hidden, as it is no study."""
BREAKER_DIR = "breaker"
"""Who is the probe of a run whose circuit breaker has tripped."""

_LONGEST = 120
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_AIRFLOW_RUN = re.compile(
    r"(?P<kind>[a-z_]+__)(?P<day>\d{4}-\d\d-\d\dT)(?P<time>[\d:.]+)\+00:00(?P<rest>[A-Za-z0-9_-]*)"
)
_CYCLE = re.compile(r"cycle-(?P<cycle>[1-9]\d*)(?:-repeat-(?P<repeat>[1-9]\d*))?")
_FAILED = re.compile(r"cycle-(?P<cycle>[1-9]\d*)-attempt-(?P<attempt>\d+)(?:-repeat-(?P<repeat>[1-9]\d*))?")


def folder_name(text: str) -> str:
    """A folder name for any text: one path component, never hidden, never ``..``, at most 120 characters.

    A run id of Airflow stays readable (``manual__2026-01-02T03:04:05+00:00`` becomes
    ``manual__2026-01-02T03-04-05Z``). Any other text that had to be changed gets a part of its hash, so that
    two texts never share a folder.
    """
    if match := _AIRFLOW_RUN.fullmatch(text):
        return f"{match['kind']}{match['day']}{match['time'].replace(':', '-')}Z{match['rest']}"[:_LONGEST]
    safe = _UNSAFE.sub("-", text).lstrip(".-")[:_LONGEST]
    if safe == text:
        return safe or _hashed("", text)
    return _hashed(safe, text)


def versioned_name(name: str, content: bytes) -> str:
    """Name under which an earlier version of a file is kept, such as ``plan-1a2b3c4d.json``."""
    stem, _, suffix = name.rpartition(".")
    return f"{stem}-{hashlib.sha256(content).hexdigest()[:8]}.{suffix}"


def cycle_name(cycle: int, repeat: int = 0) -> str:
    """Folder of a cycle; ``repeat`` > 0 is a later result of the same cycle."""
    return f"cycle-{cycle}-repeat-{repeat}" if repeat else f"cycle-{cycle}"


def failed_name(cycle: int, attempt: int, repeat: int = 0) -> str:
    """Folder of a failed attempt."""
    return f"cycle-{cycle}-attempt-{attempt}" + (f"-repeat-{repeat}" if repeat else "")


def parse_cycle(name: str) -> tuple[int, int] | None:
    """(cycle, repeat) of a folder name, or None if it is something else."""
    match = _CYCLE.fullmatch(name)
    return (int(match["cycle"]), int(match["repeat"] or 0)) if match else None


def parse_failed(name: str) -> tuple[int, int, int] | None:
    """(cycle, attempt, repeat) of a folder name, or None if it is something else."""
    match = _FAILED.fullmatch(name)
    return (int(match["cycle"]), int(match["attempt"]), int(match["repeat"] or 0)) if match else None


def _hashed(safe: str, text: str) -> str:
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{safe[: _LONGEST - 9]}-{digest}".lstrip("-")
