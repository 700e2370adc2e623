"""Protocol files with known numbers, as an attempt would have left them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llem_airflow.protocol.files import POWER_COLUMNS
from llem_airflow.protocol.result import Anchor, CycleResult, Meter, Warmup, Window
from llem_airflow.protocol.spec import ExperimentSpec, Limits, MeterSpec, ModelSource, Prompts

S = 1_000_000_000
EPOCH_NS = 1_790_000_000 * S
GPU = "GPU-11111111-2222-3333-4444-555555555555"


@dataclass(frozen=True)
class Recording:
    """What the generator makes: constant power, so that energy is power times time, exactly.

    Requests follow one another without a pause. Times are seconds on the monotonic clock, counted from 1000.
    """

    hash: str = "0123456789abcdef"
    cycle: int = 1
    power_w: float | Callable[[float], float] = 200.0
    hz: float = 10.0
    gpus: Sequence[str] = (GPU,)
    load_s: float = 5.0
    warmup_s: float = 10.0
    window_s: float = 40.0
    cooldown_s: float = 2.0
    requests: int = 20
    output_tokens: int = 11
    input_tokens: int = 16
    ttft_s: float = 0.5
    itl_s: float = 0.1
    energy_kind: str = "measured"
    meter_kind: str = "nvml"
    counter: bool = True
    config: dict[str, Any] | None = None
    token_ids: Sequence[int] | None = None
    model: str = "tiny"
    engine_version: str = "5.16.0"
    origin_s: float = 1000.0

    @property
    def begin_s(self) -> float:
        return self.origin_s + self.load_s + self.warmup_s

    def watts(self, t_s: float) -> float:
        return self.power_w(t_s) if callable(self.power_w) else self.power_w

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.hash}_config.json").write_text(self.spec().dumps())
        (folder / f"{self.hash}_result.json").write_text(self.result().dumps())
        (folder / "environment.json").write_text(json.dumps(self.environment()))
        (folder / "events.jsonl").write_text("".join(json.dumps(row) + "\n" for row in self.events()))
        (folder / "requests.jsonl").write_text("".join(json.dumps(row) + "\n" for row in self.request_rows()))
        (folder / "power.csv").write_text(self.power_csv())
        (folder / "container.log").write_text("loaded\nmeasured\n")
        return folder

    def spec(self) -> ExperimentSpec:
        return ExperimentSpec(
            schema_version=1,
            study="nightly",
            experiment_hash=self.hash,
            slug="tiny",
            engine="transformers",
            config=self.config or {"engine": "transformers", "task": {"model": self.model}},
            cycle=self.cycle,
            model=ModelSource(name=self.model),
            prompts=Prompts(source="builtin", sha256="ab" * 32, items=("hello",), n_prompts=1),
            meter=MeterSpec(kind=self.meter_kind),
            limits=Limits(),
        )

    def result(self) -> CycleResult:
        begin, end = self.ns(self.begin_s), self.ns(self.begin_s + self.window_s)
        last = end + self.ns(self.cooldown_s)
        samples = 0 if self.meter_kind == "none" else len(self.sample_times_s()) * len(self.gpus)
        return CycleResult(
            schema_version=1,
            experiment_hash=self.hash,
            cycle=self.cycle,
            engine="transformers",
            engine_version=self.engine_version,
            window=Window(
                t_begin_mono_ns=begin,
                t_end_mono_ns=end,
                iterations=self.requests,
                requests=self.requests,
                input_tokens=self.requests * self.input_tokens,
                output_tokens=self.requests * self.output_tokens,
            ),
            warmup=Warmup("converged", 12, self.warmup_s, 0.01, "CV of the last 10 iterations is 1 %"),
            meter=Meter(
                kind=self.meter_kind,
                energy_kind="none" if self.meter_kind == "none" else self.energy_kind,
                boundary="board" if self.meter_kind == "nvml" else "estimate",
                devices=tuple(self.gpus),
                requested_hz=self.hz,
                achieved_hz=self.hz,
                samples=samples,
                failed_reads=0,
                call_p50_s=0.001,
                sampler_cpu_s=0.1,
                note="",
            ),
            anchors=(
                Anchor(self.ns(self.origin_s), EPOCH_NS),
                Anchor(last, EPOCH_NS + last - self.ns(self.origin_s)),
            ),
            model={"n_parameters": 1000, "dtype": "float32"},
            memory={"peak_rss_bytes": 1_000_000, "gpu_peak_bytes": None},
            bundle_version="0.1.0",
        )

    def environment(self) -> dict[str, Any]:
        gpus = [{"uuid": gpu, "name": "Test GPU", "power_limit_w": 400.0} for gpu in self.gpus]
        return {
            "schema_version": 1,
            "python": "3.11.9",
            "driver": "580.65.06",
            "boot_id": "6d3c",
            "cpu": {"model": "Test CPU", "count": 8, "load_average_1min": 0.5},
            "gpus": gpus if self.meter_kind == "nvml" else [],
            "engine": "transformers",
        }

    def events(self) -> list[dict[str, Any]]:
        at, rows = self.origin_s, []
        for name, length_s in (
            ("load", self.load_s),
            ("warmup", self.warmup_s),
            ("measure", self.window_s),
            ("cooldown", self.cooldown_s),
        ):
            rows.append({"t_mono_ns": self.ns(at), "event": "phase_begin", "phase": name})
            at += length_s
            rows.append({"t_mono_ns": self.ns(at), "event": "phase_end", "phase": name})
        return rows

    def request_rows(self) -> list[dict[str, Any]]:
        rows = []
        each_s = self.window_s / max(self.requests, 1)
        for index in range(self.requests):
            submit = self.ns(self.begin_s + index * each_s)
            tokens = [submit + self.ns(self.ttft_s + k * self.itl_s) for k in range(self.output_tokens)]
            ids = list(self.token_ids) if self.token_ids is not None else list(range(self.output_tokens))
            rows.append(
                {
                    "request_id": f"r{index}",
                    "phase": "measure",
                    "iteration": index,
                    "prompt_index": 0,
                    "batch_size": 1,
                    "input_tokens": self.input_tokens,
                    "output_tokens": self.output_tokens,
                    "t_submit_mono_ns": submit,
                    "t_first_mono_ns": tokens[0],
                    "t_last_mono_ns": tokens[-1],
                    "token_mono_ns": tokens,
                    "output_token_ids": ids,
                    "finish_reason": "length",
                }
            )
        return rows

    def sample_times_s(self) -> list[float]:
        total_s = self.load_s + self.warmup_s + self.window_s + self.cooldown_s
        return [self.origin_s + k / self.hz for k in range(int(total_s * self.hz) + 1)]

    def power_csv(self) -> str:
        lines = [",".join(POWER_COLUMNS)]
        if self.meter_kind != "none":
            energy_j = dict.fromkeys(self.gpus, 0.0)
            for t_s in self.sample_times_s():
                for gpu in self.gpus:
                    energy_j[gpu] += self.watts(t_s) / self.hz
                    lines.append(self._power_row(gpu, t_s, energy_j[gpu]))
        return "\n".join(lines) + "\n"

    def _power_row(self, gpu: str, t_s: float, energy_j: float) -> str:
        milliwatts = round(self.watts(t_s) * 1000)
        row: dict[str, object] = {
            "t_before_mono_ns": self.ns(t_s),
            "t_after_mono_ns": self.ns(t_s),
            "gpu": gpu,
            "power_instant_mw": milliwatts,
            "power_average_mw": milliwatts,
        }
        if self.counter:
            row |= {"energy_mj": round(energy_j * 1000)}
        if self.meter_kind == "nvml":
            row |= {"sm_clock_mhz": 1400, "mem_clock_mhz": 1215, "event_reasons": 0, "temperature_c": 55}
        return ",".join(str(row.get(name, "")) for name in POWER_COLUMNS)

    @staticmethod
    def ns(seconds: float) -> int:
        return round(seconds * S)


def experiment_id(index: int, hash_: str) -> str:
    return f"tiny-batch-{index}-{hash_[:8]}"


def plan_json(experiments: Sequence[tuple[str, str, dict[str, Any]]], cycles: int) -> dict[str, Any]:
    """A plan as the study room writes it: (id, hash, config) of each experiment, interleaved cycles."""
    return {
        "declared": len(experiments),
        "skipped": [],
        "valid": len(experiments),
        "unique": len(experiments),
        "cycles": cycles,
        "runs": cycles * len(experiments),
        "experiments": [
            {
                "id": name,
                "slug": name.rsplit("-", 1)[0],
                "hash": hash_,
                "engine": "transformers",
                "config": config,
            }
            for name, hash_, config in experiments
        ],
        "order": [name for _ in range(cycles) for name, _, _ in experiments],
        "gaps": [],
    }


def provenance(started_s: float = 0.0) -> dict[str, Any]:
    return {
        "dag_id": "nightly",
        "run_id": "manual__2026-01-02T03:04:05+00:00",
        "runner": "process",
        "host": {"name": "gpu-1"},
        "started_epoch_ns": EPOCH_NS + round(started_s * S),
        "finished_epoch_ns": EPOCH_NS + round((started_s + 60) * S),
    }


def variant(recording: Recording, **changes: Any) -> Recording:
    return replace(recording, **changes)
