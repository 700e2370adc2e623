"""This project and its peers measure the same windows of the same load. ``peers.py FOLDER [--short]``.

There is no truth on a real GPU: what is told is how far the others are from this project's joules, and whether its own
integral of power agrees with its counter.
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
TOOLS = ("llem-airflow", "zeus", "codecarbon")
WINDOWS_S = (5.0, 5.0, 10.0)
SHORT_S = (1.0, 1.0)
_BETWEEN_S = 5.0
"""Time that the slowest tool needs between two windows."""


def main() -> int:
    """Measure; 1 when this project could not."""
    folder = Path(sys.argv[1])
    windows = SHORT_S if "--short" in sys.argv[2:] else WINDOWS_S
    there = [tool for tool in TOOLS if tool == "llem-airflow" or importlib.util.find_spec(tool)]
    gpus = _count()
    with tempfile.TemporaryDirectory() as own, Load() as load:
        print(f"> load: {load.kind}; tools: {', '.join(there)}; not installed: {_others(there)}")
        answers = measured(there, gpus, windows, Path(own))
    (folder / "peers.json").write_text(
        json.dumps({"load": load.kind, "windows_s": windows, "answers": answers}, indent=1)
    )
    ours = answers.get("llem-airflow") or []
    for tool, theirs in answers.items():
        print(f"> {_line(tool, ours, theirs)}")
    return int(not ours)


class Load:
    """The load, while the block runs."""

    kind = "none of ours"

    def __enter__(self) -> Load:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.on_gpu.load"],
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() == "ready\n":
            self.kind = "matrix products, 60 % of every 0.737 s"
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


def _count() -> int:
    import pynvml

    pynvml.nvmlInit()
    return int(pynvml.nvmlDeviceGetCount())


def _others(there: list[str]) -> str:
    return ", ".join(tool for tool in TOOLS if tool not in there) or "-"


def measured(
    tools: list[str], gpus: int, windows: tuple[float, ...], folder: Path
) -> dict[str, list[dict[str, Any]]]:
    """What each tool answered of each window; nothing of a tool that failed."""
    workers = {}
    for tool in tools:
        own = folder / tool
        own.mkdir()
        workers[tool] = subprocess.Popen(
            [sys.executable, REPOSITORY / "benchmarks" / "window.py", tool, str(gpus), str(len(windows))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=own,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    for worker in workers.values():
        assert worker.stdout is not None
        for line in worker.stdout:  # CodeCarbon has other things to say first
            if line == "ready\n":
                break
    plan, begin_s = "", time.time_ns() / 1e9 + 1.5
    for seconds in windows:
        plan += f"{begin_s:.4f} {seconds:.4f}\n"
        begin_s += seconds + (_BETWEEN_S if len(tools) > 1 else 2.0)
    found = {}
    for worker in workers.values():
        if worker.poll() is None:
            assert worker.stdin is not None
            worker.stdin.write(plan)
            worker.stdin.close()
    for tool, worker in workers.items():
        assert worker.stdout is not None
        lines = [json.loads(line) for line in worker.stdout.read().splitlines() if line.startswith("{")]
        if worker.wait() == 0:
            found[tool] = lines
        else:
            print(f"> {tool} failed; see log.txt")
    return found


def _line(tool: str, ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> str:
    key = "integral_joules" if tool == "llem-airflow" else "joules"
    apart = [
        (b / theirs_s) / (a / ours_s) - 1
        for our, their in zip(ours, theirs, strict=True)
        for a, b in zip(our["joules"], their[key], strict=True)
        if a and b and (ours_s := _seconds(our)) and (theirs_s := _seconds(their))
    ]
    if not apart:
        return f"{tool}: nothing to compare"
    what = "integral of power" if tool == "llem-airflow" else tool
    return (
        f"{what} / counter of llem-airflow: median {statistics.median(apart):+.3%}, largest "
        f"{max(apart, key=abs):+.3%} over {len(apart)} windows (mean power, as the edges differ by some ms)"
    )


def _seconds(answer: dict[str, Any]) -> float:
    return float((answer["end_epoch_ns"] - answer["begin_epoch_ns"]) / 1e9)


if __name__ == "__main__":
    sys.exit(main())
