"""Runs attempts as the container does: a process of its own, told by files, judged by files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llem_airflow.protocol.files import EVENTS, POWER, REQUESTS, config_name, error_name, result_name
from llem_airflow.protocol.result import AttemptError, CycleResult
from llem_airflow.protocol.spec import (
    ExperimentSpec,
    KnownIdlePower,
    Limits,
    MeterSpec,
    ModelSource,
    Prompts,
    Synthetic,
)
from tests.standins.gpus import built

FAST_GPU = {"engine_params": {"step_s": 0.001, "batch_size": 2}}
HASH = "0123456789abcdef"
ROOT = Path(__file__).parents[2]
PLUGIN = Path(__file__).parent / "plugin"
TEXTS = ("def area(r):", "import os, sys", "class Queue:\n    def", "return x + y * 2 and more")


def spec_of(
    engine: str,
    section: dict[str, Any],
    *,
    model_path: str | None = None,
    output_tokens: int = 8,
    min_window_s: float = 0.2,
    texts: tuple[str, ...] = TEXTS,
    synthetic: Synthetic | None = None,
    config: dict[str, Any] | None = None,
    limits: Limits | None = None,
    power: str = "cpu-estimate",
) -> ExperimentSpec:
    """A small experiment."""
    task = {"model": "m", "random_seed": 1, "max_input_tokens": 64, "max_output_tokens": output_tokens}
    warmup = {"convergence_detection": False, "n_prompts": 3}
    full = {"engine": engine, "serving_mode": "offline", "task": task, "measurement": {}}
    full |= {"offline": {"warmup": warmup}, engine: section} | (config or {})
    return ExperimentSpec(
        schema_version=1,
        study="s",
        experiment_hash=HASH,
        slug="an-experiment",
        engine=engine,
        config=full,
        cycle=1,
        model=ModelSource(name="m", path=model_path),
        prompts=Prompts("own", "0" * 64, () if synthetic else texts, len(texts), synthetic),
        meter=MeterSpec(kind=power, min_window_s=min_window_s),
        limits=limits or Limits(),
    )


@dataclass(frozen=True)
class Ran:
    """What an attempt left behind."""

    code: int
    stdout: str
    out: Path

    @property
    def result(self) -> CycleResult:
        return CycleResult.loads((self.out / result_name(HASH)).read_text())

    @property
    def error(self) -> AttemptError:
        return AttemptError.loads((self.out / error_name(HASH)).read_text())

    @property
    def has_result(self) -> bool:
        return (self.out / result_name(HASH)).exists()

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.out / EVENTS).read_text().splitlines()]

    @property
    def requests(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.out / REQUESTS).read_text().splitlines()]

    @property
    def power_rows(self) -> int:
        return len((self.out / POWER).read_text().splitlines()) - 1


def start(spec: ExperimentSpec, folder: Path, **environment: str) -> subprocess.Popen[str]:
    """Start an attempt in ``folder``; warnings are errors there too."""
    (folder / config_name(HASH)).write_text(spec.dumps())
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{PLUGIN}", "OMP_NUM_THREADS": "1", **environment}
    env |= {"LLEM_CONFIG_PATH": str(folder / config_name(HASH)), "LLEM_OUTPUT_DIR": str(folder / "out")}
    command = [sys.executable, "-m", "llem_airflow.measurement"]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run(spec: ExperimentSpec, folder: Path, **environment: str) -> Ran:
    """Run an attempt to its end."""
    process = start(spec, folder, **environment)
    stdout, _ = process.communicate(timeout=300)
    return Ran(process.returncode, stdout, folder / "out")


def run_on_gpu(
    folder: Path, power: str, known: KnownIdlePower | None = None, *, baselines: bool = True
) -> Ran:
    """Run a short attempt on one stand-in GPU with that power; idle phases and warm-up are short.

    Args:
        folder: Where it runs.
        power: A profile of the stand-in driver's script; further lines of the script may follow.
        known: Idle power of an earlier cycle.
        baselines: Whether idle phases are measured.
    """
    script = folder / "gpus.conf"
    script.write_text(f"t0 = {time.time_ns() // 10**9}\ngpus = 1\ngpu.0.power = {power}\n")
    warmup = {
        "thermal_floor_seconds": 1.5,
        "convergence_detection": True,
        "cv_threshold": 0.5,
        "window_size": 3,
    }
    config: dict[str, Any] = {
        "measurement": {"baseline": {"enabled": baselines, "duration_seconds": 0.8}},
        "offline": {"warmup": warmup},
    }
    spec = spec_of("scripted", FAST_GPU, config=config, power="nvml", min_window_s=1.0)
    return run(replace(spec, known_baselines=known), folder, **built().environment(script))
