from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path

import pytest

from llem_airflow.analysis.aggregate import aggregate_run
from llem_airflow.analysis.integrity import check_run
from llem_airflow.results import ResultReadError, ResultsRoot, StoredRun
from llem_airflow.results.cleanup import removable, remove
from llem_airflow.results.folder import Folder, ResultsWriteError
from tests.results.conftest import RUN_ID
from tests.results.recorded import EPOCH_NS, Recording, S, plan_json, provenance

EXPERIMENT = "tiny-01234567"


def test_a_committed_cycle_reads_back_what_the_attempt_left(run: StoredRun, tmp_path: Path) -> None:
    recording = Recording()
    run.commit_cycle(EXPERIMENT, 1, recording.write(tmp_path / "out"), provenance())
    (ref,) = run.cycles()
    assert (ref.experiment_id, ref.cycle, ref.repeat) == (EXPERIMENT, 1, 0)
    assert ref.result() == recording.result()
    assert ref.config() == recording.spec()
    assert ref.environment() == recording.environment()
    assert ref.events() == recording.events()
    assert ref.requests().to_pylist()[3]["token_mono_ns"] == recording.request_rows()[3]["token_mono_ns"]
    assert ref.power().num_rows == len(recording.sample_times_s())
    assert ref.provenance()["host"] == {"name": "gpu-1"}


def test_a_stored_cycle_has_the_documented_files(run: StoredRun, tmp_path: Path) -> None:
    run.commit_cycle(EXPERIMENT, 1, Recording().write(tmp_path / "out"), provenance())
    assert run.cycles()[0].folder.files() == [
        "config.json",
        "container.log",
        "environment.json",
        "events.jsonl",
        "power.parquet",
        "provenance.json",
        "requests.parquet",
        "result.json",
    ]


def test_the_root_holds_nothing_but_the_cycle_after_a_commit(tmp_path: Path) -> None:
    run = ResultsRoot(tmp_path / "results").run("nightly", RUN_ID)
    run.commit_cycle(EXPERIMENT, 1, Recording().write(tmp_path / "out"), provenance())
    left = {path.relative_to(run.folder.path).parts[0] for path in Path(run.folder.path).rglob("*")}
    assert left == {"experiments"}


def test_the_same_result_committed_twice_is_stored_once(run: StoredRun, tmp_path: Path) -> None:
    folder = Recording().write(tmp_path / "out")
    first = run.commit_cycle(EXPERIMENT, 1, folder, provenance())
    assert run.commit_cycle(EXPERIMENT, 1, folder, provenance(5)) == first
    assert len(run.cycles(repeats=True)) == 1


def test_another_result_of_a_cycle_is_stored_beside_the_first(run: StoredRun, tmp_path: Path) -> None:
    run.commit_cycle(EXPERIMENT, 1, Recording(power_w=100).write(tmp_path / "a"), provenance())
    url = run.commit_cycle(EXPERIMENT, 1, Recording(requests=5).write(tmp_path / "b"), provenance())
    assert url.endswith("cycle-1-repeat-1")
    assert [ref.repeat for ref in run.cycles(repeats=True)] == [0, 1]
    assert [ref.repeat for ref in run.cycles()] == [1]


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


def test_an_attempt_without_a_result_cannot_be_committed(run: StoredRun, tmp_path: Path) -> None:
    folder = Recording().write(tmp_path / "out")
    (folder / f"{Recording().hash}_result.json").unlink()
    with pytest.raises(ResultReadError, match=r"no \*_result.json: the attempt did not succeed"):
        run.commit_cycle(EXPERIMENT, 1, folder, provenance())
    assert not run.cycles()


def test_a_result_of_a_wrong_shape_cannot_be_committed(run: StoredRun, tmp_path: Path) -> None:
    folder = Recording().write(tmp_path / "out")
    file = folder / f"{Recording().hash}_result.json"
    data = json.loads(file.read_text())
    del data["window"]
    file.write_text(json.dumps(data))
    with pytest.raises(ResultReadError, match="field 'window' is missing"):
        run.commit_cycle(EXPERIMENT, 1, folder, provenance())


def test_links_that_a_container_left_are_not_followed(run: StoredRun, tmp_path: Path) -> None:
    folder = Recording().write(tmp_path / "out")
    (folder / "secret.txt").symlink_to("/etc/passwd")
    run.commit_cycle(EXPERIMENT, 1, folder, provenance())
    assert "secret.txt" not in run.cycles()[0].folder.files()


@pytest.mark.parametrize("name", ["../../evil", "..", "/abs"])
def test_no_experiment_id_leaves_the_run(name: str, tmp_path: Path) -> None:
    run = ResultsRoot(tmp_path / "results").run("nightly", RUN_ID)
    url = run.commit_cycle(name, 1, Recording().write(tmp_path / "out"), provenance())
    assert Path(url).resolve().is_relative_to(Path(run.url).resolve() / "experiments")


def test_a_corrupt_power_series_is_kept_as_it_is_and_named(run: StoredRun, tmp_path: Path) -> None:
    folder = Recording().write(tmp_path / "out")
    (folder / "power.csv").write_text("t_before_mono_ns,t_after_mono_ns,gpu\nabc,def,GPU-1\n")
    run.commit_cycle(EXPERIMENT, 1, folder, provenance())
    (ref,) = run.cycles()
    assert "power.csv" in ref.folder.files()
    assert ref.result() == Recording().result()
    assert "power.csv: kept as it is" in ref.provenance()["storage_notes"][0]
    with pytest.raises(ResultReadError, match=r"power.parquet: cannot be read"):
        ref.power()


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


def test_two_commits_of_one_cycle_at_once_lose_neither(tmp_path: Path) -> None:
    run = ResultsRoot(tmp_path / "results").run("nightly", RUN_ID)
    folders = [Recording(requests=n).write(tmp_path / f"out-{n}") for n in range(1, 7)]
    threads = [
        threading.Thread(target=run.commit_cycle, args=(EXPERIMENT, 1, folder, provenance()))
        for folder in folders
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ref.result().window.requests for ref in run.cycles(repeats=True)) == [1, 2, 3, 4, 5, 6]


def test_a_full_disk_is_a_clear_error_and_leaves_what_was_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ResultsRoot(tmp_path / "results").run("nightly", RUN_ID)
    run.commit_cycle(EXPERIMENT, 1, Recording().write(tmp_path / "out"), provenance())

    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResultsWriteError, match="the disk is full: free some"):
        run.commit_cycle(EXPERIMENT, 2, Recording(cycle=2).write(tmp_path / "out2"), provenance())
    monkeypatch.undo()
    assert [ref.cycle for ref in run.cycles()] == [1]
    assert not (Path(run.url) / ".staging").exists()


def test_a_file_that_was_not_written_to_its_end_never_appears(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path)
    folder.write("summary.json", b"old")

    def interrupted() -> None:
        with folder.atomic_write("summary.json") as file:
            file.write(b"ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert folder.read("summary.json") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_a_run_is_aggregated_where_it_lies(run: StoredRun, tmp_path: Path) -> None:
    plan = plan_json([(EXPERIMENT, Recording().hash, {})], cycles=1)
    run.write_plan("model: tiny\n", plan, {"dag_id": "nightly"})
    run.commit_cycle(EXPERIMENT, 1, Recording().write(tmp_path / "out"), provenance())
    summary = aggregate_run(run)
    assert (summary.valid, summary.missing) == (1, ())
    assert run.summary() == summary.to_json()
    assert {"summary.json", "cycles.parquet", "experiments.parquet", "power.parquet", "report.html"} <= set(
        run.folder.files()
    )
    first = run.folder.read("power.parquet")
    aggregate_run(run)
    assert run.folder.read("power.parquet") == first
    assert check_run(run) == []


def test_old_runs_can_be_removed(root: ResultsRoot, run: StoredRun, tmp_path: Path) -> None:
    run.write_plan("model: tiny\n", plan_json([(EXPERIMENT, Recording().hash, {})], cycles=1), {})
    run.commit_cycle(EXPERIMENT, 1, Recording().write(tmp_path / "out"), provenance())
    aggregate_run(run, report=False)
    found = removable(root, now_epoch_ns=EPOCH_NS + 40 * 86_400 * S, keep_days=30)
    assert [(item.run.url, item.reason) for item in found] == [(run.url, "40 days old")]
    assert found[0].size_bytes > 1000
    remove(found)
    assert root.runs() == []
