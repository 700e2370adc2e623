"""The tables of a run as Arrow tables: what the frames and `results export` are made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llem_airflow.analysis.across_rates import Ladder, ladders
from llem_airflow.analysis.latency import COLUMNS, Requests, e2el_s, tpot_s, ttft_s
from llem_airflow.analysis.rate_search import FoundRate, found_rate
from llem_airflow.analysis.series import epoch_ns
from llem_airflow.analysis.summary import ExperimentSummary, load_summary
from llem_airflow.analysis.tables import STATISTICS
from llem_airflow.results import CycleRef, ResultReadError, StoredRun, layout
from llem_airflow.results.folder import first_line
from llem_airflow.results.parquet import REQUESTS_SCHEMA

_NAMES = pa.dictionary(pa.int32(), pa.string())
_TIME = pa.timestamp("ns", tz="UTC")
_TIMES = ("t_submit", "t_first", "t_last")
_LATENCIES = {"ttft_s": ttft_s, "tpot_s": tpot_s, "e2el_s": e2el_s}
_OF_CYCLE = [("study", _NAMES), ("run_id", _NAMES), ("experiment", _NAMES), ("cycle", pa.int32())]

REQUESTS_TABLE_SCHEMA = pa.schema(
    [
        *_OF_CYCLE,
        *REQUESTS_SCHEMA,
        *((name, _TIME) for name in _TIMES),
        *((name, pa.float64()) for name in _LATENCIES),
    ]
)
"""Columns of the requests: where they come from, what is stored of each, its times in UTC, its latencies."""

_AT_THE_RATE = ("energy_per_output_token_j", "energy_per_good_request_j", "slo_attainment_ratio")
SEARCHES_SCHEMA = pa.schema(
    [
        ("study", pa.string()),
        ("run_id", pa.string()),
        ("experiment", pa.string()),
        ("state", pa.string()),
        ("rate_per_s", pa.float64()),
        ("missed_rate_per_s", pa.float64()),
        ("asks_rate_per_s", pa.float64()),
        ("close", pa.bool_()),
        ("from_rate_per_s", pa.float64()),
        ("to_rate_per_s", pa.float64()),
        ("percentile_ratio", pa.float64()),
        ("probes", pa.int64()),
        ("max_probes", pa.int64()),
        *((f"{name}{end}", pa.float64()) for name in _AT_THE_RATE for end in ("", "_low", "_high")),
    ]
)
"""Columns of the searches for the highest rate that meets an SLO (``find_rate``): a row each.

``experiment`` is the candidate at ``rate_per_s``; where no rate has met the SLO, the one at the lowest rate. ``close``
says that one of the two rates around the answer could well be answered the other way by another measurement.
"""

_OF_A_RATE = (
    "requests_per_s",
    "output_tokens_per_s",
    "average_power_w",
    "idle_share_ratio",
    "ttft_p99_s",
    "e2el_p99_s",
    *_AT_THE_RATE,
)
RATES_SCHEMA = pa.schema(
    [
        ("study", pa.string()),
        ("run_id", pa.string()),
        ("experiment", pa.string()),
        ("configuration", pa.string()),
        ("rate_per_s", pa.float64()),
        ("concurrency_users", pa.float64()),
        ("saturated", pa.bool_()),
        ("meets_slo", pa.bool_()),
        ("knee", pa.bool_()),
        ("cheapest", pa.bool_()),
        ("as_cheap", pa.bool_()),
        *((f"{name}{end}", pa.float64()) for name in _OF_A_RATE for end in ("", "_low", "_high")),
    ]
)
"""Columns of the rates, or numbers of users, that servers were measured at: a row each.

``configuration`` is what sets the server apart from others of the run. ``knee``: from here on the latency's tail turns
up. ``cheapest``: the least energy per output token of those that meet the SLO and are not saturated; ``as_cheap``:
another such whose interval of that energy meets the cheapest's.
"""


def stored_table(run: StoredRun, name: str, filters: Any = None) -> Any:
    """A table of an aggregated run.

    Args:
        run: The run.
        name: Name of its file.
        filters: As for ``pq.read_table``: only the row groups that can hold such rows are read.

    Raises:
        ResultReadError: The run was not aggregated, or the file does not open.
    """
    require_aggregated(run, name)
    try:
        found = pq.read_table(
            f"{run.folder.path}/{name}", filesystem=run.folder.fs, filters=filters, partitioning=None
        )
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(run, name, error) from error
    _require_experiments(run, name, found.column_names)
    return found


def _require_experiments(run: StoredRun, name: str, columns: Sequence[str]) -> None:
    """A table that says nothing of experiments is another one, whatever its name."""
    if "experiment" not in columns:
        raise ResultReadError(f"{run.url}/{name}: there is no column experiment")


def _unreadable(run: StoredRun, name: str, error: Exception) -> ResultReadError:
    return ResultReadError(f"{run.url}/{name}: cannot be read: {first_line(error)}")


def require_aggregated(run: StoredRun, name: str) -> None:
    """Raise ResultReadError when a run has no such table, or summary."""
    if not run.folder.exists(name):
        raise ResultReadError(f"{run.url}: not aggregated yet; `llem-airflow report {run.url}` does it")


def cycles_table(run: StoredRun) -> Any:
    """The cycles of a run."""
    return stored_table(run, layout.CYCLES_TABLE)


def power_tables(run: StoredRun) -> Iterator[Any]:
    """The samples of power of a run, a row group at a time; one table without rows where there is none.

    Raises:
        ResultReadError: The run was not aggregated, or the file does not open.
    """
    require_aggregated(run, layout.POWER_TABLE)
    try:
        with run.folder.open(layout.POWER_TABLE) as file:
            stored = pq.ParquetFile(file)
            _require_experiments(run, layout.POWER_TABLE, stored.schema_arrow.names)
            for group in range(stored.num_row_groups):
                yield stored.read_row_group(group)
            if not stored.num_row_groups:
                yield stored.schema_arrow.empty_table()
    except pa.ArrowException as error:
        raise _unreadable(run, layout.POWER_TABLE, error) from error


def experiments_table(run: StoredRun) -> Any:
    """The experiments of a run; numbers of cycles are whole numbers, also in files that hold them as others."""
    table = stored_table(run, layout.EXPERIMENTS_TABLE)
    counts = {f"_{key}" for key, _ in STATISTICS if key == "n"}
    for index, field in enumerate(table.schema):
        if field.name[-2:] in counts and pa.types.is_floating(field.type):
            table = table.set_column(index, field.name, table.column(index).cast(pa.int64()))
    return table


def searches_table(run: StoredRun) -> Any:
    """What each search of an aggregated run has found; without rows where it searches for nothing.

    Raises:
        ResultReadError: The run was not aggregated, or its summary is damaged.
    """
    require_aggregated(run, layout.SUMMARY)
    summary = load_summary(run)
    experiments = {one.id: one for one in summary.experiments} if summary else {}
    found = [found_rate(one, experiments) for one in (summary.searches if summary else ())]
    return pa.Table.from_pylist([_search_row(run, one) for one in found], SEARCHES_SCHEMA)


def _search_row(run: StoredRun, found: FoundRate) -> dict[str, Any]:
    met, missed, search = found.highest_met, found.lowest_missed, found.search
    row: dict[str, Any] = {
        "study": run.study,
        "run_id": run.run_id,
        "experiment": met.experiment.id if met else search.experiments[0],
        "state": found.state,
        "rate_per_s": met.rate_per_s if met else None,
        "missed_rate_per_s": missed.rate_per_s if missed else None,
        "asks_rate_per_s": found.asks_per_s,
        "close": any(one.close for one in (met, missed) if one) if found.probes else None,
        "from_rate_per_s": search.rates_per_s[0],
        "to_rate_per_s": search.rates_per_s[-1],
        "percentile_ratio": search.percentile,
        "probes": len(found.probes),
        "max_probes": search.max_probes,
    }
    return row | (_with_intervals(met.experiment, _AT_THE_RATE) if met else {})


def rates_table(run: StoredRun) -> Any:
    """What the servers of an aggregated run did at each of their rates; without rows for a run of batches.

    Raises:
        ResultReadError: The run was not aggregated, or its summary is damaged.
    """
    require_aggregated(run, layout.SUMMARY)
    summary = load_summary(run)
    servers = ladders(summary.experiments) if summary else ()
    return pa.Table.from_pylist([row for one in servers for row in _rate_rows(run, one)], RATES_SCHEMA)


def _rate_rows(run: StoredRun, server: Ladder) -> Iterator[dict[str, Any]]:
    for level in server.levels:
        row = {
            "study": run.study,
            "run_id": run.run_id,
            "experiment": level.experiment.id,
            "configuration": ", ".join(f"{key}={value}" for key, value in server.factors),
            "rate_per_s": None if server.closed else level.load,
            "concurrency_users": level.load if server.closed else None,
            "saturated": level.saturated,
            "meets_slo": level.meets_slo,
            "knee": level is server.knee,
            "cheapest": level is server.cheapest,
            "as_cheap": level in server.as_cheap,
        }
        yield row | _with_intervals(level.experiment, _OF_A_RATE)


def _with_intervals(experiment: ExperimentSummary, names: Sequence[str]) -> dict[str, float]:
    row: dict[str, float] = {}
    for name in names:
        if known := experiment.metric(name):
            row[name] = known.all.mean
            if known.all.interval:
                row |= {f"{name}_low": known.all.interval.low, f"{name}_high": known.all.interval.high}
    return row


def requests_table(run: StoredRun, ref: CycleRef) -> Any:
    """The requests of a committed cycle, with absolute times and latencies.

    Raises:
        ResultReadError: The requests or the result are damaged or absent.
    """
    table, anchors = ref.requests(), ref.result().anchors
    if absent := sorted(set(COLUMNS) - set(table.column_names)):
        raise ResultReadError(f"{ref.folder.url}/{layout.REQUESTS}: there is no column {absent[0]}")
    for index, (name, kind) in enumerate(_OF_CYCLE):
        table = table.add_column(index, name, _same(_cycle_facts(run, ref)[name], kind, table.num_rows))
    for name in _TIMES:
        table = table.append_column(name, _absolute(table.column(f"{name}_mono_ns"), anchors))
    told = Requests.of(table, phase=None)
    for name, latency in _LATENCIES.items():
        table = table.append_column(name, pa.array(latency(told), from_pandas=True))
    return table


def with_run(table: Any, run: StoredRun) -> Any:
    """A table that has no columns for study and run, with them."""
    for index, (name, text) in enumerate({"study": run.study, "run_id": run.run_id}.items()):
        table = table.add_column(index, name, _same(text, _NAMES, table.num_rows))
    return table


def _cycle_facts(run: StoredRun, ref: CycleRef) -> dict[str, Any]:
    return {"study": run.study, "run_id": run.run_id, "experiment": ref.experiment_id, "cycle": ref.cycle}


def _same(value: Any, kind: Any, rows: int) -> Any:
    """One value for all rows."""
    if not pa.types.is_dictionary(kind):
        return pa.array(np.full(rows, value), kind)
    indices = pa.array(np.zeros(rows, dtype=np.int32))
    return pa.DictionaryArray.from_arrays(indices, pa.array([value], pa.string()))


def _absolute(mono_ns: Any, anchors: Sequence[Any]) -> Any:
    """Monotonic times in UTC; null where the time, or every anchor, is not known."""
    if not anchors:
        return pa.nulls(len(mono_ns), _TIME)
    unknown = pc.is_null(mono_ns).to_numpy(zero_copy_only=False)
    known = pc.fill_null(mono_ns, 0).to_numpy(zero_copy_only=False)
    return pa.array(epoch_ns(known, anchors), mask=unknown).cast(_TIME)
