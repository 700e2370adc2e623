from __future__ import annotations

import json
from pathlib import Path

import pytest

from llem_airflow.analysis.aggregate import aggregate_run
from llem_airflow.analysis.integrity import check_run
from llem_airflow.report.page import report_html
from llem_airflow.results import ResultReadError, ResultsRoot, StoredRun
from llem_airflow.results.folder import ResultsWriteError
from tests.results.conftest import RUN_ID
from tests.results.recorded import EPOCH_NS, Recording, S, plan_json, provenance

EXPERIMENT = "tiny-01234567"


def test_is_committed_says_so_only_for_that_cycle(run: StoredRun, tmp_path: Path) -> None:
    assert not run.is_committed(EXPERIMENT, 1)
    run.commit_cycle(EXPERIMENT, 1, Recording().write(tmp_path / "out"), provenance())
    assert run.is_committed(EXPERIMENT, 1)
    assert not run.is_committed(EXPERIMENT, 2)
    assert not run.is_committed("tiny", 1)
    assert not run.is_committed("tiny-012345678", 1)


def test_a_folder_without_a_result_is_not_a_cycle(run: StoredRun, tmp_path: Path) -> None:
    run.commit_cycle(EXPERIMENT, 1, Recording().write(tmp_path / "out"), provenance())
    run.folder.child("experiments", EXPERIMENT, "cycle-2").write("power.parquet", b"half")
    assert [ref.cycle for ref in run.cycles()] == [1]


def test_a_failure_reads_back_its_category_and_first_line(run: StoredRun, tmp_path: Path) -> None:
    record = provenance() | {
        "failure": {"category": "engine", "message": "boom\nmore", "hint": "", "retryable": False}
    }
    run.commit_failed(EXPERIMENT, 2, 1, tmp_path / "absent", record)
    run.commit_failed(EXPERIMENT, 2, 2, tmp_path / "absent", record)
    refs = run.failures()
    assert [(ref.cycle, ref.attempt) for ref in refs] == [(2, 1), (2, 2)]
    assert refs[0].reason() == ("engine", "boom")


def test_the_plan_reads_back_and_the_original_run_id_is_kept(root: ResultsRoot, run: StoredRun) -> None:
    run.write_plan("model: tiny\n", {"cycles": 1}, {"dag_id": "nightly"})
    run.write_plan("model: tiny\n", {"cycles": 1}, {"dag_id": "nightly"})
    (found,) = root.runs()
    assert found.run_id == RUN_ID
    assert found.plan() == {"cycles": 1}
    assert found.study_text() == "model: tiny\n"
    assert root.studies() == ["nightly"]


def test_an_earlier_plan_is_kept_when_the_study_was_edited(run: StoredRun) -> None:
    run.write_plan("a", {"cycles": 1}, {})
    run.write_plan("a", {"cycles": 2}, {})
    assert run.plan() == {"cycles": 2}
    (name,) = run.folder.child("superseded").files()
    assert json.loads(run.folder.child("superseded").read(name)) == {"cycles": 1}


def test_two_runs_never_write_into_one_folder(run: StoredRun) -> None:
    run.write_plan("a", {}, {})
    with pytest.raises(ResultsWriteError, match="belongs to run"):
        StoredRun(run.folder, "nightly", "another").write_plan("a", {}, {})


def test_find_run_wants_both_the_dag_and_the_run(root: ResultsRoot, run: StoredRun) -> None:
    run.write_plan("a", {}, {"dag_id": "energy"})
    found = root.find_run("energy", RUN_ID)
    assert found is not None
    assert found.url == run.url
    assert root.find_run("energ", RUN_ID) is None
    assert root.find_run("energy", RUN_ID + "x") is None


def test_last_finished_counts_failed_attempts_too(run: StoredRun, tmp_path: Path) -> None:
    assert run.last_finished_epoch_ns() is None
    run.commit_cycle(EXPERIMENT, 1, Recording().write(tmp_path / "out"), provenance(0))
    run.commit_failed(EXPERIMENT, 2, 1, tmp_path / "absent", provenance(100))
    assert run.last_finished_epoch_ns() == EPOCH_NS + 160 * S


def test_a_run_is_aggregated_where_it_lies(run: StoredRun, tmp_path: Path) -> None:
    plan = plan_json([(EXPERIMENT, Recording().hash, {})], cycles=1)
    run.write_plan("model: tiny\n", plan, {"dag_id": "nightly"})
    run.commit_cycle(EXPERIMENT, 1, Recording().write(tmp_path / "out"), provenance())
    summary = aggregate_run(run, page=report_html)
    assert (summary.valid, summary.missing) == (1, ())
    assert run.summary() == summary.to_json()
    assert {"summary.json", "cycles.parquet", "experiments.parquet", "power.parquet", "report.html"} <= set(
        run.folder.files()
    )
    first = run.folder.read("power.parquet")
    aggregate_run(run, page=report_html)
    assert run.folder.read("power.parquet") == first
    assert check_run(run) == []


def test_reasons_of_skipped_cycles_read_back_and_a_damaged_one_is_named(run: StoredRun) -> None:
    run.mark_skipped(EXPERIMENT, 2, "not needed", needed=False)
    run.mark_skipped(EXPERIMENT, 3, "outside the window", needed=True)
    assert (run.skipped(needed=False), run.skipped(needed=True)) == (
        {(EXPERIMENT, 2): "not needed"},
        {(EXPERIMENT, 3): "outside the window"},
    )
    run.folder.child("skipped", EXPERIMENT).write("cycle-2.json", b'{"cyc')
    with pytest.raises(ResultReadError, match=r"skipped/.*/cycle-2\.json: not JSON"):
        run.skipped(needed=False)


@pytest.mark.parametrize("name", ["run.json", "plan.json", "summary.json"])
def test_a_file_of_the_run_that_is_no_object_is_named_and_hides_no_run(
    root: ResultsRoot, run: StoredRun, name: str
) -> None:
    run.write_plan("a", {"cycles": 1}, {"dag_id": "energy"})
    run.folder.write(name, b"[]")
    (found,) = root.runs()
    read = {"run.json": found.meta, "plan.json": found.plan, "summary.json": found.summary}[name]
    with pytest.raises(ResultReadError, match=rf"{name}: expected an object"):
        read()
