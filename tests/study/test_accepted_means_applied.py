"""Every key that a study accepts reaches something that reads it, or the user is told that it has no effect here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic.fields import FieldInfo

from llem_airflow.study.config.experiment import Experiment
from llem_airflow.study.config.schema import values
from llem_airflow.study.config.study import StudyKeys
from llem_airflow.study.names import ENGINE_ALIASES
from llem_airflow.study.plan.findings import NO_EFFECT
from llem_airflow.study.plan.rules import rules_of
from tests.study.texts import HEAD, study

ROOT = Path(__file__).parents[2]

WARMUP = "llem_airflow.measurement.warmup"
ENGINES = ("transformers", "vllm", "tensorrt")
TRANSFORMERS = "llem_airflow.measurement.engines.transformers"
SPEC, LOAD, PLANNING = (
    "llem_airflow.study.plan.request",
    "llem_airflow.study.load",
    "llem_airflow.study.config.study",
)
FACTORY = "llem_airflow.factory.study"
SCHEDULE = "llem_airflow.factory.schedule"
OUTCOME = "llem_airflow.operators.outcome"
STATED = "llem_airflow.analysis.metrics"
SERVER = "llem_airflow.measurement.server"
SLO = ("ttft_ms", "tpot_ms", "percentile")

READERS: dict[str, str] = {
    "serving_mode": "llem_airflow.measurement.__main__:serving_mode",
    "engine": f"{SPEC}:engine",
    "task.model": f"{LOAD}:model",
    "task.random_seed": "llem_airflow.measurement.generation:random_seed",
    "task.max_input_tokens": "llem_airflow.measurement.prompts:max_input_tokens",
    "task.max_output_tokens": "llem_airflow.measurement.prompts:max_output_tokens",
    **{
        f"task.dataset.{key}": f"llem_airflow.study.prompts:{key}" for key in ("source", "n_prompts", "order")
    },
    **{
        f"task.dataset.{key}": f"llem_airflow.study.prompts:{key}"
        for key in ("range_ratio", "input_tokens_stddev", "output_tokens_stddev", "prefix_tokens")
    },
    "task.dataset.multi_turn": f"{SERVER}.prompts:multi_turn",
    "measurement.meter": f"{SPEC}:meter",
    "measurement.energy_sampler": "llem_airflow.study.config.experiment:energy_sampler",
    "measurement.power_hz": f"{SPEC}:power_hz",
    "measurement.min_window_seconds": f"{SPEC}:min_window_seconds",
    "measurement.cpu_idle_watts": f"{SPEC}:cpu_idle_watts",
    "measurement.cpu_max_watts": f"{SPEC}:cpu_max_watts",
    "measurement.require_energy": "llem_airflow.analysis.plan:require_energy",
    "measurement.baseline.enabled": "llem_airflow.measurement.idle_power:enabled",
    "measurement.baseline.duration_seconds": "llem_airflow.measurement.idle_power:duration_seconds",
    "measurement.baseline.strategy": "llem_airflow.measurement.idle_power:strategy",
    "measurement.baseline.drift_threshold": "llem_airflow.measurement.idle_power:drift_threshold",
    "measurement.baseline.cache_ttl_seconds": "llem_airflow.operators.inputs:cache_ttl_seconds",
    "measurement.baseline.validation_interval": "llem_airflow.operators.inputs:validation_interval",
    **{
        f"offline.warmup.{key}": f"{WARMUP}:{key}"
        for key in ("enabled", "n_prompts", "thermal_floor_seconds", "convergence_detection", "cv_threshold")
    },
    **{f"offline.warmup.{key}": f"{WARMUP}:{key}" for key in ("min_prompts", "max_prompts", "window_size")},
    **{
        f"server.traffic.{key}": f"{SERVER}.traffic:{key}"
        for key in (
            "rate",
            "arrival",
            "burstiness",
            "window_seconds",
            "ramp_exclusion_seconds",
            "concurrency_cap",
            "request_timeout_seconds",
            "seed",
        )
    },
    **{f"server.traffic.slo.{key}": f"llem_airflow.analysis.serving:{key}" for key in SLO},
    **{f"server.traffic.find_rate.slo.{key}": f"llem_airflow.analysis.serving:{key}" for key in SLO},
    "server.traffic.find_rate.from": "llem_airflow.study.plan.expand:lowest",
    "server.traffic.find_rate.to": "llem_airflow.study.plan.expand:highest",
    **{
        f"server.traffic.find_rate.{key}": f"llem_airflow.study.plan.expand:{key}"
        for key in ("tolerance", "max_probes")
    },
    "server.traffic.concurrency": f"{SERVER}.traffic:concurrency",
    **{f"server.warmup.{key}": f"{WARMUP}:{key}" for key in ("mode", "timeout_seconds", "duration_seconds")},
    **{
        f"server.{key}": f"{SERVER}.attempt:{key}"
        for key in ("cooldown_seconds", "startup_timeout_seconds", "max_failed_ratio")
    },
    "sampling_preset": "llem_airflow.study.plan.expand:sampling_preset",
    "passthrough_kwargs": "llem_airflow.measurement.generation:passthrough_kwargs",
    **{f"gpus.{key}": f"llem_airflow.runners.gpus:{key}" for key in ("count", "kind", "ids", "memory_gb")},
    "gpus.exclusive": "llem_airflow.runners.claims:exclusive",
    **{f"{engine}.engine_params": "llem_airflow.measurement.generation:engine_params" for engine in ENGINES},
    **{
        f"{engine}.sampling_params": "llem_airflow.measurement.generation:sampling_params"
        for engine in ENGINES
    },
    **{
        f"transformers.llem_execution.{key}": f"{TRANSFORMERS}:{key}"
        for key in (
            "batch_size",
            "torch_compile",
            "torch_compile_mode",
            "torch_compile_backend",
            "allow_tf32",
        )
    },
    "transformers.llem_execution.autocast_enabled": f"{TRANSFORMERS}:autocast_enabled",
    "transformers.llem_execution.autocast_dtype": f"{TRANSFORMERS}:autocast_dtype",
    **{
        f"{engine}.llem_execution.chat_template": f"llem_airflow.measurement.engines.{engine}:chat_template"
        for engine in ENGINES
    },
    "study_name": f"{LOAD}:study_name",
    "power.sampling": "llem_airflow.operators.placement:sampling",
    "base": "llem_airflow.study.file.document:base",
    "study_execution.n_cycles": f"{PLANNING}:n_cycles",
    "study_execution.experiment_order": f"{LOAD}:experiment_order",
    "study_execution.experiment_gap_seconds": f"{PLANNING}:experiment_gap_s",
    "study_execution.cycle_gap_seconds": f"{PLANNING}:cycle_gap_s",
    "study_execution.shuffle_seed": f"{LOAD}:shuffle_seed",
    "study_execution.precision_target.relative_half_width": "llem_airflow.operators.gates:relative_half_width",
    "study_execution.precision_target.min_cycles": "llem_airflow.operators.gates:min_cycles",
    "study_execution.precision_target.max_cycles": f"{PLANNING}:max_cycles",
    "study_execution.allow_missing_cycles": "llem_airflow.operators.aggregate:allow_missing_cycles",
    "study_execution.canary": f"{FACTORY}:canary",
    "study_execution.isolation": f"{PLANNING}:isolation",
    **{
        f"study_execution.session.{key}": f"llem_airflow.operators.runners:{key}"
        for key in ("max_runtime_seconds", "idle_seconds", "max_restarts")
    },
    "study_execution.experiment_timeout_seconds": f"{LOAD}:experiment_timeout_s",
    "study_execution.stdout_silence_timeout_seconds": f"{LOAD}:silence_s",
    "study_execution.wall_clock_timeout_hours": f"{FACTORY}:wall_clock_timeout_s",
    "study_execution.deduplicate_equivalent": "llem_airflow.study.plan.expand:deduplicate_equivalent",
    "study_execution.gpu_indices": f"{LOAD}:gpu_indices",
    "study_execution.max_consecutive_failures": "llem_airflow.operators.gates:max_consecutive_failures",
    "study_execution.circuit_breaker_cooldown_seconds": "llem_airflow.operators.gates:breaker_cooldown_s",
    "airflow.dag_id": f"{FACTORY}:dag_id",
    "airflow.schedule": f"{SCHEDULE}:schedule",
    "airflow.timezone": f"{SCHEDULE}:timezone",
    "airflow.start_date": f"{SCHEDULE}:start_date",
    "airflow.deadline": f"{SCHEDULE}:deadline_s",
    "airflow.window": "llem_airflow.operators.gates:window",
    "airflow.carry_over": "llem_airflow.operators.plan:carry_over",
    "airflow.catchup": f"{FACTORY}:catchup",
    "airflow.tags": f"{FACTORY}:tags",
    "airflow.owner": f"{FACTORY}:owner",
    "airflow.retries": f"{FACTORY}:retries",
    "airflow.retry_delay": f"{FACTORY}:retry_delay_s",
    "airflow.max_active_cycles": f"{FACTORY}:max_active_cycles",
    "airflow.pool": f"{FACTORY}:pool",
    "airflow.hosts": "llem_airflow.factory.places:hosts",
    "airflow.spread": "llem_airflow.study.plan.order:spread",
    "airflow.mixed_gpus": "llem_airflow.factory.places:mixed_gpus",
    "airflow.priority": f"{FACTORY}:priority",
    "airflow.notify_on": "llem_airflow.operators.aggregate:notify_on",
    **{f"airflow.regression.{key}": f"{OUTCOME}:{key}" for key in ("metric", "threshold_ratio", "baseline")},
    **{f"output.carbon.{key}": f"{STATED}:{key}" for key in ("g_per_kwh", "source", "year")},
    **{f"output.price.{key}": f"{STATED}:{key}" for key in ("per_kwh", "currency", "source", "year")},
    **{
        f"airflow.export.{key}": f"llem_airflow.operators.aggregate:{key}"
        for key in ("to", "conn_id", "power")
    },
    "versions.name": "llem_airflow.timetables.release_dates:name",
    "versions.model": "llem_airflow.study.plan.model:model",
    "versions.revision": "llem_airflow.study.plan.model:revision",
    "versions.released": "llem_airflow.timetables.release_dates:released",
}


def _all_keys() -> dict[str, FieldInfo]:
    keys = {
        ".".join(path).replace("[]", ""): field
        for model in (Experiment, StudyKeys)
        for path, _, field in values(model)
    }
    older = set(ENGINE_ALIASES)
    return {key: what for key, what in keys.items() if not set(key.split(".")) & older}


def _without_effect() -> set[str]:
    told = {".".join(path) for path in NO_EFFECT}
    return told | {
        ".".join(path) for rule in rules_of("transformers") if rule.notice for path in rule.ignores
    }


def _reader(key: str) -> str | None:
    if key.startswith(("runners.", "images.")):
        return f"{PLANNING}:{key.split('.', 1)[0]}"
    return READERS.get(key)


@pytest.mark.parametrize("key", sorted(_all_keys()))
def test_a_key_is_read_somewhere_or_told_to_have_no_effect(key: str) -> None:
    if key in _without_effect():
        assert _reader(key) is None, f"{key} is read and is told to have no effect"
        return
    reader = _reader(key)
    assert reader is not None, f"nothing reads {key}: name its reader here, or refuse the key"
    module, token = reader.split(":")
    path = ROOT / (module.replace(".", "/") + ".py")
    text = path.read_text("utf-8")
    assert re.search(rf"(?<![\w-]){token}(?![\w-])", text), f"{module} does not read {key} ({token})"


def test_the_table_of_readers_has_no_keys_that_do_not_exist() -> None:
    assert set(READERS) <= set(_all_keys())


OTHER: dict[str, Any] = {
    "measurement.measurement_methodology": "steady_state",
    "measurement.measurement_window": "[0, 5]",
    "measurement.warmup_discard_fraction": 0.2,
    "measurement.warmup_discard_seconds": 3,
    "output.results_dir": "elsewhere",
    "version": 3,
}


@pytest.mark.parametrize("key", sorted(_without_effect() - {"version"}))
def test_a_key_without_effect_is_told_when_it_is_set(key: str) -> None:
    value = OTHER.get(key, str(not _all_keys()[key].default).lower())
    *parts, last = key.split(".")
    text = "".join(f"{part}: {{" for part in parts) + f"{last}: {value}" + "}" * len(parts) + "\n"
    head = HEAD.replace("measurement: {meter: cpu-estimate}\n", "")
    told = [str(notice) for notice in study(text, head=head).warnings]
    assert any(f"{key} has no effect here: " in line for line in told)
