"""Frames of what is stored: runs, experiments, cycles, rates, searches, requests, power."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import pandas as pd
import pyarrow as pa

from llem_airflow.analysis.aggregate import MERGED_SCHEMA
from llem_airflow.analysis.cycle import NO_METER
from llem_airflow.analysis.plan import planned
from llem_airflow.analysis.summary import Summary, load_summary
from llem_airflow.analysis.tables import CYCLES_SCHEMA
from llem_airflow.frames.asked import (
    Both,
    Problems,
    Root,
    Runs,
    Swept,
    reads,
    results_root,
    stored_runs,
    wanted,
)
from llem_airflow.frames.tables import (
    EXPERIMENTS_TABLE_SCHEMA,
    POWER_TABLE_SCHEMA,
    RATES_SCHEMA,
    REQUESTS_TABLE_SCHEMA,
    SEARCHES_SCHEMA,
    cycles_table,
    experiments_table,
    rates_table,
    requests_table,
    searches_table,
    stored_table,
    with_run,
)
from llem_airflow.frames.typed import joined, rows_table, typed
from llem_airflow.results import StoredRun, layout
from llem_airflow.results.store import run_name, some_runs

_TEXT, _WHOLE, _TIME = pa.string(), pa.int64(), pa.timestamp("ns", tz="UTC")
_RUNS_SCHEMA = pa.schema(
    [
        ("study", _TEXT),
        ("run_id", _TEXT),
        ("run", _TEXT),
        ("state", _TEXT),
        ("started", _TIME),
        ("finished", _TIME),
        ("experiments", _WHOLE),
        ("planned", _WHOLE),
        ("valid", _WHOLE),
        ("energy_kind", _TEXT),
        ("release", _TEXT),
        ("dag_id", _TEXT),
        ("answer", _TEXT),
        ("url", _TEXT),
    ]
)


@reads
def runs_df(root: Root = None, study: str | None = None, *, strict: bool = True) -> pd.DataFrame | Both:
    """One row a run, oldest first.

    ``run`` is its name in every verb and function; ``state`` is done, not aggregated, or damaged; ``planned`` and
    ``valid`` count cycles.

    Args:
        root: Folder or URL of the results, or a ``ResultsRoot``; default: LLEM_RESULTS_ROOT, then ``./results``.
        study: Only the runs of this study.
        strict: Raise when a run is damaged; else return the frame and what is wrong.

    Raises:
        NoSuchRunError: There is no run, or no such folder; the message says what there is.
        FrameError: Strict, and a run is damaged.
    """
    problems = Problems()
    rows = [_run_row(run, problems) for run in some_runs(results_root(root), study)]
    return problems.beside(typed(rows_table(rows, _RUNS_SCHEMA)), strict=strict)


@reads
def experiments_df(runs: Runs, *, root: Root = None, strict: bool = True) -> pd.DataFrame | Both:
    """One row an experiment: each metric's mean, spread and 95 % interval over cycles, and a column for each swept key.

    Columns are those of experiments.parquet (results/README.md), each ``<metric>_n`` as a whole number.

    Args:
        runs: As ``runs_df`` gives them, or a run, or several: names, paths, URLs, stored runs.
        root: Where names are looked up; as for ``runs_df``.
        strict: Raise when a run cannot be read or was not aggregated; else return the frame and what is wrong.

    Raises:
        FrameError: Strict, and something cannot be read.
        NoSuchRunError: A name names no run.
    """
    return _of_runs(runs, root, experiments_table, EXPERIMENTS_TABLE_SCHEMA, strict=strict)


@reads
def cycles_df(runs: Runs, *, root: Root = None, strict: bool = True) -> pd.DataFrame | Both:
    """One row a planned cycle, whatever became of it (``status``, ``reason``), with a column for each swept key.

    Columns are those of cycles.parquet (results/README.md). A damaged, failed or missing cycle is a row
    without numbers.

    Args:
        runs: As for ``experiments_df``.
        root: Where names are looked up; as for ``runs_df``.
        strict: Raise when a run cannot be read or was not aggregated; else return the frame and what is wrong.

    Raises:
        FrameError: Strict, and something cannot be read.
        NoSuchRunError: A name names no run.
    """
    return _of_runs(runs, root, cycles_table, CYCLES_SCHEMA, strict=strict)


@reads
def rates_df(runs: Runs, *, root: Root = None, strict: bool = True) -> pd.DataFrame | Both:
    """One row a rate, or number of users, that a server was measured at, ascending within each configuration.

    Energies, latencies' 99th percentiles, throughput and attainment have the ends of their 95 % intervals over cycles;
    ``saturated``, ``meets_slo``, ``knee``, ``cheapest`` and ``as_cheap`` are what the report's section "Under load"
    says of it. Rates are in requests/s.

    Args:
        runs: As for ``experiments_df``.
        root: Where names are looked up; as for ``runs_df``.
        strict: Raise when a run cannot be read or was not aggregated; else return the frame and what is wrong.

    Raises:
        FrameError: Strict, and something cannot be read.
        NoSuchRunError: A name names no run.
    """
    return _of_runs(runs, root, rates_table, RATES_SCHEMA, strict=strict)


@reads
def searches_df(runs: Runs, *, root: Root = None, strict: bool = True) -> pd.DataFrame | Both:
    """One row a search for the highest rate that meets an SLO (``find_rate``), with a column for each swept key.

    ``rate_per_s`` is the highest rate that met it and ``missed_rate_per_s`` the lowest that did not, in requests/s;
    ``state`` is found, above (also the highest rate meets it), below (also the lowest misses it) or open
    (``asks_rate_per_s`` has no answer yet). ``probes`` counts the rates that were measured. Energies and the attainment
    are those at ``rate_per_s``, with the ends of their 95 % intervals over cycles.

    Args:
        runs: As for ``experiments_df``.
        root: Where names are looked up; as for ``runs_df``.
        strict: Raise when a run cannot be read or was not aggregated; else return the frame and what is wrong.

    Raises:
        FrameError: Strict, and something cannot be read.
        NoSuchRunError: A name names no run.
    """
    return _of_runs(runs, root, searches_table, SEARCHES_SCHEMA, strict=strict)


@reads
def requests_df(
    run: Runs,
    experiment: str | Iterable[str] | None = None,
    cycle: int | Iterable[int] | None = None,
    *,
    root: Root = None,
    strict: bool = True,
) -> pd.DataFrame | Both:
    """One row a request of the committed cycles, also of the warm-up (``phase``), with a column for each swept key.

    ``t_submit``, ``t_first`` and ``t_last`` are in UTC; ``ttft_s``, ``tpot_s`` and ``e2el_s`` are the latencies that
    the cycle's percentiles are made of. The run need not be aggregated.

    Args:
        run: A run; several are possible as for ``experiments_df``.
        experiment: Id of the experiment, or several; default: all.
        cycle: Which repetition, from 1, or several; default: all.
        root: Where names are looked up; as for ``runs_df``.
        strict: Raise when a cycle cannot be read; else return the frame and what is wrong.

    Raises:
        FrameError: Strict, and a cycle cannot be read.
        NoSuchRunError: A name names no run.
        ValueError: There is no such experiment or cycle.
    """
    problems, found = Problems(), stored_runs(run, root)
    asked = _asked(found, experiment, cycle, problems)

    def tables(one: StoredRun) -> Iterator[Any]:
        for ref in one.cycles():
            if _is_asked(asked, ref.experiment_id, ref.cycle):
                with problems.caught(one, ref.experiment_id, ref.cycle):
                    yield requests_table(one, ref)

    return _frame(found, tables, REQUESTS_TABLE_SCHEMA, problems, strict=strict)


@reads
def power_df(
    run: Runs,
    experiment: str | Iterable[str] | None = None,
    cycle: int | Iterable[int] | None = None,
    *,
    root: Root = None,
    strict: bool = True,
) -> pd.DataFrame | Both:
    """One row a sample of power (``t_epoch`` in UTC, ``power_instant_mw``, …), with a column for each swept key.

    Columns are those of the merged power.parquet (results/README.md). Of a large run only the row groups of the
    experiments and cycles asked for are read.

    Args:
        run: An aggregated run; several are possible as for ``experiments_df``.
        experiment: Id of the experiment, or several; default: all.
        cycle: Which repetition, from 1, or several; default: all.
        root: Where names are looked up; as for ``runs_df``.
        strict: Raise when samples that a cycle should have are absent; else return the frame and what is wrong.

    Raises:
        FrameError: Strict, and the run was not aggregated, or samples are absent.
        NoSuchRunError: A name names no run.
        ValueError: There is no such experiment or cycle.
    """
    problems, found = Problems(), stored_runs(run, root)
    asked = _asked(found, experiment, cycle, problems)

    def tables(one: StoredRun) -> Iterator[Any]:
        filters = [(name, "in", some) for name, some in asked.items()]
        yield with_run(stored_table(one, layout.POWER_TABLE, MERGED_SCHEMA, filters or None), one)
        summary = load_summary(one)
        for absent in summary.power_absent if summary else ():
            where, why = (str(absent.get("experiment")), absent.get("cycle", 0)), absent.get("reason")
            if why != NO_METER and _is_asked(asked, *where):
                problems.add(one, f"{one.url}: {where[0]} cycle {where[1]}: {why}", *where)

    return _frame(found, tables, POWER_TABLE_SCHEMA, problems, strict=strict)


def _asked(
    runs: Iterable[StoredRun], experiment: Any, cycle: Any, problems: Problems
) -> dict[str, list[Any]]:
    """The experiments and cycles that a caller wants, by the column that names them; without one where it is all.

    One that a run does not have is no problem of others.
    """
    there = []
    for run in runs:
        there += [(ref.experiment_id, ref.cycle) for ref in run.cycles()]
        with problems.caught(run):
            there += planned(run.plan()).cycles
    known = {
        "experiment": wanted(experiment, list(dict.fromkeys(name for name, _ in there)), "experiment"),
        "cycle": wanted(cycle, sorted({number for _, number in there}), "cycle"),
    }
    return {name: found for name, found in known.items() if found is not None}


def _is_asked(asked: Mapping[str, list[Any]], experiment: str, cycle: int) -> bool:
    return experiment in asked.get("experiment", [experiment]) and cycle in asked.get("cycle", [cycle])


def _of_runs(
    runs: Runs, root: Root, table: Callable[[StoredRun], Any], schema: Any, *, strict: bool
) -> pd.DataFrame | Both:
    return _frame(stored_runs(runs, root), lambda run: [table(run)], schema, Problems(), strict=strict)


def _frame(
    runs: list[StoredRun],
    tables: Callable[[StoredRun], Iterable[Any]],
    schema: Any,
    problems: Problems,
    *,
    strict: bool,
) -> pd.DataFrame | Both:
    """The tables of the runs below each other, each with a column for each key that their studies vary."""
    swept, found = Swept.of(runs, problems), []
    for run in runs:
        with problems.caught(run):
            for table in tables(run):
                found.append(swept.beside(table, run))  # noqa: PERF401  # what comes before an error stays
    return problems.beside(typed(joined(found, schema)), strict=strict)


def _run_row(run: StoredRun, problems: Problems) -> dict[str, Any]:
    row: dict[str, Any] = {"study": run.study, "run_id": run.run_id, "run": run_name(run), "url": run.url}
    row |= {"state": "damaged", "started": run.started_epoch_ns() or None}
    with problems.caught(run):
        meta, plan, stored = run.meta(), run.plan(), run.summary()
        row |= {"release": meta.get("version"), "dag_id": meta.get("dag_id")}
        row |= {"experiments": len(plan.get("experiments", ())), "planned": len(planned(plan).cycles)}
        row["state"] = "not aggregated"
        if stored:
            row["state"] = "damaged"
            summary = Summary.from_json(stored, f"{run.url}/{layout.SUMMARY}")
            row |= {name: getattr(summary, name) for name in ("planned", "valid", "energy_kind", "answer")}
            row |= {
                "experiments": len(summary.experiments),
                "finished": summary.finished_epoch_ns,
                "state": "done",
            }
    return row
