"""Every field of a stored format is written somewhere and read somewhere."""

from __future__ import annotations

import ast
import dataclasses
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import llem_airflow
from llem_airflow.analysis import aggregate
from llem_airflow.analysis.cycle import Cycle, fingerprint
from llem_airflow.analysis.tables import CYCLE_FACTS
from llem_airflow.measurement.environment import environment
from llem_airflow.measurement.meters.nvml import describe_board
from llem_airflow.protocol import files, gpus, result, spec
from tests.results.recorded import Recording

PACKAGE = Path(llem_airflow.__file__).parent
INSIDE = ("measurement",)
ROOMS = ("study", "protocol", "measurement")
OUTSIDE = tuple(
    sorted(
        path.name
        for path in PACKAGE.iterdir()
        if path.name not in ROOMS and (path.is_dir() or path.suffix == ".py")
    )
)
"""Everything that is neither the question, nor the boundary, nor inside."""


@cache
def _trees(rooms: tuple[str, ...]) -> list[ast.AST]:
    files = [
        path
        for room in rooms
        for path in ([PACKAGE / room] if room.endswith(".py") else (PACKAGE / room).rglob("*.py"))
    ]
    return [ast.parse(path.read_text(encoding="utf-8")) for path in files]


@cache
def written(rooms: tuple[str, ...]) -> set[str]:
    """Names that are given a value: keywords of calls, keys of dictionaries, subscripts and attributes that are set."""
    found: set[str] = set()
    for node in (node for tree in _trees(rooms) for node in ast.walk(tree)):
        if isinstance(node, ast.keyword) and node.arg:
            found.add(node.arg)
        elif isinstance(node, ast.Dict):
            found |= {
                key.value for key in node.keys if isinstance(key, ast.Constant) and isinstance(key.value, str)
            }
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and hasattr(spec, node.func.id):
            made = getattr(spec, node.func.id)  # given by their places
            if dataclasses.is_dataclass(made):
                found |= {field.name for field in dataclasses.fields(made)[: len(node.args)]}
    return found


@cache
def read(rooms: tuple[str, ...]) -> set[str]:
    """Names that are asked for: attributes that are loaded, and texts outside dictionaries' keys."""
    found: set[str] = set()
    for tree in _trees(rooms):
        keys = {
            id(key)
            for node in ast.walk(tree)
            if isinstance(node, ast.Dict)
            for key in node.keys
            if key is not None
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                found.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in keys:
                found.add(node.value)
    return found


def fields(*classes: Any) -> Iterable[Any]:
    return [
        pytest.param(field.name, id=f"{cls.__name__}.{field.name}")
        for cls in classes
        for field in dataclasses.fields(cls)
    ]


@pytest.mark.parametrize(
    "name",
    fields(
        result.Window, result.Warmup, result.Meter, result.CycleResult, result.Anchor, result.AttemptError
    ),
)
def test_what_an_attempt_says_is_written_inside_and_read_outside(name: str) -> None:
    assert name in written(INSIDE) | read(INSIDE)
    if name != "traceback":  # for people, who open error.json
        assert name in read((*OUTSIDE, "protocol"))


@pytest.mark.parametrize(
    "name", fields(spec.ExperimentSpec, spec.MeterSpec, spec.ModelSource, spec.Prompts, spec.Limits)
)
def test_what_an_attempt_is_told_is_written_outside_and_read_inside(name: str) -> None:
    assert name in written((*OUTSIDE, "study"))
    assert name in read((*INSIDE, "protocol", "analysis"))


@pytest.mark.parametrize("name", [*files.POWER_COLUMNS, *files.REQUEST_FIELDS])
def test_every_column_of_a_stream_is_written_inside_and_kept_outside(name: str) -> None:
    assert name in written(INSIDE)
    assert name in read(("results", "analysis", "protocol"))


@pytest.mark.parametrize("name", fields(Cycle))
def test_every_fact_of_a_row_is_filled_and_shown(name: str) -> None:
    assert name in written(("analysis",))
    assert name in read(OUTSIDE)


def test_every_fact_of_a_board_is_a_condition_a_property_or_of_the_moment() -> None:
    """And all but those of the moment reach the page of environments: none is dropped under another name."""
    said = dict.fromkeys(describe_board(SilentNvml(), None), "x")
    assert set(gpus.BOARD_CONDITIONS) < set(said)
    assert set(gpus.BOARD_STATE) < set(said)
    shown = json.loads(aggregate._stable({"gpus": [said]}))["gpus"][0]
    assert set(said) - set(shown) == set(gpus.BOARD_STATE)


class SilentNvml:
    """A driver that answers nothing: the interface is NVIDIA's."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    class NVMLError(Exception):
        """As pynvml's."""

    def __getattr__(self, name: str) -> Any:
        def refuse(*_: Any) -> None:
            raise self.NVMLError(name)

        return refuse


def test_every_field_of_the_fingerprint_is_filled() -> None:
    """By a cycle of an attempt on a board, in a container: nothing is asked for under a name that nobody writes."""
    board = dict.fromkeys(gpus.BOARD_CONDITIONS, "x")
    recorded = Recording()
    told = recorded.environment() | {
        "gpus": [board],
        "driver": "570",
        "cpu": {"model": "m"},
        "cgroup": {"cpus": 2.0},
    }
    seen = dataclasses.replace(recorded.result(), bundle_sha256="ab" * 32)
    record = {"image_digest": "sha256:0", "runner": "container"}
    asked = dataclasses.replace(
        recorded.spec(), model=dataclasses.replace(recorded.spec().model, revision="main")
    )
    found = fingerprint(asked, seen, told, record, semantics_version=1)
    assert [name for name, value in found.items() if value in (None, "", [], {})] == []
    assert found["gpus"] == [board]
    assert set(told) <= set(environment_fields()) | {"schema_version"}


def environment_fields() -> dict[str, Any]:
    return environment(engine="e", facts=None, settings={}, gpus=[], gpus_after=[], anchors=[])


def test_code_that_was_edited_measures_under_another_name() -> None:
    one = Recording()
    names = {
        fingerprint(
            one.spec(), dataclasses.replace(one.result(), bundle_sha256=code), {}, {}, semantics_version=1
        )["measured_by"]
        for code in ("aa" * 32, "bb" * 32, None)
    }
    assert len(names) == 3


def test_every_column_of_the_cycles_is_filled_by_a_row() -> None:
    row = {field.name for field in dataclasses.fields(Cycle)} | {
        "study",
        "run_id",
        "started",
        "finished",
        "doubtful",
    }
    assert [name for name, _, _ in CYCLE_FACTS if name not in row] == []


def test_a_fingerprint_holds_what_decides_whether_two_results_compare() -> None:
    """A field that is left out makes results of other conditions equal: each is named here once more."""
    one = Recording()
    told = {
        "gpus": [dict.fromkeys(describe_board(SilentNvml(), None), "x")],
        "driver": "570",
        "cpu": {"model": "m"},
        "cgroup": {"cpus": 2.0},
    }
    found = fingerprint(one.spec(), one.result(), told, {"runner": "container"}, semantics_version=3)
    assert set(found) == {
        *("experiment_hash", "model", "model_revision", "engine", "engine_version", "image_digest"),
        *("gpus", "driver", "cpu", "cpu_limit", "runner", "meter", "energy_kind"),
        *("prompts_sha256", "n_prompts", "measured_by", "energy_semantics"),
    }
    assert (found["n_prompts"], found["energy_semantics"]) == (one.spec().prompts.n_prompts, 3)
    assert set(found["gpus"][0]) == {
        *("uuid", "name", "driver_version", "power_limit_w", "enforced_power_limit_w"),
        *("ecc_mode", "mig_mode", "persistence_mode"),
    }
