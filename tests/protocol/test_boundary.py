"""What crosses the boundary is read strictly: a wrong file is told by its name and field, never half understood."""

from __future__ import annotations

import ast
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import llem_airflow
from llem_airflow.protocol.result import Anchor, AttemptError, CycleResult, Meter, Warmup, Window
from llem_airflow.protocol.spec import (
    ExperimentSpec,
    Limits,
    MeterSpec,
    ModelSource,
    Prompts,
    Synthetic,
)
from llem_airflow.protocol.typed_json import ProtocolError

SPEC = ExperimentSpec(
    schema_version=1,
    study="s",
    experiment_hash="0123456789abcdef",
    slug="tiny",
    engine="transformers",
    config={"task": {"model": "m"}},
    cycle=2,
    model=ModelSource("m", "/models/m"),
    prompts=Prompts("synthetic:8x4", "00", (), 3, Synthetic(8, 4)),
    meter=MeterSpec("nvml", 10.0, ("GPU-1",)),
    limits=Limits(600.0, None),
)
RESULT = CycleResult(
    schema_version=1,
    experiment_hash="0123456789abcdef",
    cycle=2,
    engine="transformers",
    engine_version="5",
    window=Window(1, 2, 3, 4, 5, 6),
    warmup=Warmup("converged", 10, 3.5, 0.01, "flat"),
    meter=Meter("none", "none", "none", (), 10.0, None, 0, 0, None, None, ""),
    anchors=(Anchor(1, 2), Anchor(3, 4)),
    model={},
    memory={"peak_rss_bytes": None},
    bundle_version="0",
)
ERROR = AttemptError(1, "ValueError", "no", "Traceback", "load", None)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@pytest.mark.parametrize("value", [SPEC, RESULT, ERROR])
def test_what_is_written_is_read_back_the_same(value: Any) -> None:
    assert type(value).loads(value.dumps()) == value


@given(config=st.dictionaries(st.text(), json_values))
def test_any_configuration_crosses_unchanged(config: dict[str, Any]) -> None:
    spec = replace(SPEC, config=config)
    assert ExperimentSpec.loads(spec.dumps()) == spec


def test_not_a_number_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        replace(SPEC, limits=Limits(float("nan"))).dumps()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "x.json: schema_version 2; this side speaks 1"),
        ({"surprise": 1}, "x.json: unknown field 'surprise'; known: config, cycle"),
        ({"cycle": "2"}, "x.json: cycle: expected int, found str"),
        ({"cycle": True}, "x.json: cycle: expected int, found bool"),
        ({"cycle": None}, "x.json: cycle: expected int, found NoneType"),
        ({"config": []}, "x.json: config: expected an object, found list"),
        ({"model": {}}, "x.json: model: field 'name' is missing"),
        ({"model": {"name": 3}}, "x.json: model: name: expected str, found int"),
        (
            {"prompts": {"source": "s", "sha256": "", "items": "text", "n_prompts": 1}},
            "items: expected a list, found str",
        ),
        ({"meter": {"gpus": ["a", 1]}}, r"x.json: meter: gpus\[1\]: expected str, found int"),
    ],
)
def test_a_wrong_field_is_named_with_what_was_found(change: dict[str, Any], message: str) -> None:
    data = json.loads(SPEC.dumps()) | change
    with pytest.raises(ProtocolError, match=message):
        ExperimentSpec.loads(json.dumps(data), "x.json")


@pytest.mark.parametrize(
    ("text", "message"), [("{", "not JSON"), ("[]", "schema_version None"), ("", "not JSON")]
)
def test_what_is_not_an_object_is_refused(text: str, message: str) -> None:
    for kind in (ExperimentSpec, CycleResult, AttemptError):
        with pytest.raises(ProtocolError, match=message):
            kind.loads(text)


def test_a_whole_number_is_a_number() -> None:
    data = json.loads(SPEC.dumps())
    data["limits"]["wall_clock_s"] = 600
    assert ExperimentSpec.loads(json.dumps(data)).limits.wall_clock_s == 600.0


@pytest.mark.parametrize("room", ["protocol", "measurement"])
def test_what_runs_in_the_container_parses_as_python_3_10(room: str) -> None:
    for path in (Path(llem_airflow.__file__).parent / room).rglob("*.py"):
        ast.parse(path.read_text(), str(path), feature_version=(3, 10))
