"""A run as series of points: tags that name what was measured, times, and numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from llem_airflow.analysis.metrics import METRICS
from llem_airflow.frames.asked import Swept
from llem_airflow.frames.tables import cycles_table, power_tables
from llem_airflow.results import StoredRun

DEVICE, CYCLE = "llem_device", "llem_cycle"
"""Names of the two tables (measurements): one point a sample of a device; one point a valid cycle, at its end."""

DEVICE_TAGS = ("study", "run_id", "experiment", "cycle", "phase", "gpu", "host", "energy_kind")
CYCLE_TAGS = (
    *("study", "run_id", "experiment", "cycle", "engine", "engine_version", "model", "host", "runner"),
    *("energy_kind", "doubtful"),
)
DEVICE_FIELDS = {
    "power_instant_w": ("power_instant_mw", 1e-3),
    "power_average_w": ("power_average_mw", 1e-3),
    "energy_j": ("energy_mj", 1e-3),
    "sm_clock_mhz": ("sm_clock_mhz", 1.0),
    "mem_clock_mhz": ("mem_clock_mhz", 1.0),
    "temperature_c": ("temperature_c", 1.0),
    "mem_temperature_c": ("mem_temperature_c", 1.0),
    "utilisation_percent": ("utilisation_percent", 1.0),
    "memory_used_bytes": ("memory_used_bytes", 1.0),
}
"""Fields of a sample: the column of the merged power.parquet, and what makes its unit ours."""

CYCLE_FIELDS = (*(metric.name for metric in METRICS), "energy_uncertainty_j")


@dataclass(frozen=True)
class Series:
    """Points that have their tags in common.

    Attributes:
        table: ``DEVICE`` or ``CYCLE``.
        tags: What names it. One that is not known is left out.
        factors: The values of the swept keys, by dotted key.
        t_ns: Times, in nanoseconds since the epoch, ascending. Shape (points,).
        fields: Numbers, by name. Shape (points,) each; NaN is not known.
    """

    table: str
    tags: Mapping[str, str]
    factors: Mapping[str, Any]
    t_ns: NDArray[np.int64]
    fields: Mapping[str, NDArray[np.float64]]

    def labels(self) -> dict[str, str]:
        """Tags and factors as text, for databases that know only that."""
        told = {key: _text(value) for key, value in self.factors.items() if value is not None}
        return told | dict(self.tags)


def series_of(run: StoredRun, *, power: bool = True) -> Iterator[list[Series]]:
    """A run's series in parts that fit in memory: the samples in the order of the run, then the cycles' numbers.

    Args:
        run: An aggregated run.
        power: Whether the samples are wanted.

    Raises:
        ResultReadError: The run was not aggregated, or something of it does not open.
    """
    swept = Swept.of_run(run)
    rows = cycles_table(run).to_pylist()
    facts = {(row["experiment"], row["cycle"]): row for row in rows}
    for part in power_tables(run) if power else ():
        yield list(_power(part, run, swept, facts))
    yield [
        _cycle(row, swept.of_experiment(run, row["experiment"])) for row in rows if row["status"] == "valid"
    ]


def _power(
    table: Any, run: StoredRun, swept: Swept, facts: Mapping[Any, Mapping[str, Any]]
) -> Iterator[Series]:
    if not table.num_rows:
        return
    names = {key: table.column(key).combine_chunks() for key in ("experiment", "phase", "gpu")}
    told = {key: _decoded(column) for key, column in names.items()}
    cycle = table.column("cycle").to_numpy()
    codes = np.stack([*(codes for codes, _ in told.values()), cycle])
    groups, group = np.unique(codes, axis=1, return_inverse=True)
    t_ns = table.column("t_epoch").cast(pa.int64()).to_numpy()
    fields = {name: _numbers(table.column(column), scale) for name, (column, scale) in DEVICE_FIELDS.items()}
    known = ~np.all([np.isnan(values) for values in fields.values()], axis=0)
    for index in range(groups.shape[1]):
        mine = np.flatnonzero((group.ravel() == index) & known)
        if not mine.size:
            continue
        mine = mine[np.argsort(t_ns[mine], kind="stable")]
        experiment, phase, gpu = (
            words[code] for (_, words), code in zip(told.values(), groups[:3, index], strict=True)
        )
        of_cycle = facts.get((experiment, int(groups[3, index])), {})
        tags = {
            **{"study": run.study, "run_id": run.run_id, "experiment": experiment},
            **{"cycle": int(groups[3, index]), "phase": phase, "gpu": gpu},
            **{key: of_cycle.get(key) for key in ("host", "energy_kind")},
        }
        yield Series(
            DEVICE,
            _told(tags),
            _factors(swept.of_experiment(run, experiment), tags),
            t_ns[mine],
            {name: values[mine] for name, values in fields.items() if not np.isnan(values[mine]).all()},
        )


def _cycle(row: Mapping[str, Any], factors: Mapping[str, Any]) -> Series:
    tags = {key: row[key] for key in CYCLE_TAGS}
    fields = {name: row.get(name) for name in CYCLE_FIELDS}
    at_ns = int(row["finished"].timestamp() * 1e6) * 1000
    return Series(
        CYCLE,
        _told(tags),
        _factors(factors, tags),
        np.array([at_ns], dtype=np.int64),
        {name: np.array([value], dtype=float) for name, value in fields.items() if value is not None},
    )


def _decoded(column: Any) -> tuple[NDArray[np.int64], list[str | None]]:
    """Codes and words of a column of names; null is a word of its own, the last."""
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    words = encoded.dictionary.to_pylist()
    return encoded.indices.fill_null(len(words)).to_numpy(zero_copy_only=False).astype(np.int64), [
        *words,
        None,
    ]


def _numbers(column: Any, scale: float) -> NDArray[np.float64]:
    values: NDArray[np.float64] = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return values * scale


def _told(tags: Mapping[str, Any]) -> dict[str, str]:
    return {key: _text(value) for key, value in tags.items() if value is not None and value != ""}


def _factors(factors: Mapping[str, Any], tags: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in factors.items() if key not in tags}


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
