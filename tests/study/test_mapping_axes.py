"""An axis whose values are mappings, beside the groups, which are lists of mappings too."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llem_airflow.study import StudyFileError, load_study_text

HEAD: dict[str, Any] = {
    "serving_mode": "offline",
    "task": {"model": "org/model"},
    "measurement": {"meter": "cpu-estimate"},
    "engine": "vllm",
}
COMPILATION = "vllm.engine_params.compilation_config"
OTHERS = "transformers.sampling_params.watermarking_config"
LEVELS = [{"level": 1}, {"level": 3}]


def values(study: dict[str, Any], *path: str) -> list[Any]:
    """What each experiment has at a path; the ids of all of them differ."""
    experiments = load_study_text(json.dumps(HEAD | study), name="study.yaml").experiments
    assert (
        len({each.id for each in experiments}) == len({each.hash for each in experiments}) == len(experiments)
    )
    found = []
    for each in experiments:
        node: Any = each.config
        for key in path:
            node = node.get(key) if isinstance(node, dict) else None
        found.append(node)
    return found


def levels(sweep: dict[str, Any], **study: Any) -> list[Any]:
    return values({"sweep": sweep, **study}, *COMPILATION.split("."))


@pytest.mark.parametrize(
    "axis",
    [
        LEVELS,
        [{"level": 1, "mode": "x"}, {"level": 1, "mode": "y"}],
        [{"pass_config": {"enable_fusion": True}}, {"pass_config": {"enable_fusion": False}}],
        [{"min": 1, "max": 2}, {"min": 1, "max": 3}],
        [{"level": [0, 1]}, {"level": [2]}],
    ],
    ids=str,
)
def test_mappings_at_a_free_key_of_an_engine_are_the_values_of_an_axis(axis: list[Any]) -> None:
    assert levels({COMPILATION: axis}) == axis


def test_mappings_and_null_may_be_mixed() -> None:
    assert levels({COMPILATION: [None, *LEVELS]}) == [None, *LEVELS]


def test_the_older_name_of_the_engine_does_the_same() -> None:
    study = {"engine": "transformers", "sweep": {OTHERS.replace("transformers", "pytorch"): LEVELS}}
    assert values(study, *OTHERS.split(".")) == LEVELS


def test_an_axis_of_mappings_is_crossed_with_other_axes() -> None:
    assert levels({"task.random_seed": [1, 2], COMPILATION: LEVELS}) == [*LEVELS, *LEVELS]


def test_a_variant_of_a_group_may_hold_a_mapping_or_a_list_of_them() -> None:
    assert levels({"group": [{COMPILATION: LEVELS}]}) == LEVELS
    assert levels({"group": [{COMPILATION: LEVELS[0]}, {COMPILATION: LEVELS[1]}]}) == LEVELS


def test_mappings_of_a_key_that_is_a_mapping_are_the_values_of_an_axis() -> None:
    found = values({"sweep": {"passthrough_kwargs": [{"x": 1}, {"x": 2}]}}, "passthrough_kwargs")
    assert found == [{"x": 1}, {"x": 2}]


def test_the_values_of_such_a_key_are_checked_where_they_stand() -> None:
    with pytest.raises(StudyFileError, match=r"sweep\.passthrough_kwargs\[1\]: 'task' is a key of the study"):
        values({"sweep": {"passthrough_kwargs": [{"x": 1}, {"task": 2}]}})


@pytest.mark.parametrize("name", ["group", "precision", "vllm.quant", "A group of mine"])
def test_a_list_of_mappings_under_any_other_name_is_a_group(name: str) -> None:
    sweep = {name: [{COMPILATION: {"level": 1}, "task.random_seed": 5}, {}]}
    assert levels(sweep) == [{"level": 1}, None]


def test_a_range_is_no_mapping() -> None:
    assert values(
        {"sweep": {"vllm.engine_params.seed": {"min": 1, "max": 3, "num": 3}}},
        "vllm",
        "engine_params",
        "seed",
    ) == [1, 2, 3]
