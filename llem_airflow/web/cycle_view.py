"""What the page of one cycle shows: its numbers and doubts, power over time, requests, environment, files."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llem_airflow.analysis.aggregate import midpoints_ns, thinned
from llem_airflow.analysis.cycle import read_cycle
from llem_airflow.analysis.latency import Requests, e2el_s, itl_s, ttft_s
from llem_airflow.analysis.series import Labels, columns, phases
from llem_airflow.frames.tables import write_csv
from llem_airflow.operators.outcome import line_of
from llem_airflow.protocol.gpus import POWER_CAP_BIT, SLOWDOWNS
from llem_airflow.results import CycleRef, ResultReadError, StoredRun, layout
from llem_airflow.results.parquet import read_table
from llem_airflow.results.records import is_live
from llem_airflow.web.cells import failed_attempts
from llem_airflow.web.explore import metric_facts
from llem_airflow.web.kept import Kept, file_version

POINTS = 1_200
"""Points of a series in an answer, at most: smallest and largest value of each of 600 stretches."""
SHOWN_REQUESTS = 2_000
SHOWN_VALUES = 5_000
"""Values of a distribution in an answer, at most: every k-th of the sorted ones and both ends."""
LARGEST_SAMPLES = 4_000_000
"""So many samples are kept decoded, about 50 bytes each: two cycles of 10^6 on 2 GPUs."""
_SERIES = {"power_w": 1e-3, "temperature_c": 1.0, "sm_clock_mhz": 1.0, "mem_clock_mhz": 1.0}
_REASONS = {POWER_CAP_BIT: "power cap", **SLOWDOWNS}
"""Clock event bits that slow a GPU down."""
_READ = (
    *("t_before_mono_ns", "t_after_mono_ns", "gpu", "power_instant_mw", "power_average_mw"),
    *("temperature_c", "sm_clock_mhz", "mem_clock_mhz", "event_reasons"),
)

Floats = NDArray[np.float64]


def cycle_view(
    run: StoredRun, experiment: str, cycle: int, kept: Kept, *, with_tails: bool
) -> dict[str, Any]:
    """Numbers, flags, environment, files, failed attempts of a cycle; ``measured`` is null for none.

    Args:
        run: The run.
        experiment: Id of the experiment.
        cycle: Which repetition, from 1.
        kept: Where what was worked out is kept.
        with_tails: Whether the user may see the output of attempts.
    """
    refs = [ref for ref in run.cycles(repeats=True) if (ref.experiment_id, ref.cycle) == (experiment, cycle)]
    failures = [ref for ref in run.failures() if (ref.experiment_id, ref.cycle) == (experiment, cycle)]
    reasons = [
        found[experiment, cycle]
        for found in (run.skipped(needed=False), run.skipped(needed=True))
        if (experiment, cycle) in found
    ]
    return {
        "experiment": experiment,
        "cycle": cycle,
        "reasons": reasons,
        "failures": failed_attempts(failures, with_tails=with_tails).get((experiment, cycle), []),
        "results": len(refs),
        "live": is_live(run, experiment, cycle),
        "measured": _kept(refs[-1], kept) if refs else None,
    }


def _kept(ref: CycleRef, kept: Kept) -> Any:
    """What was measured: of 10^6 samples it takes a while to work out, and it stays while the result does."""
    return kept.of_file("cycle page", ref.folder, layout.RESULT, lambda: _measured(ref))


def _measured(ref: CycleRef) -> dict[str, Any]:
    row, reading = read_cycle(ref, position=None, failed_attempts=0)
    names = [name for name, value in row.measures.items() if value is not None]
    return {
        "line": line_of(row),
        "status": row.status,
        "reason": row.reason,
        "energy_kind": row.energy_kind,
        "energy_source": row.energy_source,
        "energy_boundary": row.energy_boundary,
        "characterised": row.characterised,
        "started_epoch_ns": row.started_epoch_ns,
        "finished_epoch_ns": row.finished_epoch_ns,
        "host": row.host,
        "runner": row.runner,
        "gpus": list(row.gpus),
        "metrics": [{**metric_facts(name), "value": row.measures[name]} for name in names],
        "flags": [
            {"severity": f.severity, "code": f.code, "message": f.message, "next_step": f.next_step}
            for f in row.flags
        ],
        "environment": dict(reading.environment) if reading else {},
        "folder": ref.folder.url,
        "files": [{"name": name, "bytes": ref.folder.size(name)} for name in ref.folder.files()],
    }


@dataclass(frozen=True)
class _Decoded:
    """The samples of a cycle: seconds since its first phase, codes of the devices, values by name."""

    t_s: Floats
    gpu: Labels
    values: Mapping[str, Floats]
    reasons: Floats
    marks: tuple[tuple[str, float, float], ...]
    average: bool


class PowerSeries:
    """Decoded power of the cycles that were looked at last, for those who zoom."""

    def __init__(self, largest_samples: int = LARGEST_SAMPLES) -> None:
        self._largest = largest_samples
        self._kept: OrderedDict[tuple[str, str], _Decoded] = OrderedDict()
        self._lock = threading.Lock()

    def between(self, ref: CycleRef, begin_s: float | None, end_s: float | None) -> dict[str, Any]:
        """The series of each GPU in a stretch of time, thinned so that no extreme is lost.

        Args:
            ref: The cycle.
            begin_s: Begin of the stretch, in seconds since the first phase; None for the first sample.
            end_s: Its end; None for the last one.

        Raises:
            ResultReadError: There are no samples, or they cannot be read.
        """
        found = self._decoded(ref)
        if not len(found.t_s):
            raise ResultReadError(f"{ref.folder.url}/{layout.POWER}: the series has no samples")
        first, last = float(found.t_s.min()), float(found.t_s.max())
        begin_s = first if begin_s is None else max(first, begin_s)
        end_s = last if end_s is None else min(last, end_s)
        inside = (found.t_s >= begin_s) & (found.t_s <= end_s)
        return {
            "first_s": first,
            "last_s": last,
            "begin_s": begin_s,
            "end_s": end_s,
            "samples": int(inside.sum()),
            "average": found.average,
            "phases": [{"name": name, "begin_s": begin, "end_s": end} for name, begin, end in found.marks],
            "gpus": [
                _of_gpu(found, name, inside & (found.gpu.codes == code))
                for code, name in sorted(enumerate(found.gpu.names), key=lambda item: item[1])
            ],
        }

    def _decoded(self, ref: CycleRef) -> _Decoded:
        key = ref.folder.path, file_version(ref.folder, layout.POWER)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        found = _decode(ref)
        with self._lock:
            self._kept[key] = found
            while len(self._kept) > 1 and sum(len(one.t_s) for one in self._kept.values()) > self._largest:
                self._kept.popitem(last=False)
        return found


def _decode(ref: CycleRef) -> _Decoded:
    table = ref.power()
    found = columns(table.select([name for name in _READ if name in table.column_names]))
    mono = midpoints_ns(found)
    order = np.argsort(mono, kind="stable")
    marks = phases(ref.events())
    origin = min([phase.begin_mono_ns for phase in marks] or mono[order[:1]].tolist() or [0])
    instant = _numbers(found, "power_instant_mw", order)
    average = bool(np.isnan(instant).all())
    values = {
        "power_w": (_numbers(found, "power_average_mw", order) if average else instant) * _SERIES["power_w"]
    }
    for name in ("temperature_c", "sm_clock_mhz", "mem_clock_mhz"):
        values[name] = _numbers(found, name, order)
    return _Decoded(
        (mono[order] - origin) / 1e9,
        found["gpu"].take(order),
        values,
        _numbers(found, "event_reasons", order),
        tuple(
            (each.name, (each.begin_mono_ns - origin) / 1e9, (each.end_mono_ns - origin) / 1e9)
            for each in marks
        ),
        average,
    )


def _numbers(found: Mapping[str, Any], name: str, order: NDArray[np.int64]) -> Floats:
    return np.asarray(found[name], dtype=float)[order] if name in found else np.full(len(order), np.nan)


def _of_gpu(found: _Decoded, gpu: str, kept: NDArray[np.bool_]) -> dict[str, Any]:
    t_s = found.t_s[kept]
    series = {}
    for name in _SERIES:
        values = found.values[name][kept]
        known = ~np.isnan(values)
        if known.any():
            at, shown = thinned(t_s[known], values[known], POINTS // 2)
            series[name] = {"t_s": at.tolist(), "values": shown.tolist()}
    return {"gpu": gpu, "series": series, "slowed": _slowed(t_s, found.reasons[kept])}


def _slowed(t_s: Floats, reasons: Floats) -> list[dict[str, Any]]:
    """Stretches in which a clock event slowed the GPU down, with what it was."""
    known = ~np.isnan(reasons)
    at, bits = t_s[known], reasons[known].astype(np.int64)
    found = []
    for bit, name in _REASONS.items():
        on = np.concatenate([[False], (bits & bit) != 0, [False]])
        edges = np.flatnonzero(np.diff(on.astype(np.int8)))
        for begin, end in zip(edges[::2], edges[1::2], strict=True):
            found.append(
                {"reason": name, "begin_s": float(at[begin]), "end_s": float(at[min(end, len(at) - 1)])}
            )
    return found[:1000]


def cycle_requests(ref: CycleRef) -> dict[str, Any]:
    """The requests of the measured window on the time axis of the power, and how their latencies are distributed.

    Raises:
        ResultReadError: The requests cannot be read.
    """
    told = Requests.of(ref.requests())
    marks = phases(ref.events())
    origin = min([phase.begin_mono_ns for phase in marks] or [told.origin_ns])
    shift_s = (told.origin_ns - origin) / 1e9
    step = max(1, -(-len(told) // SHOWN_REQUESTS))
    rows = np.stack([told.submit_ns, told.first_ns, told.last_ns], axis=1)[::step] / 1e9 + shift_s
    return {
        "requests": len(told),
        "shown": [[None if np.isnan(value) else float(value) for value in row] for row in rows],
        "latencies": {
            name: _distribution(values)
            for name, values in (("ttft", ttft_s(told)), ("itl", itl_s(told)), ("e2el", e2el_s(told)))
        },
    }


def _distribution(values_s: Floats) -> dict[str, Any]:
    known = np.sort(values_s[~np.isnan(values_s)])
    if len(known) > SHOWN_VALUES:
        known = known[np.unique(np.linspace(0, len(known) - 1, SHOWN_VALUES).astype(np.int64))]
    return {"n": int((~np.isnan(values_s)).sum()), "values_s": known.tolist()}


def csv_of(ref: CycleRef, name: str) -> bytes:
    """A table of a cycle as CSV; lists become JSON text.

    Raises:
        ResultReadError: It cannot be read.
    """
    target = io.BytesIO()
    write_csv([read_table(ref.folder, name)], target)
    return target.getvalue()
