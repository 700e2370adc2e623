"""What each run of a study measured of a metric, read narrowly, and what was around it: release, engine, image, driver.

A year of nights x 100 experiments is a million cells of cycles.parquet in this way, and forty times that with all.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

from llem_airflow.analysis.blocked import are_several
from llem_airflow.analysis.cycle import FACTORS, HAS_RESULT
from llem_airflow.protocol.gpus import gpus_told
from llem_airflow.results import StoredRun, layout
from llem_airflow.results.parquet import TableFile

AROUND = ("release", "engine", "image", "driver", "gpu", "measured by")
"""What a history marks where it changed."""

_READ = ("experiment", "status", "hash")
_OPTIONAL = ("fingerprint", "host")
"""Columns that tables of older releases may not have, the metrics among them."""


class Measured(NamedTuple):
    """What one run measured of one experiment.

    Attributes:
        experiment: Id of the experiment.
        identity: Its hash, 16 hex digits.
        values: The metric's value of each cycle.
        conditions: Fingerprint without the factors, as a short text; only equal ones are joined.
        around: What was around it, by the names of AROUND, as text; what is not known is left out.
        hosts: The host of each value, where they are several.
    """

    experiment: str
    identity: str
    values: tuple[float, ...]
    conditions: str
    around: Mapping[str, str]
    hosts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Night:
    """One run of a study.

    Attributes:
        run_id: Id of the run.
        t_epoch_ns: When it began.
        release: Model release that it measured; empty for none.
        measured: Its experiments that have a value of the metric.
    """

    run_id: str
    t_epoch_ns: int
    release: str
    measured: tuple[Measured, ...]


class Around(NamedTuple):
    """Where something around an experiment changed.

    Attributes:
        run_id: The first run with the new one.
        what: One of AROUND.
        before: What it was, as text.
        after: What it is.
    """

    run_id: str
    what: str
    before: str
    after: str


class _Rows(NamedTuple):
    """Where a table of cycles has an experiment, and what its rows say besides values.

    Attributes:
        experiment: Id of the experiment.
        identity: Its hash, 16 hex digits.
        at: Its rows that have a value.
        conditions: As in ``Measured``.
        around: As in ``Measured``.
        hosts: As in ``Measured``.
    """

    experiment: str
    identity: str
    at: tuple[int, ...]
    conditions: str
    around: Mapping[str, str]
    hosts: tuple[str, ...]


Alike = dict[tuple[Any, ...], tuple[_Rows, ...]]
"""Rows by the bytes of the file that they were read from: night after night a study measures the same experiments."""
_ALIKE = 16
"""So many are kept: nights that differ each time gain nothing, and should not fill the memory."""
_ROW_BYTES = 400
"""About so much memory a row of ``_Rows`` takes."""


@dataclass(frozen=True, slots=True)
class Column:
    """What a table of cycles says of a metric: its values, and rows that tables of other nights share.

    Attributes:
        rows: The experiments that have a value.
        values: The metric's value of each row of the table; NaN where there is none.
        shared: Whether the rows are those of a table that was read before.
    """

    rows: tuple[_Rows, ...] = ()
    values: array[float] = field(default_factory=lambda: array("d"))
    shared: bool = False

    def measured(self) -> tuple[Measured, ...]:
        """The experiments, in the order of the table."""
        values = self.values.tolist()
        return tuple(
            [
                Measured(name, identity, tuple([values[row] for row in at]), conditions, around, hosts)
                for name, identity, at, conditions, around, hosts in self.rows
            ]
        )

    def size(self) -> int:
        """How many bytes of memory it takes, about."""
        return 8 * len(self.values) + (0 if self.shared else _ROW_BYTES * len(self.rows)) + _ROW_BYTES


def measured(run: StoredRun, metric: str, alike: Alike | None = None) -> tuple[Measured, ...]:
    """The experiments of a run that have a value of a metric; arguments and errors as of ``column``."""
    return column(run, metric, alike).measured()


def column(run: StoredRun, metric: str, alike: Alike | None = None) -> Column:
    """What a run measured of a metric.

    Args:
        run: The run.
        metric: Name of the metric.
        alike: What was read of other runs, so that of tables that differ in their values alone only these are read.

    Raises:
        ResultReadError: The table of cycles does not read.
    """
    file = TableFile.of(run.folder, layout.CYCLES_TABLE)
    found = file.read([metric], optional=(metric,))
    if metric not in found.column_names:
        return Column()
    values = found[metric].cast("float64")
    nulls = tuple(values.is_null().to_pylist()) if values.null_count else ()
    told = (*file.stored((*_READ, *_OPTIONAL)), nulls)
    alike = {} if alike is None else alike
    shared = told in alike
    if not shared:
        if len(alike) >= _ALIKE:
            alike.clear()
        texts = file.read([*_READ, *_OPTIONAL], optional=_OPTIONAL)
        alike[told] = _rows(texts.append_column(metric, values), metric)
    numbers = array("d")
    numbers.frombytes(values.to_numpy().tobytes())
    return Column(alike[told], numbers, shared)


def _rows(table: Any, metric: str) -> tuple[_Rows, ...]:
    """Of each experiment the rows that have a value."""
    column = {name: table[name].to_pylist() for name in table.column_names}
    nothing = [None] * table.num_rows
    rows: dict[tuple[str, str], list[int]] = {}
    for at, (identity, experiment, status, value) in enumerate(
        zip(column["hash"], column["experiment"], column["status"], column[metric], strict=True)
    ):
        if status in HAS_RESULT and value is not None and identity:
            rows.setdefault((str(identity), str(experiment)), []).append(at)
    hosts, fingerprints = column.get("host", nothing), column.get("fingerprint", nothing)
    spread = are_several([host or "" for host in hosts])
    return tuple(
        _Rows(
            experiment,
            identity,
            tuple(own),
            "|".join(sorted({_told(fingerprints[at] or "{}")[0] for at in own})),
            _told(fingerprints[own[0]] or "{}")[1],
            _hosts([str(hosts[at] or "") for at in own]) if spread else (),
        )
        for (identity, experiment), own in rows.items()
    )


def _hosts(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(names) if are_several(names) else ()


def changes_around(nights: Sequence[Night]) -> dict[str, list[Around]]:
    """Where release, engine, image, driver, GPU or measuring code changed, oldest first, by id of the experiment.

    A run that does not tell one of them changes nothing. An id stays the same over the releases of a model.

    Args:
        nights: Oldest first.
    """
    known: dict[str, dict[str, str]] = {}
    found: dict[str, list[Around]] = {}
    for night in nights:
        for one in night.measured:
            before = known.setdefault(one.experiment, {})
            for what in AROUND:
                after = night.release if what == "release" else one.around.get(what)
                if not after or before.get(what) == after:
                    continue
                if what in before:
                    found.setdefault(one.experiment, []).append(
                        Around(night.run_id, what, before[what], after)
                    )
                before[what] = after
    return found


@lru_cache(maxsize=2_048)
def _told(fingerprint: str) -> tuple[str, Mapping[str, str]]:
    """The conditions of a fingerprint as a short text that begins with the kind of its energy, and what is around.

    Conditions are without the factors: a history looks for what a new engine version does, not a new GPU.
    """
    fields: dict[str, Any] = json.loads(fingerprint)
    rest = json.dumps({k: v for k, v in fields.items() if k not in FACTORS}, sort_keys=True)
    digest = hashlib.sha256(rest.encode()).hexdigest()[:16]
    engine = " ".join(str(fields[key]) for key in ("engine", "engine_version") if fields.get(key))
    around = {
        "engine": engine,
        "image": str(fields.get("image_digest") or ""),
        "driver": str(fields.get("driver") or ""),
        "gpu": ", ".join(str(gpu.get("name") or gpu.get("uuid") or "") for gpu in gpus_told(fields)),
        "measured by": str(fields.get("measured_by") or ""),
    }
    return f"{fields.get('energy_kind', '')} {digest}", {key: text for key, text in around.items() if text}
