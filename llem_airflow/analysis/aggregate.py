"""aggregate_run: the cycles of a run become summary.json, three Parquet tables and report.html."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from llem_airflow.analysis.curves import Curve, curve
from llem_airflow.analysis.cycle import NO_METER, Cycle, Reading, absent_cycle, read_cycle
from llem_airflow.analysis.merge import PowerMerge
from llem_airflow.analysis.planned import Planned, planned
from llem_airflow.analysis.report import ReportData, report_html
from llem_airflow.analysis.since import since_previous
from llem_airflow.analysis.summary import Summary, summarise
from llem_airflow.analysis.tables import cycles_table, experiments_table
from llem_airflow.protocol.records import BOARD_STATE
from llem_airflow.results import CycleRef, FailureRef, StoredRun, layout

CURVES_IN_REPORT = 240
"""A report of more cycles draws the first ones and says so; the merged series has them all."""

_LARGE_BYTES = 31 << 20
"""The most that malloc learns from (M_MMAP_THRESHOLD in mallopt(3)); it is never touched, so it takes no memory."""

_VOLATILE = ("anchors", "boot_id", "time_namespace_offsets")


@dataclass
class _Gathered:
    """What one pass over the cycles collects; bounded by the number of cycles, not of samples."""

    curves_wanted: int
    cycles: list[Cycle] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    environments: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    power_absent: list[dict[str, Any]] = field(default_factory=list)


def aggregate_run(run: StoredRun, *, report: bool = True) -> Summary:
    """Aggregate a run. The same evidence gives the same bytes, however often and by how many it is done.

    Each file appears whole under its name, the report last; a summary that another one replaces is kept under
    ``superseded/``. Reads one power series at a time.

    Args:
        run: The run.
        report: Whether to draw report.html, which is most of the time it takes.

    Raises:
        ResultsWriteError: Something could not be written; nothing that was committed is affected.
    """
    _keep_freed_memory()
    plan = planned(run.plan())
    committed = {(ref.experiment_id, ref.cycle): ref for ref in run.cycles()}
    failures: dict[tuple[str, int], list[FailureRef]] = defaultdict(list)
    for failure in run.failures():
        failures[failure.experiment_id, failure.cycle].append(failure)
    skips, left = run.skipped(), run.not_begun()
    gathered = _Gathered(CURVES_IN_REPORT if report else 0)
    with run.folder.atomic_write(layout.POWER_TABLE) as file, PowerMerge(file) as merge:
        for key, position in _rows(plan, committed, failures):
            if key in skips and key not in committed:
                gathered.cycles.append(Cycle(*key, "skipped", skips[key], position))
            else:
                _gather(key, position, committed.get(key), failures[key], plan, merge, gathered)
                if gathered.cycles[-1].status == "missing" and key in left:
                    gathered.cycles[-1] = dataclasses.replace(gathered.cycles[-1], reason=left[key])
        power_rows = merge.rows
    summary = summarise(
        run.study,
        run.run_id,
        plan,
        gathered.cycles,
        environments=[
            {"cycles": cycles, "environment": json.loads(text)}
            for text, cycles in gathered.environments.items()
        ],
        power_rows=power_rows,
        power_absent=gathered.power_absent,
        release=run.meta().get("version"),
    )
    _write_table(run, layout.CYCLES_TABLE, cycles_table(run.study, run.run_id, gathered.cycles, plan))
    _write_table(run, layout.EXPERIMENTS_TABLE, experiments_table(summary))
    run.replace(layout.SUMMARY, _json_lines(summary.to_json()))
    if report:
        page = report_html(
            ReportData(
                summary, gathered.cycles, gathered.curves, run.study_text(), run.meta(), since_previous(run)
            )
        )
        run.folder.write(layout.REPORT, page.encode())
    return summary


def _keep_freed_memory() -> None:
    """Freeing one large block tells glibc to keep smaller ones; giving back each array costs a tenth of all CPU."""
    np.empty(_LARGE_BYTES, dtype=np.uint8)


def _rows(plan: Planned, *found: dict[tuple[str, int], Any]) -> list[tuple[tuple[str, int], int | None]]:
    """Every planned cycle in run order, then whatever else left a trace (the plan was changed)."""
    keys = list(dict.fromkeys(plan.cycles))
    more = sorted({key for part in found for key in part} - set(keys))
    return [*((key, position) for position, key in enumerate(keys)), *((key, None) for key in more)]


def _gather(
    key: tuple[str, int],
    position: int | None,
    ref: CycleRef | None,
    failures: list[FailureRef],
    plan: Planned,
    merge: PowerMerge,
    gathered: _Gathered,
) -> None:
    name = f"{key[0]} cycle {key[1]}"
    if ref is None:
        row = absent_cycle(*key, failures, position=position)
        experiment = plan.experiments.get(key[0])
        if experiment:
            row = dataclasses.replace(
                row, engine=experiment.engine, model=experiment.model, hash=experiment.hash
            )
        gathered.cycles.append(row)
        return
    row, reading = read_cycle(ref, position=position, failed_attempts=len(failures))
    gathered.cycles.append(row)
    if reading is None:
        gathered.power_absent.append({"experiment": key[0], "cycle": key[1], "reason": row.reason})
        return
    gathered.environments[_stable(reading.environment)].append(name)
    if not merge.add(*key, reading):
        gathered.power_absent.append(
            {"experiment": key[0], "cycle": key[1], "reason": _why_no_power(reading)}
        )
    if len(gathered.curves) < gathered.curves_wanted:
        gathered.curves.append(curve(*key, reading))


def _why_no_power(reading: Reading) -> str:
    if reading.result.meter.kind == "none":
        return NO_METER
    return reading.power.problem or "the series has no samples"


def _stable(environment: Mapping[str, Any]) -> str:
    """The environment without what changes from attempt to attempt, as JSON, to tell distinct ones apart."""
    kept = {name: value for name, value in environment.items() if name not in _VOLATILE}
    for key in ("gpus", "gpus_after"):
        if isinstance(kept.get(key), list):
            kept[key] = [
                {k: v for k, v in gpu.items() if k not in BOARD_STATE}
                for gpu in kept[key]
                if isinstance(gpu, dict)
            ]
    if isinstance(kept.get("cpu"), dict):
        kept["cpu"] = {name: value for name, value in kept["cpu"].items() if name != "load_average_1min"}
    return json.dumps(kept, sort_keys=True)


def _write_table(run: StoredRun, name: str, table: Any) -> None:
    with run.folder.atomic_write(name) as file:
        pq.write_table(table, file, compression="zstd")


def _json_lines(value: Mapping[str, Any]) -> bytes:
    """A JSON object with each member, and each item of a list in it, on a line of its own.

    Indented JSON is written ten times slower, which a summary of 1,000 experiments feels.
    """
    one = partial(json.dumps, sort_keys=True, allow_nan=False)
    lines = []
    for key in sorted(value):
        item = value[key]
        many = isinstance(item, list) and item
        lines.append(f"{one(key)}: " + ("[\n" + ",\n".join(map(one, item)) + "\n]" if many else one(item)))
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()
