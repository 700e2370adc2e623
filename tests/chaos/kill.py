"""One kill and its recovery: arm, run the DAG, kill at the moment, wait for Airflow to end the run, look around."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx
from docker.errors import APIError

from llem_airflow.results import ResultsRoot
from tests.chaos.points import (
    AFTER_CREATION,
    AIRFLOW,
    ENGINE,
    EVERYBODY_S,
    EXPERIMENT,
    FOLLOWER,
    GUARD,
    INIT,
    KEEPER,
    LIVING,
    MEASURES,
    OWN,
    PARENT,
    SCHEDULER,
    TASK,
    UNDER_WAY,
    WORKER,
    Point,
)
from tests.chaos.world import STOP_TASK_ID, Watch, World, dag_of, wait_for
from tests.runners.engine_proxy import Call

MOMENT_S = 600.0
RECOVERY_S = 900.0
RUNS_AT_MOST = 5
_TOO_LATE = "ended before the kill"
_FOLLOWING = ("/logs", "/start")
"""Ends of the calls whose answers are what an attempt prints."""
_KEEP = r"\S*python\S* \S*/llem\.pyz session keep "
_COMMANDS = {
    EXPERIMENT: r"\S*python\S* \S*/attempts/\w+/llem\.pyz",
    KEEPER: _KEEP,
    PARENT: _KEEP,
    FOLLOWER: _KEEP,
    GUARD: r"\S*python\S* \S*/llem\.pyz session guard ",
    LIVING: r"\S*python\S* \S*/engine\.pyz session engine",
}
"""How the processes in a session's container begin."""


@dataclass
class Outcome:
    """What was found after a recovery.

    Attributes:
        point: Who was killed when.
        state: How Airflow ended the run.
        results: How many results are stored.
        measured: How many cycles have a result.
        planned: How many cycles there are.
        tries: How many tries the task took that took most.
        adopted: Whether a result is of an attempt that an earlier try had started.
        torn_down: Whether the session's teardown ended well, or there is no session.
        left: What remained on the engine and in the worker's temporary folder.
        foreign_lives: Whether the container that is none of ours runs.
        recovery_s: From the kill to the end of the run, in seconds.
        failures: Categories of the failed tries whose evidence is stored.
    """

    point: Point
    state: str = "not killed"
    results: int = 0
    measured: int = 0
    planned: int = 1
    tries: int = 0
    adopted: bool = False
    torn_down: bool = False
    left: list[str] = field(default_factory=list)
    foreign_lives: bool = False
    recovery_s: float = 0.0
    failures: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether the guarantee held."""
        once = self.results == self.measured == self.planned
        return self.state == "success" and once and self.torn_down and not self.left and self.foreign_lives


class _TooLateError(RuntimeError):
    """What was to be killed had ended by itself before the signal could reach it."""


def kill_at(world: World, point: Point) -> Outcome:
    """Run the study, kill at the point, and see what comes of it; once more where the run ended before the kill."""
    outcome = _kill_once(world, point)
    for _ in range(RUNS_AT_MOST - 1):
        if outcome.state != _TOO_LATE:
            break
        outcome = _kill_once(world, point)
    return outcome


def _kill_once(world: World, point: Point) -> Outcome:
    outcome = Outcome(point)
    try:
        run_id = world.trigger(dag_of(point))
    except (TimeoutError, httpx.HTTPError) as error:
        outcome.state = f"no run could be begun: {error!r}"
        return outcome
    trap = _Trap(world, point, run_id)
    world.watches.append(trap)
    try:
        if not trap.sprung.wait(MOMENT_S):
            outcome.state = "the moment did not come"
            return outcome
        if trap.too_late:
            outcome.state = _TOO_LATE
            return outcome
        begin_s = time.monotonic()
        _bring_back(world, point)
        try:
            outcome.state = str(world.airflow.finished(dag_of(point), run_id, RECOVERY_S)["state"])
        except (RuntimeError, httpx.HTTPError) as error:
            outcome.state = f"not ended: {error!r}"
        outcome.recovery_s = time.monotonic() - begin_s
        _look(world, run_id, outcome)
        if _came_late(outcome):
            outcome.state = _TOO_LATE
        return outcome
    finally:
        world.watches.remove(trap)
        trap.over.set()


def _came_late(outcome: Outcome) -> bool:
    """Whether the measurement had ended before the signal reached it: a busy machine tells a moment seconds later.

    Only a try that fails says that what measured was killed.
    """
    fatal = outcome.point.actor in MEASURES and outcome.point.moment in UNDER_WAY
    return fatal and outcome.state == "success" and not outcome.failures


def kill_side_by_side(world: World, points: Sequence[Point], at_once: int) -> Iterator[Outcome]:
    """As ``kill_at``, several runs at a time where the kills are of one run's own parts."""
    own = [point for point in points if point.actor not in EVERYBODY_S]
    with ThreadPoolExecutor(at_once) as pool:
        yield from pool.map(lambda point: kill_at(world, point), own)
    for point in points:
        if point.actor in EVERYBODY_S:
            yield kill_at(world, point)


def _bring_back(world: World, point: Point) -> None:
    if point.actor == SCHEDULER:
        world.restart_scheduler()
    elif point.actor == AIRFLOW:
        world.airflow.start(RECOVERY_S)
    elif point.actor == ENGINE:
        assert world.start_engine is not None
        world.start_engine()


def _look(world: World, run_id: str, outcome: Outcome) -> None:
    dag_id = dag_of(outcome.point)
    run = ResultsRoot(world.airflow.results).run(dag_id, run_id)
    cycles = run.cycles(repeats=True)
    outcome.results, outcome.measured = len(cycles), len({(ref.experiment_id, ref.cycle) for ref in cycles})
    for cycle in cycles:
        cycle.result()  # raises if it is not valid
        outcome.adopted |= bool(cycle.provenance().get("adopted"))
    tasks = world.airflow.instances(dag_id, run_id)
    outcome.planned = sum("cycle_" in ti["task_id"] for ti in tasks)
    outcome.tries = max(ti["try_number"] for ti in tasks)
    stops = [ti["state"] for ti in tasks if ti["task_id"] == STOP_TASK_ID]
    outcome.torn_down = stops == ["success"] * outcome.point.session
    # A try that was given up may still be on its way out.
    with suppress(TimeoutError):
        wait_for(lambda: not world.left(dag_id, run_id), 15)
    outcome.left = world.left(dag_id, run_id) + [
        f"staging {path.name}" for path in Path(run.url).glob(".staging/*")
    ]
    with suppress(TimeoutError):  # its engine may have been killed, and starts it again
        wait_for(world.foreign_lives, 30)
    outcome.foreign_lives = world.foreign_lives()
    outcome.failures = [str(ref.provenance()["failure"]["category"]) for ref in run.failures()]


class _Trap(Watch):
    """Waits for the moment in one run and kills the actor, once."""

    def __init__(self, world: World, point: Point, run_id: str) -> None:
        self._world, self._point, self._run_id = world, point, run_id
        self._key = world.key_of(dag_of(point), run_id)
        self._pids: set[int] = set()
        self._task_pid = 0
        self._created = False
        self._times = 0
        self._heard = b""
        self.too_late = False
        self._once = threading.Lock()
        self.sprung, self.over = threading.Event(), threading.Event()
        moment = point.moment
        if moment.file:
            threading.Thread(target=self._watch_files, name="chaos-watch", daemon=True).start()

    def seen(self, call: Call, *, answered: bool) -> None:
        """A call of the engine; only those of this run's task matter."""
        moment, text = self._point.moment, f"{call}?{call.query}"
        if self._key in text:
            self._pids.add(call.pid)
        if call.pid not in self._pids:
            return
        self._task_pid = call.pid
        due = self._created or moment not in AFTER_CREATION
        if due and moment.matches(text) and answered == moment.answered:
            self._times += 1
            if self._times == moment.nth:
                self._spring()
        self._created = self._created or re.search(OWN, text) is not None

    def heard(self, call: Call, data: bytes) -> None:
        """A piece of an answer of the engine; output of this run's attempts matters, which its tasks follow."""
        moment = self._point.moment
        if moment.line and call.pid in self._pids and call.path.endswith(_FOLLOWING):
            self._heard += data
            if moment.heard_in(self._heard):
                self._task_pid = call.pid
                self._spring()

    def _watch_files(self) -> None:
        folder = Path(ResultsRoot(self._world.airflow.results).run(dag_of(self._point), self._run_id).url)
        while not self.over.is_set():
            if any(folder.glob(self._point.moment.file)):
                self._spring()
                return
            time.sleep(0.001)

    def _spring(self) -> None:
        if self._once.acquire(blocking=False):
            try:
                self._kills()[self._point.actor]()
            except (_TooLateError, ProcessLookupError):
                self.too_late = True
            self.sprung.set()

    def _kills(self) -> dict[str, Callable[[], object]]:
        world = self._world
        return {
            TASK: lambda: os.kill(self._task_pid, signal.SIGKILL),
            WORKER: lambda: os.kill(_parent(self._task_pid), signal.SIGKILL),
            SCHEDULER: world.kill_scheduler,
            AIRFLOW: world.kill_airflow,
            ENGINE: world.kill_engine,
            **{who: partial(self._kill_in_container, who) for who in (INIT, *_COMMANDS)},
        }

    def _kill_in_container(self, who: str) -> None:
        os.kill(self._process(who), signal.SIGKILL)

    def _process(self, who: str) -> int:
        """A process of the run's container, as the host numbers it."""
        found = self._world.container_of(self._run_id)
        if found is None:
            raise _TooLateError
        try:
            listed = self._world.api.top(found["Id"], ps_args="-eo pid,ppid,args")["Processes"]
        except APIError as error:
            raise _TooLateError from error
        init = int(found["State"]["Pid"])
        if who == INIT:
            return init
        own = _COMMANDS if self._point.session else {EXPERIMENT: ""}
        fit = [
            int(pid)
            for pid, parent, command in listed
            if re.match(own[who], command) and (self._point.session or int(parent) == init)
        ]
        if not fit or (who == FOLLOWER and len(fit) < 2):
            raise _TooLateError
        # The parent of an engine that lives on stays as long as that does, and is the older one.
        return max(fit) if who == FOLLOWER else min(fit)


def _parent(pid: int) -> int:
    with open(f"/proc/{pid}/stat") as stat:  # noqa: PTH123
        return int(stat.read().rpartition(")")[2].split()[1])
