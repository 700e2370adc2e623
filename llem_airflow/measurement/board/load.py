"""What draws the power whose edges are known.

``TorchLoad`` multiplies matrices in a process of its own, so that the board is bare before it. ``ScriptedLoad`` draws
nothing: the stand-in driver's script plays the plan by itself, and this only tells when. A plain ``BoardLoad`` is what
remains without PyTorch and CUDA.
"""

from __future__ import annotations

import os
import time
from typing import Any

from llem_airflow.measurement.board.plan import Phase
from llem_airflow.protocol.processes import Child

SCRIPTED = "LLEM_GPU_CHECK_SCRIPTED"
"""Names the instant, in seconds since 1970, from which a stand-in's script plays the plan of the first board."""
_IMPORT_S, _CONTEXT_S, _ANSWER_S = 120.0, 60.0, 10.0
LONGEST_START_S, LONGEST_ANSWER_S = _IMPORT_S + 10.0, _ANSWER_S + 20.0
"""After so long a load has begun or failed; and told its edges or failed."""

Edge = tuple[int, int]
"""When the load was on: from, to, in nanoseconds of the monotonic clock."""


class BoardLoad:
    """A load of one board that draws nothing; the others are made of it.

    Attributes:
        kind: torch | scripted | none.
        note: What it could not do; empty when it works.
    """

    kind = "none"

    def __init__(self, note: str) -> None:
        self.note = note

    def begin_ns(self) -> int:
        """When the plan begins, on the monotonic clock."""
        return time.monotonic_ns()

    def context(self) -> None:
        """Make a CUDA context that does nothing."""

    def start(self, phase: Phase, origin_ns: int) -> None:
        """Let the edges of a phase happen."""

    def done(self) -> list[Edge]:
        """Edges that happened since the last call."""
        return []

    def close(self) -> None:
        """End it."""


class ScriptedLoad(BoardLoad):
    """The board follows a script that plays the plan."""

    kind = "scripted"

    def __init__(self, begin_epoch_s: float) -> None:
        super().__init__("The power was scripted, not drawn.")
        self._begin_ns = int(begin_epoch_s * 1e9) - time.time_ns() + time.monotonic_ns()
        self._edges: list[Edge] = []

    def begin_ns(self) -> int:
        """When the script begins."""
        return self._begin_ns

    def start(self, phase: Phase, origin_ns: int) -> None:
        """The script does it; told is when."""
        self._edges = _at(phase, origin_ns)

    def done(self) -> list[Edge]:
        """As planned."""
        edges, self._edges = self._edges, []
        return edges


class TorchLoad(BoardLoad):
    """Matrix products of PyTorch on one board."""

    kind = "torch"

    def __init__(self, uuid: str) -> None:
        super().__init__("")
        self._child = Child(
            "llem_airflow.measurement.board.torch_load",
            environment={"CUDA_VISIBLE_DEVICES": uuid},
            quiet=True,
        )
        self._waiting = 0
        answer = self._receive(_IMPORT_S)
        if answer.get("imported") is not True:
            self.note = str(answer.get("error") or "the process of the load ended at its start")
            self.close()

    def context(self) -> None:
        """Make the context, and learn how large a product the board does in a millisecond."""
        self._child.send("context")
        answer = self._receive(_CONTEXT_S)
        if answer.get("context") is not True:
            self.note = str(answer.get("error") or "the process of the load ended")

    def start(self, phase: Phase, origin_ns: int) -> None:
        """Tell the process all edges of the phase."""
        for on_ns, off_ns in _at(phase, origin_ns):
            self._child.send(f"{on_ns} {off_ns}")
            self._waiting += 1

    def done(self) -> list[Edge]:
        """What the process says of them, as it says when each really was."""
        edges = []
        while self._waiting:
            answer = self._receive(_ANSWER_S)
            if "on_ns" not in answer:
                self.note = str(answer.get("error") or "the process of the load ended or hung")
                self._waiting = 0
                break
            edges.append((int(answer["on_ns"]), int(answer["off_ns"])))
            self._waiting -= 1
        return edges

    def close(self) -> None:
        """End the process."""
        self._child.end(3.0)

    def _receive(self, timeout_s: float) -> dict[str, Any]:
        return self._child.messages.receive(timeout_s) or {}


def open_load(uuid: str, name: str, begins_after_s: float) -> BoardLoad:
    """The load that there is for a board.

    Args:
        uuid: Of the board.
        name: Its name; only a stand-in can be scripted.
        begins_after_s: When its plan begins after that of the first board, where a script plays it.
    """
    if "STAND-IN" in name:
        begin = os.environ.get(SCRIPTED)
        if begin is None:
            return BoardLoad(
                f"A stand-in has no CUDA; {SCRIPTED} names the instant from which its script plays the plan."
            )
        return ScriptedLoad(float(begin) + begins_after_s)
    load = TorchLoad(uuid)
    return BoardLoad(f"No load: {load.note}.") if load.note else load


def _at(phase: Phase, origin_ns: int) -> list[Edge]:
    return [(origin_ns + int(on_s * 1e9), origin_ns + int(off_s * 1e9)) for on_s, off_s in phase.edges]
