"""Runs whose tables are written by the tables' own writers, without raw cycles: many nights in little time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow.parquet as pq

from llem_airflow.analysis.cycle import Cycle
from llem_airflow.analysis.plan import planned
from llem_airflow.analysis.summary import summarise
from llem_airflow.analysis.tables import cycles_table, experiments_table
from llem_airflow.results import ResultsRoot, StoredRun, layout
from llem_airflow.results.folder import json_bytes

DAY_NS = 86_400 * 10**9
BEGAN_NS = 1_760_000_000 * 10**9
ENERGY = "energy_per_output_token_j"
GPU = {"uuid": "GPU-1", "name": "NVIDIA H100", "power_limit_w": 700.0}
FINGERPRINT = {
    "model": "tiny",
    "engine": "vllm",
    "engine_version": "0.11",
    "image_digest": "sha256:1",
    "measured_by": "1.0",
    "gpus": [GPU],
    "driver": "550.1",
    "meter": "nvml",
    "energy_kind": "measured",
    "prompts_sha256": "p" * 64,
    "n_prompts": 8,
}


def written(
    root: ResultsRoot,
    values: Mapping[str, Sequence[float]],
    *,
    night: int = 0,
    run_id: str = "",
    study: str = "nightly",
    dag_id: str = "nightly",
    meta: Mapping[str, Any] | None = None,
    measures: Mapping[str, float] | None = None,
    fingerprint: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    hosts: Sequence[str] = ("",),
) -> StoredRun:
    """A run; ``values`` are joules per output token of each cycle by experiment, measured on the hosts in turn."""
    told = {**FINGERPRINT, **(fingerprint or {})}
    run_id = run_id or f"r{night:03d}"
    plan = {
        "cycles": max(len(one) for one in values.values()),
        "experiments": [_experiment(name, index, config or {}) for index, name in enumerate(values)],
    }
    rows = [
        Cycle(
            name,
            cycle,
            "valid",
            hash=name.rpartition("-")[2].ljust(16, "0"),
            engine=str(told["engine"]),
            engine_version=str(told["engine_version"]),
            model=str(told["model"]),
            image_digest=str(told["image_digest"]),
            energy_kind=str(told["energy_kind"]),
            host=hosts[(cycle - 1) % len(hosts)],
            measures={ENERGY: value, "output_tokens_per_s": 100 / value, **(measures or {})},
            fingerprint=told,
        )
        for name, each in values.items()
        for cycle, value in enumerate(each, start=1)
    ]
    began = {"dag_id": dag_id, "started_epoch_ns": BEGAN_NS + night * DAY_NS}
    return stored(root, study, run_id, plan, {**began, **(meta or {})}, rows)


def stored(
    root: ResultsRoot,
    study: str,
    run_id: str,
    plan: dict[str, Any],
    meta: Mapping[str, Any],
    rows: Sequence[Cycle],
) -> StoredRun:
    """A run with its plan, summary and tables of cycles and experiments."""
    run, whole = root.run(study, run_id), planned(plan)
    run.write_plan("", plan, meta)
    summary = summarise(study, run_id, whole, rows)
    run.folder.write(layout.SUMMARY, json_bytes(summary.to_json()))
    for name, table in (
        (layout.CYCLES_TABLE, cycles_table(study, run_id, rows, whole)),
        (layout.EXPERIMENTS_TABLE, experiments_table(summary)),
    ):
        with run.folder.atomic_write(name) as file:
            pq.write_table(table, file, compression="zstd")
    return run


def _experiment(name: str, index: int, config: Mapping[str, Any]) -> dict[str, Any]:
    slug, _, short = name.rpartition("-")
    given = {
        "engine": "vllm",
        "task": {"model": "tiny", "max_output_tokens": 16},
        "vllm": {"batch_size": 2**index, "block_size": 16 * (1 + index % 2)},
    }
    return {
        "id": name,
        "slug": slug,
        "hash": short.ljust(16, "0"),
        "engine": "vllm",
        "config": {**given, **config},
    }
