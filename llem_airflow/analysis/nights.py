"""What each run of a study measured of a metric, read narrowly, and what was around it: release, engine, image, driver.

A year of nights x 100 experiments is a million cells of cycles.parquet in this way, and forty times that with all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple

from llem_airflow.analysis.blocked import are_several
from llem_airflow.analysis.cycle import FACTORS, HAS_RESULT
from llem_airflow.protocol.spec import gpus_told
from llem_airflow.results import StoredRun, layout
from llem_airflow.results.parquet import read_table

AROUND = ("release", "engine", "image", "driver", "gpu", "measured by")
"""What a history marks where it changed."""

_READ = ("experiment", "status", "hash", "energy_kind")
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


def measured(run: StoredRun, metric: str) -> tuple[Measured, ...]:
    """The experiments of a run that have a value of a metric, in the order of the table.

    Raises:
        ResultReadError: The table of cycles does not read.
    """
    table = read_table(
        run.folder, layout.CYCLES_TABLE, [*_READ, *_OPTIONAL, metric], optional=(*_OPTIONAL, metric)
    )
    column = {name: table[name].to_pylist() for name in table.column_names if name != "fingerprint"}
    nothing = [None] * table.num_rows
    rows: dict[tuple[str, str], list[int]] = {}
    for at, (identity, experiment, status, value) in enumerate(
        zip(column["hash"], column["experiment"], column["status"], column.get(metric, nothing), strict=True)
    ):
        if status in HAS_RESULT and value is not None and identity:
            rows.setdefault((str(identity), str(experiment)), []).append(at)
    if not rows:
        return ()
    values, hosts, (fingerprint, texts) = column[metric], column.get("host", nothing), _fingerprints(table)
    spread, told = are_several([host or "" for host in hosts]), [_told(text) for text in texts]
    return tuple(
        Measured(
            experiment,
            identity,
            tuple([float(values[at]) for at in own]),
            "|".join(sorted({told[fingerprint[at]][0] for at in own})),
            told[fingerprint[own[0]]][1],
            _hosts([str(hosts[at] or "") for at in own]) if spread else (),
        )
        for (identity, experiment), own in rows.items()
    )


def _fingerprints(table: Any) -> tuple[list[int], list[str]]:
    """The fingerprint of each row as its place among the texts, which are long and nearly all the same."""
    if "fingerprint" not in table.column_names:
        return [0] * table.num_rows, ["{}"]
    coded = table["fingerprint"].combine_chunks().dictionary_encode("encode")
    return coded.indices.to_pylist(), [text or "{}" for text in coded.dictionary.to_pylist()]


def _hosts(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(names) if are_several(names) else ()


def plain(found: Sequence[Measured]) -> dict[str, Any]:
    """The same as plain JSON values; what many experiments share stands there once."""
    place: dict[tuple[tuple[str, str], ...], int] = {}
    known: dict[int, int] = {}  # most of them share one object
    for one in found:
        if id(one.around) not in known:
            known[id(one.around)] = place.setdefault(tuple(one.around.items()), len(place))
    rows = [
        (
            *(one.experiment, one.identity, one.values, one.conditions, known[id(one.around)]),
            *([one.hosts] if one.hosts else []),
        )
        for one in found
    ]
    return {"around": [dict(one) for one in place], "measured": rows}


def from_plain(told: Mapping[str, Any]) -> tuple[Measured, ...]:
    """What ``plain`` told."""
    around = told["around"]
    return tuple(
        Measured(experiment, identity, tuple(values), conditions, around[place], tuple(chain(*hosts)))
        for experiment, identity, values, conditions, place, *hosts in told["measured"]
    )


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
