"""A results folder of llenergymeasure (bundles of version 2.0) as a run of ours.

Its energy is taken as it was reported: a reading of 0 J at the window's begin and one of the reported joules at its
end, by a meter named after it. Samples, requests and edges behind the number are not kept there, so nothing here
pretends to know them.
"""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llem_airflow.protocol import PROTOCOL_VERSION
from llem_airflow.protocol import files as raw
from llem_airflow.protocol.records import POWER_COLUMNS
from llem_airflow.protocol.result import Anchor, CycleResult, Meter, Warmup, Window
from llem_airflow.protocol.spec import ExperimentSpec, Limits, MeterSpec, ModelSource, Prompts
from llem_airflow.results.folder import ResultReadError
from llem_airflow.results.store import ResultsRoot, StoredRun

PEER_METER = "llenergymeasure"
"""Kind of the meter of an imported cycle: its joules are as reported, and no condition of ours equals it."""
BUNDLE_VERSION = "2.0"
_CYCLE = re.compile(r"(?:\d+_)?c(?P<cycle>[1-9]\d*)_.+")
_S = 1_000_000_000
MOST_JOULES = 1e12
"""A megawatt for eleven days: no benchmark of one machine comes near it."""
MOST_WATTS = 1e6
_MOST_S, _MOST_TOKENS = 1e7, 1e12
_SAMPLE_FIELDS = {"power_w": MOST_WATTS, "timestamp_s": 1e9, "gpu_index": 4096}
"""Fields of a sample with the largest value that each can have."""


@dataclass(frozen=True)
class Bundle:
    """One bundle: a cycle of one configuration.

    Attributes:
        folder: Where it lies.
        result: Its result.json.
        config: Its config.json; empty when absent.
        system: Its system.json; empty when absent.
        cycle: Which repetition, from 1.
    """

    folder: Path
    result: Mapping[str, Any]
    config: Mapping[str, Any]
    system: Mapping[str, Any]
    cycle: int

    @property
    def hash(self) -> str:
        """Its identity there."""
        return str(self.result["declared_config_hash"])

    @property
    def slug(self) -> str:
        """Readable name."""
        model = str(self.result.get("model_name", "unknown")).rsplit("/", 1)[-1]
        return f"{model}-{self.result.get('engine', 'unknown')}".lower()

    @property
    def experiment_id(self) -> str:
        """Its id here."""
        return f"{self.slug}-{self.hash[:8]}"

    @property
    def declared(self) -> dict[str, Any]:
        """Its configuration."""
        return dict(self.config.get("declared_config") or {})

    @property
    def begin_ns(self) -> int:
        """When it began, in nanoseconds since 1970."""
        return _epoch_ns(self.result["start_time"])

    @property
    def window_ns(self) -> int:
        """Length of its measured window."""
        return round(float(self.result["total_inference_time_sec"]) * _S)


def import_folder(folder: Path, root: ResultsRoot, study: str | None = None) -> tuple[StoredRun, list[str]]:
    """Make a run of the bundles in a folder. Importing the same again changes nothing.

    Returns:
        The run, and one message for each bundle that could not be read.

    Raises:
        ResultReadError: There is no such folder, or no bundle in it that can be read.
        ResultsWriteError: The run cannot be written.
    """
    if not folder.is_dir():
        raise ResultReadError(f"{folder}: no such folder; give a results folder of llenergymeasure")
    bundles, problems = _bundles(folder)
    if not bundles:
        reasons = "; ".join(problems) or "no folder in it has a result.json"
        raise ResultReadError(
            f"{folder}: nothing to import: {reasons}; give a results folder of llenergymeasure"
        )
    run = root.run(study or folder.resolve().name, f"imported-{folder.resolve().name}")
    run.write_plan(
        f"# Imported from llenergymeasure: {folder.resolve().name}\n",
        _plan(bundles),
        {"started_epoch_ns": min(one.begin_ns for one in bundles), "imported_from": PEER_METER},
    )
    for one in bundles:
        with tempfile.TemporaryDirectory(prefix="llem-import-") as aside:
            problems += _write(one, Path(aside), run.study)
            run.commit_cycle(one.experiment_id, one.cycle, Path(aside), _provenance(one))
    return run, problems


def _bundles(folder: Path) -> tuple[list[Bundle], list[str]]:
    found, problems = [], []
    for file in sorted(folder.glob("*/result.json")):
        try:
            found.append(_bundle(file.parent))
        except BundleError as error:
            problems.append(str(error))
    return sorted(found, key=lambda one: (one.begin_ns, one.folder.name)), problems


def _bundle(folder: Path) -> Bundle:
    file = folder / "result.json"
    version = _version(file)
    if version != BUNDLE_VERSION:
        raise BundleError(f"{file}: bundle_version {version!r}; this release reads {BUNDLE_VERSION}")
    named = _CYCLE.fullmatch(folder.name)
    config, system = read_object(folder / "config.json"), read_object(folder / "system.json")
    return Bundle(folder, read_object(file), config, system, int(named["cycle"]) if named else 1)


def _version(file: Path) -> Any:
    """Version of a bundle, before its fields are looked at: those of another one may be others."""
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{file}: not JSON: {str(error).splitlines()[0]}") from error
    return found.get("bundle_version") if isinstance(found, dict) else None


def _plan(bundles: Sequence[Bundle]) -> dict[str, Any]:
    experiments = {one.experiment_id: one for one in bundles}
    return {
        "cycles": max(Counter(one.experiment_id for one in bundles).values()),
        "experiments": [
            {
                "id": name,
                "slug": one.slug,
                "hash": one.hash,
                "engine": str(one.result.get("engine", "")),
                "config": one.declared or {"task": {"model": one.result.get("model_name")}},
            }
            for name, one in experiments.items()
        ],
        "order": [{"experiment": one.experiment_id, "cycle": one.cycle} for one in bundles],
        "skipped": [],
    }


def _write(one: Bundle, aside: Path, study: str) -> list[str]:
    """The files that an attempt of ours would have left, as far as the bundle tells; what of it could not be read."""
    devices = _devices(one)
    samples, problems = _samples(one.folder / "timeseries.parquet") if devices else ([], [])
    rows = _power_rows(one, devices, samples)
    (aside / f"{one.hash}_config.json").write_text(_spec(one, study).dumps())
    (aside / f"{one.hash}_result.json").write_text(_result(one, devices, len(rows)).dumps())
    (aside / raw.ENVIRONMENT).write_text(json.dumps(_environment(one, devices)))
    with (aside / raw.POWER).open("w", newline="") as file:
        writer = csv.DictWriter(file, POWER_COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    shutil.copyfile(one.folder / "result.json", aside / "llenergymeasure_result.json")
    return problems


def _samples(file: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Samples of power that can be true, and what is wrong with the others."""
    if not file.exists():
        return [], []
    try:
        rows = pq.read_table(file).to_pylist()
    except (OSError, pa.ArrowException) as error:
        return [], [f"{file}: cannot be read: {str(error).splitlines()[0]}"]
    kept, wrong = [], Counter[str]()
    for row in rows:
        if row.get("power_w") is None:
            continue
        bad = [name for name, most in _SAMPLE_FIELDS.items() if not is_number_of(most, row.get(name))]
        wrong.update(bad[:1])
        if not bad:
            kept.append(row)
    return kept, [
        f"{file}: {name}: {count} of {len(rows)} samples cannot be; they are left out"
        for name, count in wrong.items()
    ]


def _devices(one: Bundle) -> dict[str, float]:
    """Joules by device; one device stands for all where they were not told apart, none where nothing was measured."""
    total = float(one.result.get("total_energy_j") or 0.0)
    if total <= 0:
        return {}
    each = [float(joules) for joules in one.result.get("energy_per_device_j") or ()]
    if each and abs(sum(each) - total) <= 0.01 * total:
        return {f"gpu-{index}": joules for index, joules in enumerate(each)}
    return {"all-gpus": total}


def _power_rows(
    one: Bundle, devices: Mapping[str, float], samples: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    rows = []
    for name, joules in devices.items():
        rows.append(_row(0, name, energy_mj=0))
        rows.append(_row(one.window_ns, name, energy_mj=round(joules * 1e3)))
    summed: dict[tuple[int, str], float] = {}
    for sample in samples:
        name = "all-gpus" if "all-gpus" in devices else f"gpu-{sample['gpu_index']}"
        at_ns = round((sample["timestamp_s"] + 1) * _S)  # the end of the second that it is the mean of
        summed[at_ns, name] = summed.get((at_ns, name), 0.0) + sample["power_w"]
    rows += [
        _row(t_ns, name, power_average_mw=round(watts * 1e3))
        for (t_ns, name), watts in summed.items()
        if name in devices
    ]
    return sorted(rows, key=lambda row: int(row["t_before_mono_ns"]))


def _row(t_ns: int, name: str, **cells: int) -> dict[str, Any]:
    return {"t_before_mono_ns": t_ns, "t_after_mono_ns": t_ns, "gpu": name, **cells}


def _spec(one: Bundle, study: str) -> ExperimentSpec:
    return ExperimentSpec(
        schema_version=PROTOCOL_VERSION,
        study=study,
        experiment_hash=one.hash,
        slug=one.slug,
        engine=str(one.result.get("engine", "")),
        config=one.declared,
        cycle=one.cycle,
        model=ModelSource(name=str(one.result.get("model_name", "unknown"))),
        prompts=Prompts(source="not known", sha256="", items=(), n_prompts=0),
        meter=MeterSpec(kind=PEER_METER),
        limits=Limits(),
    )


def _result(one: Bundle, devices: Mapping[str, float], rows: int) -> CycleResult:
    warmup = one.result.get("warmup_result") or {}
    outcome = "not known" if not warmup else "converged" if warmup.get("converged") else "cap_iterations"
    by = f"llenergymeasure {one.result.get('llenergymeasure_version') or 'of unknown version'}"
    return CycleResult(
        schema_version=PROTOCOL_VERSION,
        experiment_hash=one.hash,
        cycle=one.cycle,
        engine=str(one.result.get("engine", "")),
        engine_version=str(one.config.get("engine_version", "")),
        window=Window(
            t_begin_mono_ns=0,
            t_end_mono_ns=one.window_ns,
            iterations=0,
            requests=0,
            input_tokens=int(one.result.get("input_tokens") or 0),
            output_tokens=int(one.result["output_tokens"]),
        ),
        warmup=Warmup(
            outcome, int(warmup.get("iterations_completed") or 0), 0.0, warmup.get("final_cv"), f"by {by}"
        ),
        meter=Meter(
            kind=PEER_METER if devices else "none",
            energy_kind="measured" if devices else "none",
            boundary="board" if devices else "none",
            devices=tuple(devices),
            requested_hz=1.0,
            achieved_hz=1.0,
            samples=rows,
            failed_reads=0,
            call_p50_s=None,
            sampler_cpu_s=None,
            note=f"Energy as {by} reported it; the curve is of 1 s means.",
        ),
        anchors=(Anchor(0, one.begin_ns), Anchor(one.window_ns, one.begin_ns + one.window_ns)),
        model={},
        memory={},
        bundle_version=by,
    )


def _environment(one: Bundle, devices: Mapping[str, float]) -> dict[str, Any]:
    hardware = one.system.get("hardware") or {}
    gpu, thermal = hardware.get("gpu") or {}, hardware.get("thermal") or {}
    facts = {"name": gpu.get("name"), "power_limit_w": thermal.get("power_limit_w")}
    return {
        "python": one.system.get("python_version"),
        "driver": (hardware.get("cuda") or {}).get("driver_version"),
        "cpu": {"model": (hardware.get("cpu") or {}).get("model")},
        "gpus": [{"uuid": name, **facts} for name in devices] if gpu else [],
        "engine": one.result.get("engine"),
    }


def _provenance(one: Bundle) -> dict[str, Any]:
    runner = one.result.get("runner_provenance") or {}
    return {
        "imported_from": PEER_METER,
        "bundle": one.folder.name,
        "runner": runner.get("mode"),
        "image_digest": runner.get("image_digest"),
        "host": {"name": ""},
        "started_epoch_ns": one.begin_ns,
        "finished_epoch_ns": _epoch_ns(one.result["end_time"]),
    }


def _epoch_ns(text: str) -> int:
    """Nanoseconds since 1970; a time without a zone is local, as there."""
    return round(datetime.fromisoformat(text).timestamp() * 1e6) * 1000


class BundleError(ValueError):
    """A field of a bundle has a value that it cannot have; the message names file, field, value and what is allowed."""


def number(most: float, *, positive: bool = False) -> Callable[[Any], str]:
    """A check for numbers from 0 to ``most``; it tells what is allowed, or nothing when the value is."""

    def check(value: Any) -> str:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        fits = is_number and (value > 0 if positive else value >= 0) and value <= most
        return "" if fits else f"a number {'above' if positive else 'from'} 0 to {most:g}"

    return check


def is_number_of(most: float, value: Any) -> bool:
    """Whether a value is a number from 0 to ``most``."""
    return not number(most)(value)


def _count(value: Any) -> str:
    whole = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_TOKENS
    return "" if whole else "a whole number from 0 on"


def _text(value: Any) -> str:
    return "" if isinstance(value, str) else "a text"


def _object(value: Any) -> str:
    return "" if isinstance(value, Mapping) else "an object"


def _joules_each(value: Any) -> str:
    listed = isinstance(value, list) and all(is_number_of(MOST_JOULES, item) for item in value)
    return "" if listed else f"a list of numbers from 0 to {MOST_JOULES:g}"


def _hash(value: Any) -> str:
    hexadecimal = isinstance(value, str) and 8 <= len(value) <= 64 and set(value) <= set("0123456789abcdef")
    return "" if hexadecimal else "8 to 64 hexadecimal digits"


def _time(value: Any) -> str:
    try:
        seconds = datetime.fromisoformat(value).timestamp()
    except (TypeError, ValueError, OverflowError):
        seconds = 0.0
    return "" if 0 < seconds < 1e11 else "a time in ISO 8601"


_RESULT: dict[str, Callable[[Any], str]] = {
    "declared_config_hash": _hash,
    "start_time": _time,
    "end_time": _time,
    "total_inference_time_sec": number(_MOST_S, positive=True),
    "output_tokens": _count,
    "input_tokens?": _count,
    "total_energy_j?": number(MOST_JOULES),
    "energy_per_device_j?": _joules_each,
    "model_name?": _text,
    "engine?": _text,
    "warmup_result?": _object,
    "warmup_result.iterations_completed?": _count,
    "warmup_result.final_cv?": number(1e6),
    "runner_provenance?": _object,
}
_CONFIG: dict[str, Callable[[Any], str]] = {"declared_config?": _object, "engine_version?": _text}
_SYSTEM: dict[str, Callable[[Any], str]] = {
    "hardware?": _object,
    "hardware.gpu?": _object,
    "hardware.thermal?": _object,
    "hardware.thermal.power_limit_w?": number(MOST_WATTS),
    "hardware.cuda?": _object,
    "hardware.cpu?": _object,
}
FIELDS: dict[str, dict[str, Callable[[Any], str]]] = {
    "result.json": _RESULT,
    "config.json": _CONFIG,
    "system.json": _SYSTEM,
}
"""Check of each field that is read, by file; a name that ends in ``?`` may be absent or null."""


def read_object(file: Path) -> dict[str, Any]:
    """The object in a JSON file, with every field that is read checked; empty where the file is absent.

    Raises:
        BundleError: It holds no object, or a field has a value that it cannot have.
    """
    if not file.exists():
        return {}
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{file}: not JSON: {str(error).splitlines()[0]}") from error
    if not isinstance(found, dict):
        raise BundleError(f"{file}: expected an object, found {type(found).__name__}")
    for name, check in FIELDS[file.name].items():
        value = _at(found, name.rstrip("?"))
        if value is None and name.endswith("?"):
            continue
        if allowed := check(value):
            raise BundleError(f"{file}: {name.rstrip('?')}: found {value!r:.60}; allowed: {allowed}")
    return found


def _at(found: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found
