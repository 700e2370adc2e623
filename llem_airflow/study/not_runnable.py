"""Studies that are well formed and could never run: told before anything is fetched or started."""

from __future__ import annotations

from collections.abc import Iterator

from llem_airflow.study.dag_ids import INVALID_PREFIX, RESERVED_DAG_IDS
from llem_airflow.study.mistakes import Mistake, Path
from llem_airflow.study.study import Experiment, Study


def not_runnable(study: Study) -> list[Mistake]:
    """Why no run of the study could end well, each with its place; empty when nothing is known against it."""
    found = [*_server(study), *_reserved(study), *_too_short(study)]
    return [study.mistake(*each) for each in found]


def _server(study: Study) -> Iterator[tuple[Path, str, str]]:
    if any(each.config["serving_mode"] == "server" for each in study.experiments):
        yield (
            ("serving_mode",),
            "found server, which cannot run yet: such a study can only be planned",
            "use serving_mode: offline to measure",
        )


def _reserved(study: Study) -> Iterator[tuple[Path, str, str]]:
    if study.dag_id in RESERVED_DAG_IDS or study.dag_id.startswith(INVALID_PREFIX):
        where: Path = ("airflow", "dag_id") if study.airflow.dag_id else ("study_name",)
        yield (
            where,
            f"the DAG would be called {study.dag_id!r}, as one of llem-airflow's own",
            "name it otherwise",
        )


def _too_short(study: Study) -> Iterator[tuple[Path, str, str]]:
    """Limits that end every cycle before it can be done."""
    limits = (
        ("experiment_timeout_seconds", study.execution.experiment_timeout_s),
        ("wall_clock_timeout_hours", study.execution.wall_clock_timeout_s),
    )
    needed_s = min(map(least_s, study.experiments), default=0.0)
    for key, limit_s in limits:
        if limit_s is not None and limit_s <= needed_s:
            needs = f"{needed_s:g} s at least: warm-up, idle power and measurement.min_window_seconds"
            found = f"it ends a cycle after {limit_s:g} s, and each takes {needs}"
            yield ("study_execution", key), found, "raise it, or shorten the window"


def least_s(experiment: Experiment) -> float:
    """Seconds that a cycle takes at least: its window, and the idle power and the warm-up that the study asks for."""
    measurement = experiment.config["measurement"]
    baseline = measurement["baseline"]
    warmup = (experiment.config.get("offline") or {}).get("warmup") or {}
    idle_s = (baseline["duration_seconds"] or 0) if baseline["enabled"] else 0
    warm_s = (warmup.get("thermal_floor_seconds") or 0) if warmup.get("enabled") else 0
    return float(measurement["min_window_seconds"] + idle_s + warm_s)
