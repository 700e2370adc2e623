"""What each field of a peer's bundle may hold; anything else is named with its file and field."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

MOST_JOULES = 1e12
"""A megawatt for eleven days: no benchmark of one machine comes near it."""
MOST_WATTS = 1e6
_MOST_S, _MOST_TOKENS = 1e7, 1e12


class BundleError(ValueError):
    """A field of a bundle has a value that it cannot have; the message names file, field, value and what is allowed."""


def number(most: float, *, positive: bool = False) -> Callable[[Any], str]:
    """A check for numbers from 0 to ``most``; it tells what is allowed, or nothing when the value is."""

    def check(value: Any) -> str:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        fits = is_number and (value > 0 if positive else value >= 0) and value <= most
        return "" if fits else f"a number {'above' if positive else 'from'} 0 to {most:g}"

    return check


def is_number_of(most: float, value: Any) -> bool:
    """Whether a value is a number from 0 to ``most``."""
    return not number(most)(value)


def _count(value: Any) -> str:
    whole = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_TOKENS
    return "" if whole else "a whole number from 0 on"


def _text(value: Any) -> str:
    return "" if isinstance(value, str) else "a text"


def _object(value: Any) -> str:
    return "" if isinstance(value, Mapping) else "an object"


def _joules_each(value: Any) -> str:
    listed = isinstance(value, list) and all(is_number_of(MOST_JOULES, item) for item in value)
    return "" if listed else f"a list of numbers from 0 to {MOST_JOULES:g}"


def _hash(value: Any) -> str:
    hexadecimal = isinstance(value, str) and 8 <= len(value) <= 64 and set(value) <= set("0123456789abcdef")
    return "" if hexadecimal else "8 to 64 hexadecimal digits"


def _time(value: Any) -> str:
    try:
        seconds = datetime.fromisoformat(value).timestamp()
    except (TypeError, ValueError, OverflowError):
        seconds = 0.0
    return "" if 0 < seconds < 1e11 else "a time in ISO 8601"


_RESULT: dict[str, Callable[[Any], str]] = {
    "declared_config_hash": _hash,
    "start_time": _time,
    "end_time": _time,
    "total_inference_time_sec": number(_MOST_S, positive=True),
    "output_tokens": _count,
    "input_tokens?": _count,
    "total_energy_j?": number(MOST_JOULES),
    "energy_per_device_j?": _joules_each,
    "model_name?": _text,
    "engine?": _text,
    "warmup_result?": _object,
    "warmup_result.iterations_completed?": _count,
    "warmup_result.final_cv?": number(1e6),
    "runner_provenance?": _object,
}
_CONFIG: dict[str, Callable[[Any], str]] = {"declared_config?": _object, "engine_version?": _text}
_SYSTEM: dict[str, Callable[[Any], str]] = {
    "hardware?": _object,
    "hardware.gpu?": _object,
    "hardware.thermal?": _object,
    "hardware.thermal.power_limit_w?": number(MOST_WATTS),
    "hardware.cuda?": _object,
    "hardware.cpu?": _object,
}
FIELDS: dict[str, dict[str, Callable[[Any], str]]] = {
    "result.json": _RESULT,
    "config.json": _CONFIG,
    "system.json": _SYSTEM,
}
"""Check of each field that is read, by file; a name that ends in ``?`` may be absent or null."""


def read_object(file: Path) -> dict[str, Any]:
    """The object in a JSON file, with every field that is read checked; empty where the file is absent.

    Raises:
        BundleError: It holds no object, or a field has a value that it cannot have.
    """
    if not file.exists():
        return {}
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{file}: not JSON: {str(error).splitlines()[0]}") from error
    if not isinstance(found, dict):
        raise BundleError(f"{file}: expected an object, found {type(found).__name__}")
    for name, check in FIELDS[file.name].items():
        value = _at(found, name.rstrip("?"))
        if value is None and name.endswith("?"):
            continue
        if allowed := check(value):
            raise BundleError(f"{file}: {name.rstrip('?')}: found {value!r:.60}; allowed: {allowed}")
    return found


def _at(found: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found
