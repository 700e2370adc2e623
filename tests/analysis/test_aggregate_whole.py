"""Interrupted, doubled or out of disk: what was committed stays, and a rerun gives the same bytes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from llem_airflow.analysis.aggregate import aggregate_run
from llem_airflow.analysis.integrity import check_run
from llem_airflow.results import ResultsRoot
from llem_airflow.results.folder import Folder, ResultsWriteError
from tests.analysis.conftest import HASHES, IDS, MakeRun
from tests.results.recorded import Recording, provenance

ALL = {(index, cycle): Recording() for index in (0, 1) for cycle in (1, 2)}
FILES = ("summary.json", "cycles.parquet", "experiments.parquet", "power.parquet")


def _bytes(folder: str) -> dict[str, bytes]:
    return {name: (Path(folder) / name).read_bytes() for name in FILES}


def test_an_aggregate_that_was_killed_anywhere_and_run_again_gives_the_same_bytes(make_run: MakeRun) -> None:
    run = make_run(ALL)
    aggregate_run(run)
    expected = {name: hashlib.sha256(data).hexdigest() for name, data in _bytes(run.url).items()}
    command = [sys.executable, "-m", "tests.analysis.killing", run.url, "4"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found["kills"]) >= 2 * len(FILES) + 4
    for kill in found["kills"]:
        assert kill["signal"] == signal.SIGKILL, kill
        assert kill["damaged"] == [], kill
        assert kill["again"] == expected, kill
    assert {kill["present"] for kill in found["kills"]} == set(range(len(FILES) + 1))
    assert found["at_once"] == expected


def test_two_aggregates_at_once_do_no_harm(make_run: MakeRun) -> None:
    run = make_run(ALL)
    aggregate_run(run)
    expected = _bytes(run.url)
    threads = [threading.Thread(target=aggregate_run, args=(run,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert _bytes(run.url) == expected
    assert not [path.name for path in Path(run.url).iterdir() if path.name.startswith(".")]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB of its own."""
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("only root can mount a small disk")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.parametrize("left_bytes", [0, 8_192, 20_480])
def test_a_full_disk_is_a_clear_error_and_damages_nothing(
    make_run: MakeRun, small_disk: Path, tmp_path: Path, left_bytes: int
) -> None:
    made = make_run(ALL)
    shutil.copytree(made.url, small_disk / "nightly" / "r1")
    run = ResultsRoot(small_disk).run("nightly", "r1")
    aggregate_run(run)
    (small_disk / "nightly" / "r1" / "summary.json").write_text("{}")  # so that there is something to write
    before = _bytes(run.url)
    filler = small_disk / "somebody-else"
    _fill(filler, left_bytes)
    with pytest.raises(
        ResultsWriteError, match=r"cannot write .*small/nightly/r1.*; the disk is full: free some"
    ):
        aggregate_run(run)
    with pytest.raises(
        ResultsWriteError, match=r"cannot write .*small/nightly/r1.*; the disk is full: free some"
    ):
        run.commit_cycle(IDS[0], 3, Recording(hash=HASHES[0], cycle=3).write(tmp_path / "more"), provenance())
    assert _bytes(run.url) == before
    assert len(run.cycles()) == 4
    assert not list(Path(run.url).rglob(".*"))
    filler.unlink()
    aggregate_run(run)
    assert check_run(run) == []


def _fill(file: Path, left_bytes: int) -> None:
    """Take all of the disk but so much."""
    with file.open("wb", buffering=0) as filler:
        with contextlib.suppress(OSError):
            while True:
                filler.write(b"x" * 4096)
        filler.truncate(max(filler.tell() - left_bytes, 0))


def test_what_a_killed_writer_left_is_swept_and_a_living_ones_is_not(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path)
    dead, living = (tmp_path / f".power.parquet.{name}" for name in ("dead", "living"))
    for file in (dead, living):
        file.write_bytes(b"half")
    os.utime(dead, (0, 0))
    folder.write("power.parquet", b"whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [living.name, "power.parquet"]
