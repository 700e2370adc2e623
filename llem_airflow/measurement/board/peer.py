"""Another tool measures the same board beside us: ``python -m llem_airflow.measurement.board.peer <tool> <uuid>``.

It says ``ready`` or why it cannot; then ``begin`` and ``end`` on its input open and close one window, whose joules it
tells with the window's edges as it saw them. Each tool runs in a process of its own, so that none slows the model down.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

from llem_airflow.protocol.processes import Child

Window = tuple[Callable[[], None], Callable[[], float]]
"""Begin a window; end it and tell its joules."""
_SMI_EVERY_MS = 100


def main(argv: list[str]) -> int:
    """Answer until the input ends; errors are answers too."""
    tool, uuid = argv
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    said, sys.stdout = sys.stdout, sys.stderr  # what a tool prints is no answer of ours
    try:
        begin, end = TOOLS[tool](uuid)
        _say(said, ready=True)
        began_ns = 0
        for line in sys.stdin:
            if line.strip() == "begin":
                begin()
                began_ns = time.monotonic_ns()
                _say(said, began=True)
            else:
                ended_ns = time.monotonic_ns()
                _say(said, joules=end(), begin_ns=began_ns, end_ns=ended_ns)
    except Exception as error:  # noqa: BLE001  # the tools raise what they like; the page says what
        first = next(iter(str(error).splitlines()), "")
        _say(said, error=f"{type(error).__name__}: {first}".rstrip(": "))
        return 1
    return 0


def installed() -> list[str]:
    """The tools that are here."""
    return [tool for tool in TOOLS if (shutil.which(tool) if tool == SMI else importlib.util.find_spec(tool))]


def _index(uuid: str) -> int:
    import pynvml  # noqa: PLC0415  # the driver's own, only in this process

    pynvml.nvmlInit()
    return int(pynvml.nvmlDeviceGetIndex(pynvml.nvmlDeviceGetHandleByUUID(uuid)))


def _zeus(uuid: str) -> Window:
    """ZeusMonitor: two reads of the energy counter."""
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # Zeus counts by it
    index = _index(uuid)
    monitor = importlib.import_module("zeus.monitor").ZeusMonitor(gpu_indices=[index], cpu_indices=[])

    def begin() -> None:
        monitor.begin_window("window", sync_execution=False)

    def end() -> float:
        return float(monitor.end_window("window", sync_execution=False).gpu_energy[index])

    return begin, end


def _codecarbon(uuid: str) -> Window:
    """OfflineEmissionsTracker at its fastest rate; a window is a task of its."""
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    tracker = importlib.import_module("codecarbon").OfflineEmissionsTracker(
        country_iso_code="DEU",
        measure_power_secs=1,
        tracking_mode="machine",
        save_to_file=False,
        log_level="critical",
        gpu_ids=[_index(uuid)],
        allow_multiple_runs=True,
    )
    tracker.get_detected_hardware()  # it looks for seconds: now rather than in the first window

    def end() -> float:
        joules = float(tracker.stop_task().gpu_energy) * 3.6e6
        if joules <= 0:
            raise RuntimeError("it saw no GPU")
        return joules

    return tracker.start_task, end


def _smi(uuid: str) -> Window:
    """``nvidia-smi`` ten times a second, and the integral of what it shows."""
    asked = ["--query-gpu=power.draw", "--format=csv,noheader,nounits", f"--loop-ms={_SMI_EVERY_MS}"]
    process = subprocess.Popen(
        ["nvidia-smi", f"--id={uuid}", *asked],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    lines = process.stdout
    shown = [(time.monotonic(), _watts(lines.readline()))]
    begun: list[float] = []
    broken: list[Exception] = []

    def follow() -> None:
        try:
            shown.extend((time.monotonic(), _watts(line)) for line in lines)
            broken.append(RuntimeError("nvidia-smi ended"))
        except RuntimeError as error:
            broken.append(error)

    threading.Thread(target=follow, daemon=True).start()

    def end() -> float:
        if broken:
            raise broken[0]
        return _held(shown, begun.pop(), time.monotonic())

    return lambda: begun.append(time.monotonic()), end


def _watts(line: str) -> float:
    try:
        return float(line)
    except ValueError as error:
        raise RuntimeError(f"nvidia-smi said {line.strip()!r}") from error


def _held(shown: list[tuple[float, float]], begin_s: float, end_s: float) -> float:
    """Integral from begin to end of power that holds until the next is shown."""
    edges = [at_s for at_s, _ in shown[1:]] + [end_s]
    return sum(
        watts * max(min(until_s, end_s) - max(at_s, begin_s), 0.0)
        for (at_s, watts), until_s in zip(shown, edges, strict=True)
    )


def _say(to: Any, **message: Any) -> None:
    to.write(json.dumps(message) + "\n")
    to.flush()


SMI = "nvidia-smi"
TOOLS: dict[str, Callable[[str], Window]] = {SMI: _smi, "zeus": _zeus, "codecarbon": _codecarbon}


START_S, ANSWER_S = 40.0, 15.0


class Peers:
    """The tools that are installed here, each in a process of its own.

    Args:
        uuid: The board.

    Attributes:
        problems: Why a tool told nothing, by tool.
    """

    def __init__(self, uuid: str) -> None:
        here = installed()
        self.problems = {tool: "not installed" for tool in TOOLS if tool not in here}
        self._children = {
            tool: Child("llem_airflow.measurement.board.peer", tool, uuid, quiet=True, own_session=True)
            for tool in here
        }
        self._due_s = dict.fromkeys(here, time.monotonic() + START_S)

    def tell(self, word: str) -> None:
        """Say ``begin`` or ``end`` to all that still work."""
        for tool, child in self._children.items():
            child.send(word)  # the end of one shows where it is asked
            self._due_s[tool] = time.monotonic() + ANSWER_S

    def answers(self, meanwhile: Callable[[], object]) -> dict[str, dict[str, Any]]:
        """What all of them answer; a tool that failed, or was silent for too long, is left out from then on.

        Args:
            meanwhile: Called again and again until the last has answered, at least once.
        """
        found: dict[str, dict[str, Any]] = {}
        meanwhile()
        while self._due_s:
            for tool, due_s in list(self._due_s.items()):
                answer = self._children[tool].messages.receive(0.0)
                if answer is not None and "error" not in answer:
                    found[tool] = answer
                    del self._due_s[tool]
                elif answer is not None:
                    self._drop(tool, str(answer["error"]))
                elif self._children[tool].messages.ended:
                    self._drop(tool, "it ended without a word")
                elif time.monotonic() > due_s:
                    self._drop(tool, "it did not answer in time")
            if self._due_s:
                meanwhile()
        return found

    def close(self) -> None:
        """End them all."""
        for tool in list(self._children):
            self._drop(tool, "")

    def _drop(self, tool: str, why: str) -> None:
        child = self._children.pop(tool)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.process.pid, signal.SIGKILL)
        child.end(ANSWER_S)
        self._due_s.pop(tool, None)
        if why:
            self.problems[tool] = why


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
