"""A key that changes nothing of what is measured changes no identity: results of before are found again."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llem_airflow.study import load_study_text

STUDY: dict[str, Any] = {"serving_mode": "offline", "task": {"model": "org/model"}}
ALWAYS = {
    "measurement.latency_profiling": True,
    "measurement.measurement_methodology": "steady_state",
    "measurement.measurement_window": [0, 5],
    "measurement.warmup_discard_fraction": 0.2,
    "measurement.warmup_discard_seconds": 3,
    "measurement.steady_state_auto_detect": True,
}
"""Keys of llenergymeasure's files that are accepted and read by nothing."""
WITHOUT_A_WARM_UP = {
    "offline.warmup.n_prompts": 9,
    "offline.warmup.thermal_floor_seconds": 90,
    "offline.warmup.convergence_detection": False,
    "offline.warmup.cv_threshold": 0.1,
    "offline.warmup.min_prompts": 3,
    "offline.warmup.max_prompts": 50,
    "offline.warmup.window_size": 4,
}
OFF = "offline.warmup.enabled"
CASES: list[tuple[str, Any, dict[str, Any]]] = [(key, value, {}) for key, value in ALWAYS.items()]
CASES += [(key, value, {OFF: [False]}) for key, value in WITHOUT_A_WARM_UP.items()]
EVERY_CASE = pytest.mark.parametrize(("key", "value", "fixed"), CASES, ids=[key for key, _, _ in CASES])


def hashes(sweep: dict[str, Any], execution: dict[str, Any] | None = None) -> list[str]:
    study = STUDY | {"sweep": sweep, "study_execution": execution or {}}
    return [each.hash for each in load_study_text(json.dumps(study)).experiments]


@EVERY_CASE
def test_a_key_without_effect_is_not_in_the_hash(key: str, value: Any, fixed: dict[str, Any]) -> None:
    assert hashes(fixed | {key: [value]}) == hashes(fixed)


@EVERY_CASE
def test_a_swept_key_without_effect_makes_one_experiment(key: str, value: Any, fixed: dict[str, Any]) -> None:
    plain = hashes(fixed)
    other = _other(value)
    assert hashes(fixed | {key: [value, other]}) == plain
    # Without deduplication, too: the points do not differ in anything that is measured.
    assert hashes(fixed | {key: [value, other]}, {"deduplicate_equivalent": False}) == plain


def _other(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, list):
        return [item + 1 for item in value]
    return "total" if isinstance(value, str) else value * 2 if isinstance(value, int) else value / 2


@pytest.mark.parametrize("key", WITHOUT_A_WARM_UP)
def test_a_warm_up_key_is_in_the_hash_of_an_experiment_that_warms_up(key: str) -> None:
    # min_prompts and the other bounds of a warm-up until it is steady; n_prompts asks for a fixed one.
    assert hashes({key: [WITHOUT_A_WARM_UP[key]]}) != hashes({})


@pytest.mark.parametrize("key", ALWAYS)
def test_a_key_without_effect_is_told(key: str) -> None:
    part, name = key.split(".")
    found = load_study_text(json.dumps(STUDY | {part: {name: ALWAYS[key]}}))
    assert [notice.code for notice in found.warnings] == ["no-effect"]
    assert key in found.warnings[0].message


SERVER: dict[str, Any] = {
    "serving_mode": "server",
    "engine": "vllm",
    "task": {"model": "org/model"},
    "server": {"traffic": {"rate": 1}},
}
JUDGING = {
    "server.traffic.slo.ttft_ms": [100, 500],
    "server.traffic.slo.tpot_ms": [None, 50],
    "server.traffic.slo.percentile": [0.9, 0.99],
    "server.traffic.request_timeout_seconds": [60, 600],
    "server.startup_timeout_seconds": [600, 900],
    "server.max_failed_ratio": [0.0, 0.1],
}
"""Keys that judge a result or bound an attempt, and change nothing of what is measured."""


@pytest.mark.parametrize("key", JUDGING)
def test_points_that_are_only_judged_otherwise_are_one_measurement_and_that_is_told(key: str) -> None:
    study = SERVER | {"sweep": {key: JUDGING[key], "server.traffic.rate": [1, 2]}}
    plan = load_study_text(json.dumps(study, indent=1)).plan
    assert [len(group.members) for group in plan.duplicates] == [2, 2]
    assert all(key in group.ignored for group in plan.duplicates)
    [told] = [one for one in plan.warnings if one.code == "same-measurement" and one.message.startswith(key)]
    assert told.line is not None
    assert "only the first is measured, and judged by its value" in told.message


@pytest.mark.parametrize("ids", [[["0"], ["1"]]])
def test_points_on_other_gpus_are_one_measurement_and_that_is_told(ids: list[list[str]]) -> None:
    study = STUDY | {"gpus": {"count": 1}, "sweep": {"gpus.ids": ids}}
    plan = load_study_text(json.dumps(study)).plan
    assert [group.ignored for group in plan.duplicates] == [("gpus.ids",)]
    assert [one.code for one in plan.warnings] == ["same-measurement"]


def test_a_written_key_that_no_point_uses_is_told_and_one_that_some_use_is_not() -> None:
    idle = SERVER | {"server": {"traffic": {"rate": 1, "burstiness": 2}}}
    assert [one.message for one in load_study_text(json.dumps(idle)).plan.warnings] == [
        "server.traffic.burstiness has no effect here: only gamma arrivals have a burstiness"
    ]
    used = idle | {"sweep": {"server.traffic.arrival": ["poisson", "gamma"]}}
    assert not [one for one in load_study_text(json.dumps(used)).plan.warnings if one.code == "no-effect"]


TOLD: dict[str, dict[str, Any]] = {
    "study_execution.gpu_indices": {"gpus": {"count": 1}, "study_execution": {"gpu_indices": [0]}},
    "images.transformers": {"runners": {"transformers": "process"}, "images": {"transformers": "my/image"}},
}
USED: dict[str, dict[str, Any]] = {
    "study_execution.gpu_indices": {"study_execution": {"gpu_indices": [0]}},
    "images.transformers": {"runners": {"transformers": "container"}, "images": {"transformers": "my/image"}},
}


@pytest.mark.parametrize("key", TOLD)
def test_a_key_that_another_one_overrides_is_told_with_its_line(key: str) -> None:
    def told(keys: dict[str, Any]) -> list[tuple[str, int | None]]:
        warnings = load_study_text(json.dumps(STUDY | keys, indent=1)).plan.warnings
        return [(one.message, one.line) for one in warnings if one.code == "no-effect"]

    [(message, line)] = told(TOLD[key])
    assert message.startswith(f"{key} has no effect here: ")
    assert line is not None
    assert told(USED[key]) == []
