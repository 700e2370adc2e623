"""The shape of plan.json, as far as readers rely on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llem_airflow.results.cycles import ResultReadError


def checked_plan(plan: dict[str, Any], where: str) -> dict[str, Any]:
    """The plan as it was stored.

    Raises:
        ResultReadError: A part of it is not of the kind that it must be; the message names the file and the part.
    """
    for name, kind in (("experiments", list), ("order", list), ("skipped", list), ("cycles", int)):
        if name in plan and not isinstance(plan[name], kind):
            raise ResultReadError(f"{where}: {name}: expected {kind.__name__}, found {plan[name]!r:.40}")
    for item in plan.get("experiments", ()):
        if not (isinstance(item, Mapping) and isinstance(item.get("config") or {}, Mapping) and "id" in item):
            raise ResultReadError(f"{where}: experiments: expected objects with an id, found {item!r:.40}")
    for entry in plan.get("order", ()):
        named = isinstance(entry, Mapping) and {"cycle"} < set(entry) & {"cycle", "experiment", "id"}
        if not (isinstance(entry, str) or named):
            raise ResultReadError(f"{where}: order: expected experiments, found {entry!r:.40}")
    return plan
