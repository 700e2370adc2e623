from __future__ import annotations

import json
from pathlib import Path

import pytest

from llem_airflow.protocol import PROTOCOL_VERSION
from llem_airflow.results import CycleRef, FailureRef, ResultReadError
from llem_airflow.results.folder import Folder
from llem_airflow.results.records import checked_plan
from tests.results.recorded import Recording


@pytest.fixture
def ref(tmp_path: Path) -> CycleRef:
    folder = Folder.at(tmp_path)
    folder.write("result.json", Recording().result().dumps().encode())
    return CycleRef(folder, "tiny-01234567", 1)


@pytest.mark.parametrize(
    ("version", "said"),
    [
        (PROTOCOL_VERSION + 1, r"result.json: schema_version \d+ was written by a newer llem-airflow"),
        (0, r"result.json: schema_version 0 can no longer be read"),
        (None, r"result.json: schema_version is missing"),
    ],
)
def test_a_format_that_cannot_be_read_is_named_with_its_version(
    ref: CycleRef, version: int | None, said: str
) -> None:
    data = json.loads(ref.folder.read("result.json")) | {"schema_version": version}
    ref.folder.write("result.json", json.dumps(data).encode())
    with pytest.raises(ResultReadError, match=said):
        ref.result()


def test_events_that_were_cut_off_or_have_no_time_are_left_out(ref: CycleRef) -> None:
    assert ref.events() == []
    ref.folder.write(
        "events.jsonl", b'{"t_mono_ns": 1}\n[2]\n{"t_mono_ns": "3"}\n' + b"[" * 100_000 + b'\n{"t_mo'
    )
    assert ref.events() == [{"t_mono_ns": 1}]


def test_half_a_surrogate_pair_is_read_as_the_sign_for_what_cannot_be_read(ref: CycleRef) -> None:
    """No file, page or plot can be written with it."""
    ref.folder.write("plan.json", rb'{"a\uD800": ["\udc00b", {"c": "\ud83d\ude00"}, 1]}')
    found = ref.folder.read_object("plan.json")
    assert found == {
        "a\N{REPLACEMENT CHARACTER}": ["\N{REPLACEMENT CHARACTER}b", {"c": "\N{GRINNING FACE}"}, 1]
    }
    ref.folder.write("events.jsonl", rb'{"t_mono_ns": 1, "event": "\ud800"}')
    assert ref.events()[0]["event"] == "\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize("data", [b"{}", b'{"kind": 1}', b"[]", b"{"])
def test_a_second_meter_that_cannot_be_read_is_named(ref: CycleRef, data: bytes) -> None:
    assert ref.check() is None
    ref.folder.write("meter_check.json", data)
    with pytest.raises(ResultReadError, match=r"meter_check\.json: "):
        ref.check()


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, ("unknown", "see ")),
        ({"error.json": "{"}, ("unknown", "see ")),
        ({"provenance.json": '{"failure": {}}'}, ("unknown", "failed")),
        ({"provenance.json": '{"failure": {"category": "x", "hint": "wait"}}'}, ("x", "wait")),
    ],
)
def test_a_failure_says_why_as_far_as_anything_tells(
    tmp_path: Path, files: dict[str, str], reason: tuple[str, str]
) -> None:
    folder = Folder.at(tmp_path)
    for name, text in files.items():
        folder.write(name, text.encode())
    category, said = FailureRef(folder, "tiny-01234567", 1, 1).reason()
    assert category == reason[0]
    assert said.startswith(reason[1])


@pytest.mark.parametrize(
    "plan",
    [{"cycles": "3"}, {"experiments": {}}, {"experiments": [1]}, {"experiments": [{}]}, {"order": [1]}],
)
def test_a_plan_of_another_shape_is_named(plan: dict[str, object]) -> None:
    with pytest.raises(ResultReadError, match=r"plan\.json: (cycles|experiments|order): expected "):
        checked_plan(plan, "plan.json")
