"""What crosses the boundary is read strictly: a wrong file is told by its name and field, never half understood."""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

import llem_airflow
from llem_airflow.protocol.gpus import gpus_told, idle_conditions
from llem_airflow.protocol.result import Anchor, AttemptError, CycleResult, Meter, Warmup, Window
from llem_airflow.protocol.spec import (
    ExperimentSpec,
    Limits,
    MeterSpec,
    ModelSource,
    Prompts,
    Synthetic,
)
from llem_airflow.protocol.typed_json import UNLESS_DEFAULT, ProtocolError, from_json, to_json

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


def test_what_a_spec_does_not_say_is_as_the_protocol_says() -> None:
    assert MeterSpec() == MeterSpec("auto", 10.0, (), 10.0, 65.0, 30.0)
    assert Synthetic(8, 4) == Synthetic(8, 4, 0, (), ())
    data = json.loads(SPEC.dumps())
    for optional in ("known_baselines",):
        del data[optional]
    data["meter"], data["limits"], data["model"] = {}, {}, {"name": "m"}
    read = ExperimentSpec.loads(json.dumps(data))
    assert (read.meter, read.limits) == (MeterSpec(), Limits(None, None))
    assert (read.model, read.known_baselines) == (ModelSource("m", None, None, None), None)


@pytest.mark.parametrize(
    "name", ["schema_version", "study", "experiment_hash", "config", "prompts", "limits"]
)
def test_what_a_spec_has_to_say_is_missed(name: str) -> None:
    data = json.loads(SPEC.dumps())
    del data[name]
    with pytest.raises(ProtocolError, match=name):
        ExperimentSpec.loads(json.dumps(data))


def test_what_the_hub_is_asked_for() -> None:
    assert ModelSource("m", None, "main", "c0ffee").hub_revision == "c0ffee"
    assert ModelSource("m", None, "main").hub_revision == "main"
    assert ModelSource("m").hub_revision is None
    assert ModelSource("m", "/models/m", "main", "c0ffee").hub_revision is None


def test_idle_power_holds_for_a_boot_board_driver_limit_and_modes() -> None:
    gpu = {
        "uuid": "GPU-1",
        "driver_version": "580",
        "enforced_power_limit_w": 300.0,
        "persistence_mode": True,
        "ecc_mode": False,
        "mig_mode": None,
        "temperature_c": 40,
    }
    assert idle_conditions("b", [gpu]) == ("boot b", "GPU-1 580 300.0 True False None")
    assert idle_conditions(None, []) == ("boot None",)


@dataclass(frozen=True)
class Inner:
    x: float
    name: str = "unnamed"


@dataclass(frozen=True)
class Outer:
    many: tuple[Inner, ...]
    maybe: Inner | None = None
    anything: Any = None
    by_name: dict[str, int] = field(default_factory=dict)
    listed: list[int] = field(default_factory=list)


class Whole(int):
    """What a decoder of JSON may make of a number."""


def test_records_are_read_by_their_types() -> None:
    read = from_json(
        Outer, {"many": [{"x": 1}, {"x": 2.5, "name": "b"}], "anything": [1], "listed": [Whole(7)]}, "f"
    )
    assert read == Outer((Inner(1.0), Inner(2.5, "b")), None, [1], {}, (7,))  # type: ignore[arg-type]  # read as a tuple
    assert type(read.many[0].x) is float
    read = from_json(Outer, {"many": [], "maybe": {"x": 0.5}, "by_name": {"a": 1}}, "f")
    assert read == Outer((), Inner(0.5), None, {"a": 1}, [])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "f: field 'many' is missing"),
        ([], "f: expected an object, found list"),
        ({"many": None}, "f: many: null is not allowed|f: many: expected a list, found NoneType"),
        ({"many": [{"x": 1}, {"x": "y"}]}, r"f: many\[1\]: x: expected float, found str"),
        ({"many": [{"x": True}]}, r"f: many\[0\]: x: expected float, found bool"),
        ({"many": [], "maybe": {"x": None}}, "f: maybe: x: expected float, found NoneType"),
        ({"many": [], "by_name": []}, "f: by_name: expected an object, found list"),
        ({"many": [], "b": 1, "a": 1}, "f: unknown field 'a'; known: anything, by_name, listed, many, maybe"),
    ],
)
def test_a_record_of_other_types_is_refused_with_its_place(data: Any, message: str) -> None:
    with pytest.raises(ProtocolError, match=f"^{message}$"):
        from_json(Outer, data, "f")


def test_a_union_of_two_types_is_no_record_of_the_protocol() -> None:
    @dataclass(frozen=True)
    class Either:
        x: int | str

    with pytest.raises(TypeError, match="no unions but with null"):
        from_json(Either, {"x": 1}, "f")


def test_records_are_written_as_plain_values() -> None:
    assert to_json(Outer((Inner(1.0),), None, {"a": (1, 2)}, {"b": 2}, [3])) == {
        "many": [{"x": 1.0, "name": "unnamed"}],
        "maybe": None,
        "anything": {"a": [1, 2]},
        "by_name": {"b": 2},
        "listed": [3],
    }
    assert to_json({1: "one"}) == {"1": "one"}


class Named(NamedTuple):
    """Values that have names."""

    low: float
    high: float


@dataclass(frozen=True)
class Sparse:
    x: int
    note: str = field(default="", metadata=UNLESS_DEFAULT)
    always: str = ""


def test_values_with_names_keep_them_and_others_are_a_list() -> None:
    assert to_json({"interval": Named(1.0, 2.0), "pair": (1.0, 2.0)}) == {
        "interval": {"low": 1.0, "high": 2.0},
        "pair": [1.0, 2.0],
    }


def test_a_field_may_be_left_out_while_it_has_its_default() -> None:
    assert to_json(Sparse(1)) == {"x": 1, "always": ""}
    assert to_json(Sparse(1, "n")) == {"x": 1, "note": "n", "always": ""}


def test_files_are_written_indented_and_sorted() -> None:
    assert ERROR.dumps().startswith('{\n "category": null,\n "message": "no",\n')
    for value in (SPEC, RESULT, ERROR):
        text = value.dumps()
        assert text == json.dumps(json.loads(text), indent=1, sort_keys=True)


def test_errors_and_results_refuse_what_is_no_number() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        replace(RESULT, memory={"peak_rss_bytes": float("inf")}).dumps()
    with pytest.raises(ValueError, match="not JSON compliant"):
        replace(ERROR, retryable_hint=float("nan")).dumps()  # type: ignore[arg-type]  # what a caller may get wrong


@pytest.mark.parametrize(
    ("environment", "told"),
    [({"gpus": [{"uuid": "a"}, "odd"]}, [{"uuid": "a"}]), ({"gpus": {"uuid": "a"}}, []), ({}, [])],
)
def test_boards_are_what_the_environment_lists(environment: dict[str, Any], told: list[Any]) -> None:
    assert gpus_told(environment) == told
