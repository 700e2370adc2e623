"""A commit is there whole or not at all, whenever its writer is killed, and stores nothing twice."""

from __future__ import annotations

import errno
import itertools
import json
import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llem_airflow.results import ResultReadError, ResultsRoot, StoredRun
from llem_airflow.results.folder import ResultsWriteError
from tests.results.conftest import RUN_ID
from tests.results.recorded import Recording, provenance

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


def _commit(root: Path) -> None:
    ResultsRoot(root).run("nightly", "r").commit_cycle("tiny-1", 1, root.parent / "out", provenance())


def _commit_and_die(root: Path, step: int) -> bool:
    """Commit in a process that SIGKILLs itself at its ``step``-th look at the file system; whether it came that far."""
    child = os.fork()
    if child == 0:
        seen = itertools.count()

        def hook(event: str, _arguments: object) -> None:
            if event.startswith(("open", "os.", "shutil.", "fcntl.")) and next(seen) == step:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        _commit(root)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_whenever_a_writer_is_killed_the_next_try_stores_once_and_leaves_nothing(tmp_path: Path) -> None:
    Recording().write(tmp_path / "out")
    _commit(tmp_path / "warm-up")  # what is imported at the first commit is no step of it
    for step in itertools.count():
        root = tmp_path / f"killed-{step}"
        killed = _commit_and_die(root, step)
        run = ResultsRoot(root).run("nightly", "r")
        if run.is_committed("tiny-1", 1):
            run.remove_orphans()  # as a try does that finds its result stored, and the aggregate
        else:
            _commit(root)
        assert [ref.repeat for ref in run.cycles(repeats=True)] == [0]
        assert not (Path(run.url) / ".staging").exists(), step
        if not killed:
            break
    assert step > 20


def test_two_writers_at_once_do_not_sweep_each_other(tmp_path: Path) -> None:
    Recording().write(tmp_path / "out")
    root = tmp_path / "results"

    def write(number: int) -> None:
        for k in range(5):
            ResultsRoot(root).run("nightly", "r").commit_failed(
                f"e-{number}", 1, k + 1, tmp_path / "out", provenance()
            )

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    run = ResultsRoot(root).run("nightly", "r")
    assert len(run.failures()) == 40
    assert not (Path(run.url) / ".staging").exists()
