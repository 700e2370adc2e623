"""What a killed process left is found and removed; what a living one uses is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from llem_airflow.results.cleanup import locked_folder, remove_unlocked

HOLD = """
import sys, time
from pathlib import Path
from llem_airflow.results.cleanup import locked_folder
with locked_folder(Path(sys.argv[1]), "job-", mode=0o700) as folder:
    print(folder.name, flush=True)
    time.sleep(60)
"""


def holder(parent: Path) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(parent)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def names(parent: Path) -> set[str]:
    return {path.name for path in parent.iterdir()}


def test_it_is_gone_at_the_end_and_its_parent_is_made(tmp_path: Path) -> None:
    with locked_folder(tmp_path / "new", "job-", mode=0o750) as folder:
        (folder / "file").write_text("x")
        assert folder.stat().st_mode & 0o777 == 0o750
    assert names(tmp_path / "new") == set()


def test_what_a_killed_process_left_is_removed_by_the_next_and_a_living_one_s_is_not(tmp_path: Path) -> None:
    dead, left = holder(tmp_path)
    living, used = holder(tmp_path)
    os.kill(dead.pid, signal.SIGKILL)
    dead.wait()
    try:
        assert names(tmp_path) == {left, used}
        with locked_folder(tmp_path, "job-", mode=0o700) as mine:
            assert names(tmp_path) == {used, mine.name}
    finally:
        living.kill()
        living.wait()
        for process in (dead, living):
            assert process.stdout is not None
            process.stdout.close()


def test_what_is_called_otherwise_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "job-file").write_text("a file, not a folder")
    remove_unlocked(tmp_path, "job-")
    assert names(tmp_path) == {"jobs", "job-file"}
