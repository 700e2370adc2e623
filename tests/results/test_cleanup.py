from __future__ import annotations

import itertools
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from llem_airflow.results import ResultsRoot
from llem_airflow.results.cleanup import remove_orphans
from llem_airflow.results.folder import ABANDONED_NS
from llem_airflow.results.scratch import locked_folder
from tests.results.recorded import Recording, provenance

HOUR_LATER_NS = ABANDONED_NS + 10**9


def _age_ns(root: Path) -> int:
    """An hour and a second after the newest file."""
    return max(path.stat().st_mtime_ns for path in root.rglob("*")) + HOUR_LATER_NS


def _killed(root: Path) -> list[str]:
    """What a killed commit, a killed write and a killed removal leave."""
    run = ResultsRoot(root).run("nightly", "r")
    run.commit_cycle("tiny-1", 1, Recording().write(root.parent / "out"), provenance())
    folder = Path(run.url)
    for path in (
        folder / ".staging" / "commit-1" / "power.csv",
        folder / ".staging" / ".commit-2" / "power.csv",
        folder / f".summary.json.{'0' * 32}",
        folder / "experiments" / "tiny-1" / "cycle-1" / f".power.parquet.{'1' * 32}",
        folder.parent / ".removed-1" / "summary.json",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
    return sorted(str(path.relative_to(folder.parent)) for path in folder.parent.rglob("*") if path.is_file())


def test_what_killed_processes_left_goes_after_an_hour_and_nothing_else(tmp_path: Path) -> None:
    root = tmp_path / "results"
    before = _killed(root)
    study, run = ResultsRoot(root).folder.child("nightly"), ResultsRoot(root).run("nightly", "r")
    now_ns = _age_ns(root)
    removed = remove_orphans(study, now_ns)
    after = sorted(
        str(path.relative_to(study.path)) for path in Path(study.path).rglob("*") if path.is_file()
    )
    assert after == [name for name in before if "/." not in name and not name.startswith(".")]
    assert len(removed) == 5
    assert run.is_committed("tiny-1", 1)
    assert not (Path(run.url) / ".staging").exists()


def test_what_is_younger_than_an_hour_stays(tmp_path: Path) -> None:
    root = tmp_path / "results"
    _killed(root)
    study = ResultsRoot(root).folder.child("nightly")
    assert remove_orphans(study, _age_ns(root) - 2 * 10**9) == []


def test_a_commit_that_takes_hours_is_not_swept(tmp_path: Path) -> None:
    run = ResultsRoot(tmp_path).run("nightly", "r")
    with locked_folder(Path(run.url) / ".staging", "commit-", mode=0o700) as folder:
        (folder / "power.csv").write_text("so far")
        os.utime(folder, (0, 0))
        assert remove_orphans(ResultsRoot(tmp_path).folder.child("nightly"), _age_ns(tmp_path)) == []
        assert (folder / "power.csv").read_text() == "so far"


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


def test_an_object_store_has_nothing_to_sweep() -> None:
    assert remove_orphans(ResultsRoot("memory://orphans").folder.child("nightly"), 0) == []
