"""Checks across keys see whole experiments, wherever the keys are written: fixed, swept, in an entry or a base."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llem_airflow.study import Study, StudyFileError, load_study

HEAD = {"serving_mode": "offline", "task": {"model": "org/model"}}
TORCH = "transformers.llem_execution.torch_compile"

CONTRADICTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "idle-above-full": ({"measurement.cpu_idle_watts": 80}, {"measurement.cpu_max_watts": 70}),
    "idle-above-the-default-of-full": ({"measurement.cpu_idle_watts": 80}, {}),
    "full-below-the-default-of-idle": ({"measurement.cpu_max_watts": 5}, {}),
    "two-meters": ({"measurement.meter": "nvml"}, {"measurement.energy_sampler": "codecarbon"}),
    "no-window": ({"measurement.measurement_methodology": "windowed"}, {}),
    "not-compiled-mode": ({TORCH: False}, {f"{TORCH}_mode": "default"}),
    "not-compiled-backend": ({TORCH: False}, {f"{TORCH}_backend": "inductor"}),
    "warm-up-bounds": ({"offline.warmup.min_prompts": 9}, {"offline.warmup.max_prompts": 6}),
}
"""Keys that contradict each other, or the default of another one."""

AGREEMENTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "idle-above-full": ({"measurement.cpu_idle_watts": 80}, {"measurement.cpu_max_watts": 100}),
    "full-below-idle": ({"measurement.cpu_max_watts": 8}, {"measurement.cpu_idle_watts": 5}),
    "window": (
        {"measurement.measurement_methodology": "windowed"},
        {"measurement.measurement_window": [0, 5]},
    ),
    "warm-up-bounds": ({"offline.warmup.min_prompts": 50}, {"offline.warmup.max_prompts": 60}),
}
"""Keys of which the first alone contradicts a default, and the second makes it right."""


def nested(keys: dict[str, Any], below: dict[str, Any] | None = None) -> dict[str, Any]:
    """Dotted keys as mappings."""
    result: dict[str, Any] = json.loads(json.dumps(below or {}))
    for key, value in keys.items():
        *parts, last = key.split(".")
        node = result
        for part in parts:
            node = node.setdefault(part, {})
        node[last] = value
    return result


def ways(one: dict[str, Any], other: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Every way to write two sets of keys: its name, the study, and its base file (empty for none)."""
    both = one | other
    fixed = nested(both, HEAD)
    # A list that is the value of a key is one item of an axis.
    first, second = ({key: [value] for key, value in keys.items()} for keys in (one, other))
    yield "fixed", fixed, {}
    yield "axes", HEAD | {"sweep": first | second}, {}
    yield "group", HEAD | {"sweep": {"group": [first | second]}}, {}
    yield "nested-group", HEAD | {"sweep": {"group": [nested(both)]}}, {}
    yield "entry", HEAD | {"experiments": [nested(both)]}, {}
    yield "base", {"base": "base.yaml"}, fixed
    if other:
        yield "axis-over-fixed", nested(one, HEAD) | {"sweep": second}, {}
        yield "fixed-under-axis", nested(other, HEAD) | {"sweep": first}, {}
        yield "group-over-axis", HEAD | {"sweep": first | {"group": [second]}}, {}
        yield "entry-over-fixed", nested(one, HEAD) | {"experiments": [nested(other)]}, {}
        yield "fixed-under-entry", nested(other, HEAD) | {"experiments": [nested(one)]}, {}
        yield "study-over-base", nested(other, {"base": "base.yaml"}), nested(one, HEAD)
        yield "base-under-study", nested(one, {"base": "base.yaml"}), nested(other, HEAD)
        yield "axis-over-base", {"base": "base.yaml", "sweep": second}, nested(one, HEAD)
        yield "entry-over-base", {"base": "base.yaml", "experiments": [nested(other)]}, nested(one, HEAD)


def loaded(folder: Path, study: dict[str, Any], base: dict[str, Any]) -> Study:
    """The study, beside its base file."""
    if base:
        (folder / "base.yaml").write_text(json.dumps(base))
    path = folder / "study.yaml"
    path.write_text(json.dumps(study, indent=1))
    return load_study(path)


def _cases(table: dict[str, tuple[dict[str, Any], dict[str, Any]]]) -> list[Any]:
    return [
        pytest.param(study, base, id=f"{name}-{way}")
        for name, (one, other) in table.items()
        for way, study, base in ways(one, other)
    ]


@pytest.mark.parametrize(("study", "base"), _cases(CONTRADICTIONS))
def test_a_contradiction_is_refused_wherever_its_keys_are_written(
    tmp_path: Path, study: dict[str, Any], base: dict[str, Any]
) -> None:
    with pytest.raises(StudyFileError, match=r"(study|base)\.yaml:\d+:\d+: "):
        loaded(tmp_path, study, base)


@pytest.mark.parametrize(("study", "base"), _cases(AGREEMENTS))
def test_what_agrees_as_a_whole_is_accepted_wherever_its_keys_are_written(
    tmp_path: Path, study: dict[str, Any], base: dict[str, Any]
) -> None:
    assert len(loaded(tmp_path, study, base).experiments) == 1


@pytest.mark.parametrize(("key", "values"), [("cpu_idle_watts", [5, 80]), ("cpu_max_watts", [5, 80])])
def test_no_experiment_of_a_sweep_contradicts_itself(tmp_path: Path, key: str, values: list[int]) -> None:
    """Whether the sweep is refused for one of its points or does without it: the point is not planned."""
    try:
        study = loaded(tmp_path, HEAD | {"sweep": {f"measurement.{key}": values}}, {})
    except StudyFileError:
        return
    found = [each.config["measurement"] for each in study.experiments]
    assert all(one["cpu_idle_watts"] < one["cpu_max_watts"] for one in found)


@pytest.mark.parametrize(
    ("key", "fixed"), [("cpu_max_watts", "cpu_idle_watts"), ("cpu_idle_watts", "cpu_max_watts")]
)
def test_a_point_that_contradicts_itself_is_told_at_the_value_that_makes_it_so(
    tmp_path: Path, key: str, fixed: str
) -> None:
    study = HEAD | {
        "measurement": {"meter": "cpu-estimate", fixed: 40},
        "sweep": {f"measurement.{key}": [40, 41, 39]},
    }
    with pytest.raises(StudyFileError) as caught:
        loaded(tmp_path, study, {})
    refused = {"cpu_max_watts": [0, 2], "cpu_idle_watts": [0, 1]}[key]
    assert [one.path for one in caught.value.problems] == [f"sweep.measurement.{key}[{n}]" for n in refused]
