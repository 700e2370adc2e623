"""Interrupted, doubled or out of disk: what was committed stays, and a rerun gives the same bytes."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from llem_airflow.analysis.aggregate import aggregate_run
from llem_airflow.results.folder import ResultsWriteError
from tests.analysis.conftest import MakeRun
from tests.results.recorded import Recording

ALL = {(index, cycle): Recording() for index in (0, 1) for cycle in (1, 2)}
FILES = ("summary.json", "cycles.parquet", "experiments.parquet", "power.parquet")


def _bytes(folder: str) -> dict[str, bytes]:
    return {name: (Path(folder) / name).read_bytes() for name in FILES}


@pytest.mark.parametrize("after", range(4))
def test_an_aggregate_that_was_killed_and_run_again_gives_the_same_bytes(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    run = make_run(ALL)
    aggregate_run(run, report=False)
    expected = _bytes(run.url)
    for name in FILES:
        (Path(run.url) / name).unlink()
    calls = 0
    real = os.fsync

    def killed(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls > after:
            raise KeyboardInterrupt
        real(handle)

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        aggregate_run(run, report=False)
    monkeypatch.undo()
    assert len([name for name in FILES if (Path(run.url) / name).exists()]) == after
    aggregate_run(run, report=False)
    assert _bytes(run.url) == expected


def test_two_aggregates_at_once_do_no_harm(make_run: MakeRun) -> None:
    run = make_run(ALL)
    aggregate_run(run, report=False)
    expected = _bytes(run.url)
    threads = [
        threading.Thread(target=aggregate_run, args=(run,), kwargs={"report": False}) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert _bytes(run.url) == expected
    assert not [path.name for path in Path(run.url).iterdir() if path.name.startswith(".")]


def test_a_full_disk_is_a_clear_error_and_damages_nothing(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(ALL)
    aggregate_run(run, report=False)
    before = _bytes(run.url)

    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResultsWriteError, match=r"cannot write .*power.parquet: .* the disk is full"):
        aggregate_run(run, report=False)
    assert _bytes(run.url) == before
    assert len(run.cycles()) == 4
