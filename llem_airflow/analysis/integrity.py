"""Is the stored evidence whole? Every file opens, hashes and counts agree, and the joules come out again."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llem_airflow.analysis.cycle import HAS_RESULT, read_cycle
from llem_airflow.analysis.tables import cycle_rows
from llem_airflow.results import CycleRef, StoredRun, layout
from llem_airflow.text.wording import counted

ENERGY_TOLERANCE_RATIO = 1e-6
_COMPLETE = ("experiment_hash", "model", "engine", "engine_version", "meter", "prompts_sha256", "runner")

_STREAMS = ("power_series_unreadable", "power_series_changed", "requests_unreadable", "requests_disagree")
"""Flags that say that a stream of a cycle is not what its result says."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is not as it was stored.

    Attributes:
        where: The file or folder.
        what: What is wrong with it.
        next_step: What to do.
    """

    where: str
    what: str
    next_step: str


def check_run(run: StoredRun) -> list[Problem]:
    """Problems of a run; an empty list means that its evidence is whole."""
    problems = [problem for ref in run.cycles(repeats=True) for problem in _check_files(ref)]
    if not run.folder.exists(layout.SUMMARY):
        step = f"`llem-airflow report {run.url}` does it"
        return [*problems, Problem(run.url, "the run was not aggregated", step)]
    problems += _check_tables(run)
    if any(problem.where.endswith(layout.CYCLES_TABLE) for problem in problems):
        return problems
    stored = {(row["experiment"], row["cycle"]): row for row in cycle_rows(run)}
    present = {(ref.experiment_id, ref.cycle) for ref in run.cycles()}
    problems += [
        Problem(f"{run.url}: {name} cycle {cycle}", "its evidence is gone", "restore it from a backup")
        for (name, cycle), row in stored.items()
        if row["status"] in HAS_RESULT and (name, cycle) not in present
    ]
    for ref in run.cycles():
        problems += _check_numbers(ref, stored.get((ref.experiment_id, ref.cycle)))
    return problems


def _check_files(ref: CycleRef) -> list[Problem]:
    hashes = ref.provenance().get("sha256")
    if not isinstance(hashes, Mapping):
        step = "the commit was made by another program; nothing vouches for these files"
        return [Problem(f"{ref.folder.url}/{layout.PROVENANCE}", "has no hashes", step)]
    problems = []
    present = set(ref.folder.files())
    for name, expected in hashes.items():
        where = f"{ref.folder.url}/{name}"
        if name not in present:
            problems.append(
                Problem(where, "is missing", "restore it from a backup or measure the cycle again")
            )
        elif _sha256(ref, name) != expected:
            step = "restore it from a backup or measure the cycle again"
            problems.append(Problem(where, "was changed after it was stored", step))
    return problems


def _check_tables(run: StoredRun) -> list[Problem]:
    problems = []
    step = f"aggregate again: `llem-airflow report {run.url} --again`"
    for name in (layout.CYCLES_TABLE, layout.EXPERIMENTS_TABLE, layout.POWER_TABLE):
        try:
            with run.folder.open(name) as file:
                rows = pq.ParquetFile(file).metadata.num_rows
        except (OSError, pa.ArrowException) as error:
            problems.append(
                Problem(f"{run.url}/{name}", f"does not open: {str(error).splitlines()[0]}", step)
            )
            continue
        expected = (run.summary() or {}).get("power_rows")
        if name == layout.POWER_TABLE and rows != expected:
            problems.append(
                Problem(f"{run.url}/{name}", f"has {counted(rows, 'row')}, the summary says {expected}", step)
            )
    return problems


def _check_numbers(ref: CycleRef, row: dict[str, Any] | None) -> list[Problem]:
    again = "aggregate again: `llem-airflow report RUN --again`"
    if row is None:
        return [Problem(ref.folder.url, f"has no row in {layout.CYCLES_TABLE}", again)]
    cycle, _ = read_cycle(ref, position=None, failed_attempts=0)
    if not cycle.has_result:
        return [Problem(ref.folder.url, cycle.reason, "measure the cycle again")]
    problems = []
    computed, stored = cycle.measures.get("energy_j"), row["energy_j"]
    if not _close(computed, stored):
        problems.append(
            Problem(ref.folder.url, f"integrates to {computed} J, the table says {stored} J", again)
        )
    told = (
        () if cycle.energy_source == "reported" else _STREAMS
    )  # another program's results have no streams of ours
    problems += [
        Problem(ref.folder.url, flag.message, flag.next_step) for flag in cycle.flags if flag.code in told
    ]
    where, step = f"{ref.folder.url}/{layout.PROVENANCE}", "look at the stream that it names"
    notes = ref.provenance().get("storage_notes")
    problems += [Problem(where, str(note), step) for note in (notes if isinstance(notes, list) else ())]
    absent = [name for name in _COMPLETE if cycle.fingerprint.get(name) in (None, "")]
    if absent:
        step = "comparisons with this cycle see less than they should"
        problems.append(Problem(ref.folder.url, f"its fingerprint lacks {', '.join(absent)}", step))
    return problems


def _close(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return math.isclose(one, other, rel_tol=ENERGY_TOLERANCE_RATIO)


def _sha256(ref: CycleRef, name: str) -> str | None:
    try:
        with ref.folder.open(name) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # every store has readinto
    except OSError:
        return None
