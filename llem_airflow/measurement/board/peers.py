"""The other tools beside the model: started, told when a window begins and ends, left out when they fail or hang."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from llem_airflow.measurement.board.peer import TOOLS, installed
from llem_airflow.protocol.child import child_environment
from llem_airflow.protocol.message_pipe import MessagePipe

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
        self._processes = {
            tool: subprocess.Popen(
                [sys.executable, "-m", "llem_airflow.measurement.board.peer", tool, uuid],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=child_environment(),
                start_new_session=True,
            )
            for tool in here
        }
        self._pipes = {
            tool: MessagePipe(process.stdout)
            for tool, process in self._processes.items()
            if process.stdout is not None
        }
        self._due_s = dict.fromkeys(here, time.monotonic() + START_S)

    def tell(self, word: str) -> None:
        """Say ``begin`` or ``end`` to all that still work."""
        for tool, process in self._processes.items():
            assert process.stdin is not None
            with contextlib.suppress(OSError):  # its end shows where it is asked
                process.stdin.write(f"{word}\n".encode("ascii"))
                process.stdin.flush()
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
                answer = self._pipes[tool].receive(0.0)
                if answer is not None and "error" not in answer:
                    found[tool] = answer
                    del self._due_s[tool]
                elif answer is not None:
                    self._drop(tool, str(answer["error"]))
                elif self._pipes[tool].ended:
                    self._drop(tool, "it ended without a word")
                elif time.monotonic() > due_s:
                    self._drop(tool, "it did not answer in time")
            if self._due_s:
                meanwhile()
        return found

    def close(self) -> None:
        """End them all."""
        for tool in list(self._processes):
            self._drop(tool, "")

    def _drop(self, tool: str, why: str) -> None:
        process = self._processes.pop(tool)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()
        self._due_s.pop(tool, None)
        if why:
            self.problems[tool] = why
