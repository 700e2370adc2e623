"""Where an attempt is stopped, and who is killed there."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Moment:
    """A moment of an attempt that can be observed from outside.

    Attributes:
        name: What has just happened.
        call: Pattern of the engine's API call, with its query, that marks it; empty when something else does.
        answered: Whether the engine has answered the call (the caller does not know yet), or has not seen it yet.
        nth: The how manyth such call, or such text, it is.
        line: Text of an attempt's output that marks it.
        after: Text of the output before that; empty when the line marks it wherever it comes.
        file: Glob, below the run's results, of what marks it.
    """

    name: str
    call: str = ""
    answered: bool = True
    nth: int = 1
    line: str = ""
    after: str = ""
    file: str = ""

    def heard_in(self, output: bytes) -> bool:
        """Whether what attempts have printed so far marks it."""
        begin = output.find(self.after.encode())  # of nothing: 0
        return begin >= 0 and output.count(self.line.encode(), begin) >= self.nth

    def matches(self, call: str) -> bool:
        """Whether this call marks it."""
        return bool(self.call) and re.search(self.call, call) is not None


OWN = r"name=llem-[0-9a-f]{16}-try"
"""In the query of the call that makes the attempt's container."""

LOOKED = Moment("looked for earlier tries", r"GET /containers/json.*llem\.key=")
ASKING = Moment("asks the driver for GPUs", r"POST /containers/\w+/wait")
VOLUME = Moment("volume made", r"POST /volumes/create")
CREATED = Moment("container created, GPU leased", rf"POST /containers/create.*{OWN}")
FILLED = Moment("bundle, spec and cache handed in", r"PUT /containers/\w+/archive.*path=/hub")
STARTED = Moment("container started", r"POST /containers/\w+/start")
LOADING = Moment("model loads", line=" loading ")
MEASURING = Moment("measures", line=" measure ")
WRITTEN = Moment("result written, container not ended", line=" done: ")
ENDED = Moment(
    "container ended", r"GET /containers/\w+/json", nth=2
)  # the first is made with the call for its log
COLLECTED = Moment("results collected", r"GET /images/sha256:\w+/json")
STORING = Moment("result is being stored", file=".staging/*")
STORED = Moment("result stored", r"DELETE /containers/llem-", answered=False)
REMOVED = Moment("container removed", r"DELETE /containers/llem-")
CLEAN = Moment("volume removed", r"DELETE /volumes/llem-")

GUARDED = Moment("guard is up", r"POST /exec/\w+/start")
TURN = Moment("turn taken", r"POST /exec/\w+/start", nth=2)
HANDED = Moment("bundle and spec handed in", r"PUT /containers/\w+/archive.*/attempts")
RUNS = Moment("process started", r"POST /exec/\w+/start", nth=3)
TAKEN_OUT = Moment("results collected", r"GET /containers/\w+/archive")
KEPT = Moment("result stored", r"POST /containers/\w+/exec", answered=False, nth=4)
FORGOTTEN = Moment("attempt removed", r"POST /exec/\w+/start", nth=4)
NEXT = Moment("next cycle measures", line=" measure ", after=" done: ")
HANDED_AGAIN = Moment("next cycle handed in", r"PUT /containers/\w+/archive.*/attempts", nth=2)
WRITTEN_AGAIN = Moment("next result written", line=" done: ", nth=2)
STOPPING = Moment("session is being stopped", r"DELETE /containers/\w+.*v=False", answered=False)
STOPPED = Moment("session's container removed", r"DELETE /containers/\w+.*v=False")
"""Of a session: what is executed in its container is, in this order, the look at its guard, and of each of its two
cycles the turn, the run and the removal."""

AFTER_CREATION = (STARTED, ENDED, STOPPING, STOPPED)
"""Their calls are made for the probe of the driver, too: only those after the attempt's own container count."""

UNDER_WAY = (LOADING, MEASURING, NEXT)
"""The moments at which a cycle has begun and cannot have a result yet."""


@dataclass(frozen=True, slots=True)
class Point:
    """One kill: who, and when.

    Attributes:
        actor: Who gets SIGKILL.
        moment: When.
        isolation: What the cycle has of its own: a container, or in a session a process or nothing (``engine``).
    """

    actor: str
    moment: Moment
    isolation: str = "container"

    @property
    def session(self) -> bool:
        """Whether the cycle is one of a session."""
        return self.isolation != "container"

    def __str__(self) -> str:
        return f"{self.actor} | {self.moment.name}"


TASK, WORKER, SCHEDULER, AIRFLOW = "task process", "worker of the task", "scheduler", "whole Airflow"
EXPERIMENT, INIT, ENGINE = "experiment's process", "container's init", "Docker engine"
KEEPER, GUARD = "parent of the experiment's process", "session's guard"
LIVING, PARENT, FOLLOWER = "living engine", "parent of the living engine", "keeper of the next cycle"
MEASURES = frozenset({EXPERIMENT, INIT, LIVING})
"""Actors without whom a cycle cannot go on."""
EVERYBODY_S = frozenset({SCHEDULER, AIRFLOW, ENGINE})
"""Actors that all runs share: one kill at a time."""

_MOMENTS = {
    TASK: (
        LOOKED, ASKING, VOLUME, CREATED, FILLED, STARTED, LOADING, MEASURING, WRITTEN, ENDED, COLLECTED,
        STORING, STORED, REMOVED, CLEAN,
    ),
    WORKER: (CREATED, STARTED, MEASURING, COLLECTED, STORED),
    SCHEDULER: (CREATED, STARTED, MEASURING, COLLECTED, STORED),
    AIRFLOW: (CREATED, STARTED, MEASURING, ENDED, STORING, STORED, REMOVED),
    EXPERIMENT: (LOADING, MEASURING, WRITTEN),
    INIT: (LOADING, MEASURING),
    ENGINE: (VOLUME, CREATED, FILLED, STARTED, MEASURING, ENDED, COLLECTED, STORED, REMOVED),
}  # fmt: skip

_IN_SESSION = {
    TASK: (
        LOOKED, VOLUME, CREATED, FILLED, STARTED, GUARDED, TURN, HANDED, RUNS, LOADING, MEASURING, WRITTEN, TAKEN_OUT,
        STORING, KEPT, FORGOTTEN, NEXT, STOPPING, STOPPED, CLEAN,
    ),
    WORKER: (CREATED, GUARDED, TURN, MEASURING, KEPT, STOPPED),
    SCHEDULER: (CREATED, GUARDED, MEASURING, KEPT, STOPPED),
    AIRFLOW: (CREATED, GUARDED, MEASURING, STORING, KEPT, STOPPED),
    GUARD: (MEASURING,),
    INIT: (GUARDED, LOADING, MEASURING, KEPT),
    ENGINE: (VOLUME, CREATED, GUARDED, TURN, HANDED, MEASURING, TAKEN_OUT, KEPT, STOPPED),
}  # fmt: skip
"""For both kinds of session."""

_OF_PROCESS = {EXPERIMENT: (LOADING, MEASURING), KEEPER: (MEASURING,)}
_OF_ENGINE = {
    TASK: (HANDED_AGAIN, WRITTEN_AGAIN),
    WORKER: (NEXT,),
    AIRFLOW: (NEXT,),
    LIVING: (LOADING, MEASURING, WRITTEN, KEPT, HANDED_AGAIN, NEXT, WRITTEN_AGAIN),
    PARENT: (MEASURING, KEPT, NEXT),
    FOLLOWER: (NEXT,),
    GUARD: (NEXT,),
    INIT: (NEXT,),
    ENGINE: (NEXT,),
}
"""The second cycle finds the engine loaded."""


def _points(isolation: str, *tables: dict[str, tuple[Moment, ...]]) -> tuple[Point, ...]:
    return tuple(
        Point(actor, moment, isolation)
        for table in tables
        for actor, moments in table.items()
        for moment in moments
    )


POINTS = {
    "container": _points("container", _MOMENTS),
    "process": _points("process", _IN_SESSION, _OF_PROCESS),
    "engine": _points("engine", _IN_SESSION, _OF_ENGINE),
}
"""By isolation."""
FEW = (Point(TASK, CREATED), Point(TASK, MEASURING), Point(TASK, STORED), Point(EXPERIMENT, MEASURING))
"""For the suite: one of each kind of recovery: start anew, adopt, nothing to do but to clear, fail and try again."""
FEW_OF_SESSIONS = (
    Point(TASK, NEXT, "engine"),
    Point(LIVING, NEXT, "engine"),
    Point(INIT, MEASURING, "process"),
    Point(TASK, STOPPED, "process"),
)
"""Likewise: adopt from a living engine, start the session's container again, twice, and finish the teardown."""
