"""The fingerprint of a cycle: what has to be equal before two results may be compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llem_airflow.protocol.records import BOARD_CONDITIONS
from llem_airflow.protocol.result import CycleResult
from llem_airflow.protocol.spec import ExperimentSpec

FACTORS = {"model", "model_revision", "engine", "engine_version", "image_digest", "measured_by"}
"""Fields that a comparison may name as the factor under study; all others belong to the conditions."""


def fingerprint(
    config: ExperimentSpec,
    result: CycleResult,
    environment: Mapping[str, Any],
    record: Mapping[str, Any],
    *,
    semantics_version: int,
) -> dict[str, Any]:
    """The fingerprint: factors, and conditions such as GPU, driver, power limit, prompts and meter.

    Args:
        config: What the attempt was told.
        result: What it observed.
        environment: environment.json.
        record: provenance.json.
        semantics_version: Version of the formulas that made the energy: tables of two versions do not compare.
    """
    gpus = environment.get("gpus")
    cpu = environment.get("cpu")
    return {
        "experiment_hash": result.experiment_hash,
        "model": config.model.name,
        "model_revision": config.model.revision,
        "engine": result.engine,
        "engine_version": result.engine_version,
        "image_digest": record.get("image_digest"),
        "gpus": [
            {name: gpu[name] for name in BOARD_CONDITIONS if name in gpu}
            for gpu in (gpus if isinstance(gpus, list) else ())
            if isinstance(gpu, Mapping)
        ],
        "driver": environment.get("driver"),
        "cpu": cpu.get("model") if isinstance(cpu, Mapping) else None,
        "cpu_limit": _member(environment.get("cgroup"), "cpus"),
        "runner": record.get("runner"),
        "meter": result.meter.kind,
        "energy_kind": result.meter.energy_kind,
        "prompts_sha256": config.prompts.sha256,
        "n_prompts": config.prompts.n_prompts,
        "measured_by": _measured_by(result),
        "energy_semantics": semantics_version,
    }


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Fields that are not equal, with both values. A field that only one side knows differs."""
    keys = sorted({*one, *other})
    return {key: (one.get(key), other.get(key)) for key in keys if one.get(key) != other.get(key)}


def _measured_by(result: CycleResult) -> str:
    """The version, and the hash of the code: an edited checkout of one version measures differently."""
    code = result.bundle_sha256
    return result.bundle_version if code is None else f"{result.bundle_version} ({code[:12]})"


def _member(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else None
