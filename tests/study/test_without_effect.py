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
