"""``X: null`` means what leaving X out means, for every section and key of the schema."""

from __future__ import annotations

import json
from copy import deepcopy
from itertools import pairwise
from typing import Any

import pytest

from llem_airflow.study import StudyFileError, load_study_text
from tests.study.golden.plans import plain
from tests.study.golden.schema import key_paths

Path = tuple[str | int, ...]

OFFLINE: dict[str, Any] = {
    "serving_mode": "offline",
    "task": {"model": "org/model"},
    "measurement": {"meter": "cpu-estimate"},
    "versions": [{"name": "v1"}],
    "output": {
        "carbon": {"g_per_kwh": 363, "source": "a table", "year": 2024},
        "price": {"per_kwh": 0.25, "currency": "EUR", "source": "a contract", "year": 2026},
    },
    "airflow": {"schedule": "0 2 * * *"},
}
SERVER: dict[str, Any] = {
    "serving_mode": "server",
    "engine": "vllm",
    "task": {"model": "org/model"},
    "server": {"traffic": {"rate": 1, "slo": {"ttft_ms": 200}}},
}
A_VALUE = {
    ("task", "max_input_tokens"): "prompts are not cut",
    ("measurement", "energy_sampler"): "llenergymeasure's word for no meter",
}
"""Keys of which null is a value of its own, as it was before there were defaults."""

REFUSED_TODAY = frozenset(
    """
    airflow.carry_over airflow.catchup airflow.max_active_cycles airflow.notify_on airflow.priority
    airflow.regression.baseline airflow.regression.metric airflow.regression.threshold_ratio airflow.regression
    airflow.retries airflow.retry_delay airflow.tags airflow.timezone engine gpus.count gpus.exclusive gpus.kind
    gpus images.hf images.huggingface images.pytorch images.tensorrt-llm images.tensorrt images.tensorrt_llm
    images.transformers images.trtllm images.vllm measurement.baseline.cache_ttl_seconds
    measurement.baseline.drift_threshold measurement.baseline.strategy measurement.baseline.validation_interval
    measurement.cpu_idle_watts measurement.cpu_max_watts measurement.latency_profiling
    measurement.measurement_methodology measurement.meter measurement.min_window_seconds measurement.power_hz
    measurement.require_energy measurement.steady_state_auto_detect measurement.warmup_discard_fraction
    offline.warmup.convergence_detection offline.warmup.cv_threshold offline.warmup.enabled
    offline.warmup.max_prompts offline.warmup.min_prompts offline.warmup.n_prompts offline.warmup.window_size
    output.carbon output.price output.save_timeseries power.sampling runners.hf runners.huggingface
    runners.pytorch runners.tensorrt-llm runners.tensorrt runners.tensorrt_llm runners.transformers
    runners.trtllm runners.vllm server.cooldown_seconds server.traffic.arrival
    server.traffic.ramp_exclusion_seconds server.traffic.slo.percentile server.traffic.slo.tpot_ms
    server.traffic.slo.ttft_ms server.traffic.slo server.traffic.window_seconds server.warmup.duration_seconds
    server.warmup.mode server.warmup.timeout_seconds study_execution.allow_missing_cycles study_execution.canary
    study_execution.circuit_breaker_cooldown_seconds study_execution.deduplicate_equivalent
    study_execution.experiment_order study_execution.experiment_timeout_seconds
    study_execution.max_consecutive_failures study_execution.n_cycles
    study_execution.precision_target.max_cycles study_execution.precision_target.min_cycles
    study_execution.precision_target.relative_half_width study_execution.precision_target
    study_execution.skip_preflight study_execution.stdout_silence_timeout_seconds task.dataset.n_prompts
    task.dataset.order task.dataset.source task.random_seed
    """.split()  # noqa: SIM905  # quoted one by one they would fill a page
)
"""Keys of which null is refused or taken for a value: the models of the rewrite are to leave them out."""


def _keys() -> list[Any]:
    waits = pytest.mark.xfail(strict=True, reason="null is refused, or taken for an empty section or a value")
    paths = (path for path in key_paths() if path not in A_VALUE)
    texts = {path: ".".join(map(str, path)) for path in paths}
    return [
        pytest.param(path, id=text, marks=[waits] if text in REFUSED_TODAY else [])
        for path, text in texts.items()
    ]


def outcome(study: dict[str, Any]) -> Any:
    """Everything that a study comes to but its notices; None when it is refused."""
    try:
        found = load_study_text(json.dumps(study), name="study.yaml")
    except StudyFileError:
        return None
    plan = plain(found.plan.to_json())
    plan.pop("notices")
    gpus = [each.gpus for each in found.experiments]
    settings = [found.airflow, found.execution, found.output, found.versions]
    return plain([plan, gpus, settings, found.name, found.dag_id])


def with_and_without(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A study with null at the path, and the same without the key."""
    without = deepcopy(SERVER if path[0] == "server" else OFFLINE)
    if path == ("measurement", "energy_sampler"):  # which says again what the meter is
        del without["measurement"]["meter"]
    node: Any = without
    for key, below in pairwise(path):
        node = node[0] if key == 0 else node.setdefault(key, [] if below == 0 else {})
    node.pop(path[-1], None)
    with_null = deepcopy(without)
    node = with_null
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = None
    return with_null, without


@pytest.mark.parametrize("path", _keys())
def test_null_is_as_if_the_key_were_not_there(path: Path) -> None:
    with_null, without = with_and_without(path)
    assert outcome(with_null) == outcome(without)


@pytest.mark.parametrize("path", A_VALUE, ids=str)
def test_null_is_a_value_only_where_it_says_so(path: Path) -> None:
    with_null, without = with_and_without(path)
    assert None not in (outcome(with_null), outcome(without))
    assert outcome(with_null) != outcome(without)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("versions: [null]", marks=pytest.mark.xfail(strict=True, reason="a TypeError")),
        "experiments: [null]",
        "airflow: {tags: [null]}",
        "engine: [null]",
    ],
)
def test_a_null_in_a_list_is_no_item(text: str) -> None:
    study = json.dumps({key: OFFLINE[key] for key in ("serving_mode", "task")})[1:-1]
    with pytest.raises(StudyFileError, match=r"study\.yaml:1:\d+: \S+\[0\]|found the list"):
        load_study_text(f"{{{study}, {text}}}", name="study.yaml")


@pytest.mark.parametrize(
    "axis", ["sampling_preset", "task.max_input_tokens", "transformers.llem_execution.batch_size"]
)
def test_null_is_a_value_of_an_axis(axis: str) -> None:
    study = OFFLINE | {"sweep": {axis: ["creative" if axis == "sampling_preset" else 4, None]}}
    assert len(load_study_text(json.dumps(study)).experiments) == 2
