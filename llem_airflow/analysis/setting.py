"""Where a run was measured: model, engine, hardware, driver, meter, release. The header of every report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llem_airflow.analysis.cycle import Cycle

ORDER = ("model", "release", "engine", "hardware", "driver", "meter", "host")
"""In which people read them; JSON does not keep an order."""


def setting(
    cycles: Sequence[Cycle], environments: Iterable[Mapping[str, Any]], release: str | None = None
) -> dict[str, Any]:
    """The distinct values of each, by name; what no cycle tells is left out.

    Args:
        cycles: Rows of the run.
        environments: ``{"cycles", "environment"}`` of each distinct environment.
        release: Model release that was measured, if the study has any.
    """
    told = [dict(item["environment"]) for item in environments]
    found = {
        "model": [row.model for row in cycles if row.model != "-"],
        "release": [release or ""],
        "engine": [_engine(row) for row in cycles if row.has_result] or [row.engine for row in cycles],
        "hardware": [_hardware(one) for one in told],
        "driver": [str(one.get("driver") or "") for one in told],
        "meter": [_meter(row) for row in cycles if row.has_result],
        "host": [row.host for row in cycles],
    }
    distinct = {name: [value for value in dict.fromkeys(values) if value] for name, values in found.items()}
    return {name: values for name, values in distinct.items() if values}


def setting_texts(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The same for people: name and values."""
    return [(name, ", ".join(found[name])) for name in ORDER if name in found]


def _engine(row: Cycle) -> str:
    return f"{row.engine} {row.engine_version}".strip()


def _hardware(environment: Mapping[str, Any]) -> str:
    """The GPUs, or the CPU where there is none."""
    gpus = environment.get("gpus")
    names = [str(gpu.get("name") or "GPU") for gpu in gpus or () if isinstance(gpu, Mapping)]
    if names:
        return " + ".join(f"{count} x {name}" for name, count in Counter(names).items())
    cpu = environment.get("cpu")
    if not isinstance(cpu, Mapping) or not cpu.get("model"):
        return ""
    return f"{cpu['model']}, {cpu.get('usable') or cpu.get('count') or '?'} CPUs"


def _meter(row: Cycle) -> str:
    """``nvml (measured, counter, board)``."""
    name = str(row.fingerprint.get("meter") or "")
    if row.energy_kind == "none":
        return name
    parts = dict.fromkeys([row.energy_kind, row.energy_source or "", row.energy_boundary or ""])
    return f"{name} ({', '.join(part for part in parts if part)})"
