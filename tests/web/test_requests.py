"""What pages and `results prune` ask of an object store does not grow with the runs in it; counted before a server."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import fsspec
import pytest

from llem_airflow.analysis.aggregate import aggregate_run
from llem_airflow.analysis.compare_named import previous_run
from llem_airflow.report.console import list_runs, prune
from llem_airflow.results import ResultsRoot, StoredRun, layout
from llem_airflow.results.cleanup import removable
from llem_airflow.results.store import locate_run, marks_in
from llem_airflow.web.app import Server, server
from tests.analysis.conftest import run_maker
from tests.results import roots
from tests.results.recorded import Recording
from tests.results.s3_gate import Gate, gate_before
from tests.results.swift import KEY, SECRET
from tests.web.conftest import Site
from tests.web.written import BEGAN_NS, DAY_NS

s3_server = roots.s3_server


@pytest.fixture
def gate(s3_server: str) -> Iterator[Gate]:
    with gate_before(s3_server) as found:
        yield found


@pytest.fixture
def root(gate: Gate, request: pytest.FixtureRequest, tmp_path: Path) -> ResultsRoot:
    """A root on the server behind the gate."""
    made = roots.new_root("s3", request, tmp_path)
    return ResultsRoot(made.url, endpoint_url=gate.url, key=KEY, secret=SECRET)


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> StoredRun:
    """A run that was measured and aggregated."""
    folder = tmp_path_factory.mktemp("night")
    cycles = {(0, 1): Recording(), (1, 1): Recording()}
    made = run_maker(ResultsRoot(folder / "one"), folder)(cycles, cycles=1)
    aggregate_run(made, page=lambda _: "<html>")
    return made


class Nights:
    """Aggregated runs of one study, each a copy of one that was measured."""

    def __init__(self, root: ResultsRoot, night: StoredRun) -> None:
        self.root, self.count = root, 0
        self._meta = night.meta()
        self._files = {name: night.folder.read(name) for name in night.folder.files()}

    def add(self, count: int, *, marked: bool = True) -> None:
        for number in range(self.count, self.count + count):
            run = self.root.run("nightly", f"r{number:04}")
            meta = {**self._meta, "run_id": run.run_id, "started_epoch_ns": BEGAN_NS + number * DAY_NS}
            run.folder.fs.pipe(
                {
                    f"{run.folder.path}/{name}": data
                    for name, data in self._files.items()
                    if name != layout.RUN
                }
                | {f"{run.folder.path}/{layout.RUN}": json.dumps(meta).encode()}
            )
            if marked:
                run.mark_aggregated()
        self.count += count


@pytest.fixture
def nights(root: ResultsRoot, night: StoredRun) -> Nights:
    return Nights(root, night)


def counted(gate: Gate, act: Callable[[], Any]) -> int:
    before = len(gate.asked)
    act()
    return len(gate.asked) - before


def test_pages_ask_for_no_more_when_there_are_more_runs(nights: Nights, gate: Gate, site: Site) -> None:
    state = Server(nights.root.url)
    state.index.root = nights.root
    site.client.app.dependency_overrides[server] = lambda: state  # type: ignore[attr-defined]
    pages = {
        "studies": {},
        "headline": {"dag_id": "nightly", "study": "nightly"},
        "runs": {"dag_id": "nightly"},
        "trend": {"dag_id": "nightly"},
        "verdicts": {"dag_id": "nightly", "study": "nightly", "metric": "energy_per_output_token_j"},
        "compare": {"dag_id": "nightly"},
        "leaderboard": {},
        "explore": {"dag_id": "nightly", "run_id": "r0003"},
    }

    def look(page: str) -> None:
        answer = site.get(f"/api/{page}", **pages[page])
        assert answer.status_code == 200, answer.text

    asked = []
    for more in (10, 30):
        nights.add(more)
        first = {page: counted(gate, partial(look, page)) for page in pages}
        assert max(first["studies"], first["runs"]) <= 8, first  # by the marks alone
        assert first["headline"] <= 2 * more + 8, first  # two tables of each new run, a request each
        asked.append({page: counted(gate, partial(look, page)) for page in pages})
    assert asked[0] == asked[1]
    assert max(asked[1].values()) <= 8, asked


def test_a_list_of_runs_reads_only_those_that_it_shows(
    nights: Nights, gate: Gate, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"endpoint_url": nights.root.folder.fs.endpoint_url, "key": KEY, "secret": SECRET}

    def show() -> None:
        with mock.patch.dict(fsspec.config.conf, s3=options):
            assert list_runs(nights.root.url, limit=5) == 0

    nights.add(10)
    few = counted(gate, show)
    nights.add(30)
    capsys.readouterr()
    assert counted(gate, show) == few
    assert few <= 5 + 8
    said = capsys.readouterr().out
    assert said.index("nightly/r0039") < said.index("nightly/r0035")
    assert "nightly/r0034" not in said
    assert "Runs 1 to 5 of 40; older ones: --skip 5" in said


def test_prune_looks_into_no_run_that_stays(
    nights: Nights, gate: Gate, capsys: pytest.CaptureFixture[str]
) -> None:
    def look(stay: int) -> None:
        assert removable(nights.root, now_epoch_ns=time.time_ns(), keep_runs=stay) == []
        newest = locate_run("latest", nights.root)
        assert newest.run_id == f"r{nights.count - 1:04}"
        assert locate_run("nightly", nights.root) == newest
        before = previous_run(newest)
        assert before is not None
        assert before.run_id == f"r{nights.count - 2:04}"

    nights.add(10)
    few = counted(gate, lambda: look(100))
    nights.add(30)
    assert counted(gate, lambda: look(100)) == few
    assert few <= 24

    going = removable(nights.root, now_epoch_ns=time.time_ns(), keep_runs=38)
    assert [one.run.run_id for one in going] == ["r0000", "r0001"]
    assert prune_all(nights.root, 38) == 0
    assert "2 runs" in capsys.readouterr().out
    assert len(marks_in(nights.root.folder.child("nightly"))) == 38
    assert len(nights.root.studies()) == 1
    assert len(nights.root.folder.child("nightly").folders()) == 38


def prune_all(root: ResultsRoot, stay: int) -> int:
    options = {"endpoint_url": root.folder.fs.endpoint_url, "key": KEY, "secret": SECRET}
    with mock.patch.dict(fsspec.config.conf, s3=options):
        return prune(root.url, study=None, keep_runs=stay, keep_days=None, yes=True)


def test_a_run_without_a_mark_is_looked_into_and_one_aggregated_again_is_read_again(
    nights: Nights, root: ResultsRoot
) -> None:
    nights.add(1, marked=False)
    nights.add(1)
    study = root.folder.child("nightly")
    assert [run.run_id for run in root.aggregated("nightly")] == ["r0000", "r0001"]
    (before,) = marks_in(study).values()
    root.run("nightly", "r0001").mark_aggregated()
    (after,) = marks_in(study).values()
    assert before.version != after.version
    assert before.facts == after.facts
    assert before.facts["started_epoch_ns"] == BEGAN_NS + DAY_NS


def test_a_mark_without_facts_sends_to_run_json(nights: Nights, root: ResultsRoot) -> None:
    nights.add(2, marked=False)
    study = root.folder.child("nightly")
    study.child(".runs").write(f"r0000~{BEGAN_NS}", b"{}")  # as an earlier version left it
    meta = root.run("nightly", "r0001").meta() | {
        "dag_id": "d" * 800
    }  # more than the name of an object holds
    study.child("r0001").write(layout.RUN, json.dumps(meta).encode())
    root.run("nightly", "r0001").mark_aggregated()
    assert {name: mark.facts for name, mark in marks_in(study).items()} == {"r0000": {}, "r0001": {}}
    assert [run.run_id for run in root.aggregated("nightly")] == ["r0000", "r0001"]
    assert root.find_run("d" * 800, "r0001") is not None
    earlier = marks_in(study)["r0000"].version
    root.run("nightly", "r0000").mark_aggregated()
    mark = marks_in(study)["r0000"]
    assert (mark.facts["run_id"], mark.version != earlier) == ("r0000", True)
    (first, _) = root.runs("nightly")
    first.unmark()
    assert list(marks_in(study)) == ["r0001"]
