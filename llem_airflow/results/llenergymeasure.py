"""A results folder of llenergymeasure (bundles of version 2.0) as a run of ours.

Its energy is taken as it was reported: a reading of 0 J at the window's begin and one of the reported joules at its
end, by a meter named after it. Samples, requests and edges behind the number are not kept there, so nothing here
pretends to know them.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from llem_airflow.protocol import PROTOCOL_VERSION
from llem_airflow.protocol import files as raw
from llem_airflow.protocol.files import POWER_COLUMNS
from llem_airflow.protocol.result import Anchor, CycleResult, Meter, Warmup, Window
from llem_airflow.protocol.spec import PEER_METER, ExperimentSpec, Limits, MeterSpec, ModelSource, Prompts
from llem_airflow.results.folder import ResultReadError, first_line
from llem_airflow.results.store import ResultsRoot, StoredRun
from llem_airflow.text.wording import counted

BUNDLE_VERSION = "2.0"
_CYCLE = re.compile(r"(?:\d+_)?c(?P<cycle>[1-9]\d*)_.+")
_S = 1_000_000_000
_M = TypeVar("_M", bound=BaseModel)
_MOST_WATTS = 1e6
_SAMPLE_FIELDS = {"power_w": _MOST_WATTS, "timestamp_s": 1e9, "gpu_index": 4096}
"""Fields of a sample with the largest value that each can have."""


def _after_1970(time: datetime) -> datetime:
    if time.year <= 1970:
        raise ValueError("a time after 1970")
    return time


_Time = Annotated[datetime, AfterValidator(_after_1970)]
_Joules = Annotated[float, Field(ge=0, le=1e12)]  # a megawatt for eleven days
_Tokens = Annotated[int, Field(ge=0, le=10**12)]


class _Model(BaseModel):
    """What is read of a file of theirs, and what each field may hold; anything else in it is left alone."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=())


class _Version(_Model):
    bundle_version: str | None = None


class _Warmup(_Model):
    converged: bool | None = None
    iterations_completed: _Tokens | None = None
    final_cv: Annotated[float, Field(ge=0, le=1e6)] | None = None


class _Runner(_Model):
    mode: str | None = None
    image_digest: str | None = None


class _Result(_Model):
    declared_config_hash: Annotated[str, Field(pattern="^[0-9a-f]{8,64}$")]
    start_time: _Time
    end_time: _Time
    total_inference_time_sec: Annotated[float, Field(gt=0, le=1e7)]
    output_tokens: _Tokens
    input_tokens: _Tokens | None = None
    total_energy_j: _Joules | None = None
    energy_per_device_j: list[_Joules] | None = None
    model_name: str | None = None
    engine: str | None = None
    llenergymeasure_version: str | None = None
    warmup_result: _Warmup | None = None
    runner_provenance: _Runner | None = None


class _Config(_Model):
    declared_config: dict[str, Any] | None = None
    engine_version: str | None = None


class _Thermal(_Model):
    power_limit_w: Annotated[float, Field(ge=0, le=_MOST_WATTS)] | None = None


class _Hardware(_Model):
    gpu: dict[str, Any] | None = None
    thermal: _Thermal | None = None
    cuda: dict[str, Any] | None = None
    cpu: dict[str, Any] | None = None


class _System(_Model):
    python_version: str | None = None
    hardware: _Hardware | None = None


@dataclass(frozen=True)
class _Bundle:
    """One bundle: a cycle of one configuration."""

    folder: Path
    result: _Result
    config: _Config
    system: _System
    cycle: int

    @property
    def hash(self) -> str:
        return self.result.declared_config_hash

    @property
    def engine(self) -> str:
        return self.result.engine or ""

    @property
    def model(self) -> str:
        return self.result.model_name or "unknown"

    @property
    def slug(self) -> str:
        return f"{self.model.rsplit('/', 1)[-1]}-{self.engine or 'unknown'}".lower()

    @property
    def experiment_id(self) -> str:
        return f"{self.slug}-{self.hash[:8]}"

    @property
    def begin_ns(self) -> int:
        return _epoch_ns(self.result.start_time)

    @property
    def window_ns(self) -> int:
        return round(self.result.total_inference_time_sec * _S)


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
    bundles, problems = [], []
    for file in sorted(folder.glob("*/result.json")):
        try:
            bundles.append(_bundle(file))
        except ResultReadError as error:
            problems.append(str(error))
    if not bundles:
        reasons = "; ".join(problems) or "no folder in it has a result.json"
        raise ResultReadError(
            f"{folder}: nothing to import: {reasons}; give a results folder of llenergymeasure"
        )
    bundles.sort(key=lambda one: (one.begin_ns, one.folder.name))
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


def _bundle(file: Path) -> _Bundle:
    folder = file.parent
    # Before the fields, which may be others in another version.
    version = _read(file, _Version).bundle_version
    if version != BUNDLE_VERSION:
        raise ResultReadError(f"{file}: bundle_version {version!r}; this release reads {BUNDLE_VERSION}")
    named = _CYCLE.fullmatch(folder.name)
    config, system = _read(folder / "config.json", _Config), _read(folder / "system.json", _System)
    return _Bundle(folder, _read(file, _Result), config, system, int(named["cycle"]) if named else 1)


def _read(file: Path, model: type[_M]) -> _M:
    """A JSON file as a model; one without any field that is told where the file is absent."""
    try:
        return model.model_validate_json(file.read_bytes() if file.exists() else b"{}")
    except OSError as error:
        raise ResultReadError(f"{file}: cannot be read: {first_line(error)}") from error
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False)
        raise ResultReadError("; ".join(f"{file}: {_said(problem)}" for problem in problems)) from error


def _said(problem: Mapping[str, Any]) -> str:
    if problem["type"] == "json_invalid":
        return f"not JSON: {problem['msg']}"
    where = ".".join(part for part in problem["loc"] if isinstance(part, str)) or "the file"
    found = "nothing" if problem["type"] == "missing" else f"{problem['input']!r:.60}"
    allowed = problem["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return f"{where}: found {found}; allowed: {allowed}"


def _plan(bundles: Sequence[_Bundle]) -> dict[str, Any]:
    experiments = {one.experiment_id: one for one in bundles}
    return {
        "cycles": max(Counter(one.experiment_id for one in bundles).values()),
        "experiments": [
            {
                "id": name,
                "slug": one.slug,
                "hash": one.hash,
                "engine": one.engine,
                "config": one.config.declared_config or {"task": {"model": one.result.model_name}},
            }
            for name, one in experiments.items()
        ],
        "order": [{"experiment": one.experiment_id, "cycle": one.cycle} for one in bundles],
        "skipped": [],
    }


def _write(one: _Bundle, aside: Path, study: str) -> list[str]:
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
        return [], [f"{file}: cannot be read: {first_line(error)}"]
    measured = [row for row in rows if row.get("power_w") is not None]
    wrong = [next((name for name in _SAMPLE_FIELDS if not _can_be(name, row)), "") for row in measured]
    return [row for row, name in zip(measured, wrong, strict=True) if not name], [
        f"{file}: {name}: {count} of {counted(len(rows), 'sample')} left out, as impossible"
        for name, count in Counter(filter(None, wrong)).items()
    ]


def _can_be(name: str, sample: Mapping[str, Any]) -> bool:
    value = sample.get(name)
    return isinstance(value, (int, float)) and 0 <= value <= _SAMPLE_FIELDS[name]


def _devices(one: _Bundle) -> dict[str, float]:
    """Joules by device; one device stands for all where they were not told apart, none where nothing was measured."""
    total = one.result.total_energy_j or 0.0
    if total <= 0:
        return {}
    each = one.result.energy_per_device_j or []
    if each and abs(sum(each) - total) <= 0.01 * total:
        return {f"gpu-{index}": joules for index, joules in enumerate(each)}
    return {"all-gpus": total}


def _power_rows(
    one: _Bundle, devices: Mapping[str, float], samples: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    watts = Counter[tuple[int, str]]()
    for sample in samples:
        name = "all-gpus" if "all-gpus" in devices else f"gpu-{sample['gpu_index']}"
        end_ns = round((sample["timestamp_s"] + 1) * _S)  # of the second that it is the mean of
        watts[end_ns, name] += sample["power_w"]
    rows = [_row(0, name, energy_mj=0) for name in devices]
    rows += [_row(one.window_ns, name, energy_mj=round(joules * 1e3)) for name, joules in devices.items()]
    means = {key: round(w * 1e3) for key, w in watts.items() if key[1] in devices}
    rows += [_row(*key, power_average_mw=milliwatts) for key, milliwatts in means.items()]
    return sorted(rows, key=lambda row: int(row["t_before_mono_ns"]))


def _row(t_ns: int, name: str, **cells: int) -> dict[str, Any]:
    return {"t_before_mono_ns": t_ns, "t_after_mono_ns": t_ns, "gpu": name, **cells}


def _spec(one: _Bundle, study: str) -> ExperimentSpec:
    return ExperimentSpec(
        schema_version=PROTOCOL_VERSION,
        study=study,
        experiment_hash=one.hash,
        slug=one.slug,
        engine=one.engine,
        config=one.config.declared_config or {},
        cycle=one.cycle,
        model=ModelSource(name=one.model),
        prompts=Prompts(source="not known", sha256="", items=(), n_prompts=0),
        meter=MeterSpec(kind=PEER_METER),
        limits=Limits(),
    )


def _result(one: _Bundle, devices: Mapping[str, float], rows: int) -> CycleResult:
    warmup = one.result.warmup_result
    outcome = "not known" if warmup is None else "converged" if warmup.converged else "cap_iterations"
    iterations, cv = (warmup.iterations_completed or 0, warmup.final_cv) if warmup else (0, None)
    by = f"llenergymeasure {one.result.llenergymeasure_version or 'of unknown version'}"
    return CycleResult(
        schema_version=PROTOCOL_VERSION,
        experiment_hash=one.hash,
        cycle=one.cycle,
        engine=one.engine,
        engine_version=one.config.engine_version or "",
        window=Window(
            t_begin_mono_ns=0,
            t_end_mono_ns=one.window_ns,
            iterations=0,
            requests=0,
            input_tokens=one.result.input_tokens or 0,
            output_tokens=one.result.output_tokens,
        ),
        warmup=Warmup(outcome, iterations, 0.0, cv, f"by {by}"),
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


def _environment(one: _Bundle, devices: Mapping[str, float]) -> dict[str, Any]:
    hardware = one.system.hardware or _Hardware()
    gpu, cuda, cpu = hardware.gpu or {}, hardware.cuda or {}, hardware.cpu or {}
    limit_w = hardware.thermal.power_limit_w if hardware.thermal else None
    facts = {"name": gpu.get("name"), "power_limit_w": limit_w}
    return {
        "python": one.system.python_version,
        "driver": cuda.get("driver_version"),
        "cpu": {"model": cpu.get("model")},
        "gpus": [{"uuid": name, **facts} for name in devices] if gpu else [],
        "engine": one.result.engine,
    }


def _provenance(one: _Bundle) -> dict[str, Any]:
    runner = one.result.runner_provenance or _Runner()
    return {
        "imported_from": PEER_METER,
        "bundle": one.folder.name,
        "runner": runner.mode,
        "image_digest": runner.image_digest,
        "host": {"name": ""},
        "started_epoch_ns": one.begin_ns,
        "finished_epoch_ns": _epoch_ns(one.result.end_time),
    }


def _epoch_ns(time: datetime) -> int:
    """Nanoseconds since 1970; a time without a zone is local, as there."""
    return round(time.timestamp() * 1e6) * 1000
