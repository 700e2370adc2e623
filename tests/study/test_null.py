"""``X: null`` means what leaving X out means, for every section and key of the schema."""

from __future__ import annotations

import json
from copy import deepcopy
from itertools import pairwise
from typing import Any

import pytest

from llem_airflow.study import StudyFileError, load_study_text
from llem_airflow.study.config.base import keys_of
from llem_airflow.study.config.experiment import Experiment
from llem_airflow.study.names import ENGINES
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
    "airflow": {"schedule": "0 2 * * *", "export": [{"to": "influx", "conn_id": "db"}]},
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


def _keys() -> list[Any]:
    paths = (path for path in key_paths() if path not in A_VALUE)
    texts = {path: ".".join(map(str, path)) for path in paths}
    return [pytest.param(path, id=text) for path, text in texts.items()]


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


def _measured(study: dict[str, Any]) -> Any:
    """What is measured, without the names that a sweep gives; the problems when it is refused."""
    try:
        return [(each.hash, each.gpus) for each in load_study_text(json.dumps(study)).experiments]
    except StudyFileError as error:
        return [each.found for each in error.problems]


def _axes() -> list[Any]:
    """The keys that a sweep may name: of an experiment, not in a list, and not the engine's section itself."""
    paths = [(one, one.values[0]) for one in _keys()]
    return [
        one
        for one, path in paths
        if keys_of(Experiment).get(str(path[0])) is not None and 0 not in path and path[0] != "engine"
    ]


@pytest.mark.parametrize("path", _axes())
def test_null_on_an_axis_in_a_group_and_in_an_entry_is_as_if_the_key_were_not_there(path: Path) -> None:
    _, study = with_and_without(path)
    study |= {"engine": path[0]} if path[0] in ENGINES else {}  # whose axes are its own
    wanted = _measured(study)
    dotted = ".".join(map(str, path))
    nested: Any = None
    for key in reversed(path):
        nested = {key: nested}
    assert _measured(study | {"sweep": {dotted: None}}) == wanted
    assert _measured(study | {"sweep": {dotted: [None]}}) == wanted
    assert _measured(study | {"sweep": {"group": [{dotted: None}]}}) == wanted
    assert _measured(study | {"experiments": [nested]}) == wanted
    if len(path) > 1:
        assert _measured(study | {"sweep": {"group": [{path[0]: nested[path[0]]}]}}) == wanted


@pytest.mark.parametrize("path", A_VALUE, ids=str)
def test_null_is_a_value_only_where_it_says_so(path: Path) -> None:
    with_null, without = with_and_without(path)
    assert None not in (outcome(with_null), outcome(without))
    assert outcome(with_null) != outcome(without)


@pytest.mark.parametrize(
    "text",
    [
        "versions: [null]",
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
