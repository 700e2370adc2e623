"""Kill the aggregate of a run at many points, each time for real, and say what was left and what a rerun makes.

    python -m tests.analysis.killing RUN POINTS

Each try is a fork of this process that ends itself with SIGKILL right before or right after a file takes its name, or
at one of so many calls spread over the whole. Prints JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pyarrow.parquet as pq

from llem_airflow.analysis.aggregate import aggregate_run
from llem_airflow.results import StoredRun
from llem_airflow.results.store import ResultsRoot, locate_run

FILES = ("summary.json", "cycles.parquet", "experiments.parquet", "power.parquet")


class Calls:
    """Counts the calls and renames of the main thread, and ends the process at one of them."""

    def __init__(self, kill_at: str = "") -> None:
        self.kill_at, self.count, self.renames = kill_at, 0, 0

    def __call__(self, _frame: FrameType, event: str, called: Any) -> None:
        self.count += 1
        renaming = event in {"c_call", "c_return"} and called is os.replace
        self.renames += renaming and event == "c_call"
        here = f"{event} of rename {self.renames}" if renaming else f"call {self.count}"
        if here == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


def forked(work: Callable[[], object]) -> int:
    """Start the work in a fork; its process id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return child


def counted(run: StoredRun, report: Path) -> None:
    calls = Calls()
    sys.setprofile(calls)
    aggregate_run(run)
    sys.setprofile(None)
    report.write_text(json.dumps([calls.count, calls.renames]))


def killed(run: StoredRun, at: str) -> None:
    sys.setprofile(Calls(at))
    aggregate_run(run)


def ended(child: int) -> int:
    """The signal that ended it, or 0."""
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0:
        raise RuntimeError("the aggregate failed")
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def present(folder: Path) -> list[Path]:
    return [folder / name for name in FILES if (folder / name).exists()]


def damaged(folder: Path) -> list[str]:
    """Files that readers would take and that are not whole."""
    found = []
    for file in present(folder):
        try:
            json.loads(file.read_text()) if file.suffix == ".json" else pq.read_table(file)
        except (ValueError, OSError):
            found.append(file.name)
    return found


def cleared(folder: Path) -> None:
    for file in (*present(folder), *folder.glob(".*.*")):
        file.unlink()


def digests(folder: Path) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES}


def main(url: str, points: int) -> None:
    aggregate = partial(aggregate_run, run := locate_run(url, ResultsRoot(url)))
    folder, report = Path(url), Path(url).parent / "calls.json"
    aggregate()  # much is loaded when it is first used; once is enough
    cleared(folder)
    ended(forked(partial(counted, run, report)))
    count, renames = json.loads(report.read_text())
    wanted = [f"call {1 + count * k // points}" for k in range(points)]
    wanted += [f"{event} of rename {k + 1}" for k in range(renames) for event in ("c_call", "c_return")]
    kills = []
    for at in wanted:
        cleared(folder)
        one = {"at": at, "signal": ended(forked(partial(killed, run, at))), "damaged": damaged(folder)}
        one["present"] = len(present(folder))
        ended(forked(aggregate))
        kills.append({**one, "again": digests(folder)})
    cleared(folder)
    for child in [forked(aggregate) for _ in range(3)]:
        ended(child)
    sys.stdout.write(json.dumps({"kills": kills, "at_once": digests(folder)}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
