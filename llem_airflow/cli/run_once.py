"""Run a study once through an embedded Airflow, or go on with a run that was broken off."""

from __future__ import annotations

import fcntl
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from llem_airflow.analysis.plan import planned
from llem_airflow.analysis.summary import Summary
from llem_airflow.cli.edge import INTERRUPTED
from llem_airflow.cli.embedded import CannotStartError, Home, end, migrate
from llem_airflow.cli.progress import RunProgress
from llem_airflow.protocol.failures import RESUME_VARIABLE
from llem_airflow.report.terminal import render_summary
from llem_airflow.results import ResultsRoot, StoredRun, layout
from llem_airflow.runners.models import missing_model
from llem_airflow.study import Study
from llem_airflow.study.names import OWN_ENGINES
from llem_airflow.study.plan.request import Request, requested
from llem_airflow.text.terminal import console, say, show
from llem_airflow.text.wording import counted

_END_S = 4.0
_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_MANUAL = "manual__"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be run.

    Attributes:
        study: The whole study, loaded from a file.
        request: What of it.
        runner: ``process`` or ``container``, or None for what the study says.
        run: The run to go on with; None for a new one.
        isolation: Of the cycles, where it is not what the study's file says.
    """

    study: Study
    request: Request
    runner: str | None
    run: StoredRun | None
    isolation: str | None = None

    @property
    def asked(self) -> Study:
        """The study as this run is to measure it."""
        return requested(self.study, self.request)

    @property
    def cycles(self) -> list[tuple[str, int]]:
        """Experiment and number of each cycle of this run."""
        return [(each.experiment_id, each.cycle) for each in self.asked.plan.planned_cycles]

    def conf(self) -> dict[str, object]:
        """The request as Airflow's ``conf``."""
        told: dict[str, object] = {"experiments": ",".join(self.request.experiments) or "*"}
        told |= {"cycles": self.request.cycles} if self.request.cycles else {}
        return told | ({"version": self.request.version} if self.request.version else {})


def run_and_show(
    study: Study,
    home: Home,
    request: Request,
    *,
    show_plan: Callable[[Study], None],
    runner: str | None = None,
    isolation: str | None = None,
    resume: bool = False,
) -> int:
    """Run a study once, with progress; at the end show the table, where the report lies and how to open the UI.

    Args:
        study: A study loaded from a file.
        home: Where to keep things.
        request: What of the study to measure; with ``dry_run``, only its plan is shown.
        show_plan: How a plan is shown.
        runner: ``process`` or ``container``, or None for what the study says.
        isolation: What the study was loaded with instead of what its file says, or None.
        resume: Go on with the newest run of the study that lacks results.

    Returns:
        0 when every planned cycle has a result, 1 when not, 130 when Ctrl-C ended it.

    Raises:
        RunRequestError: The study does not have what is asked for.
        CannotStartError: There is nothing to resume, a model is missing, or AIRFLOW_HOME cannot be used.
        EmbeddedRunError: Airflow could not be started.
    """
    root = ResultsRoot(home.results)
    earlier = _unfinished(study, root) if resume else None
    wanted = Wanted(study, _request_of(earlier) if earlier else request, runner, earlier, isolation)
    asked = wanted.asked
    _require_same(asked, earlier)
    require_models(asked, home.models, runner)
    if request.dry_run:
        show_plan(asked)
        return 0
    home.make()
    began = (earlier and _time_in(earlier.run_id)) or datetime.now(UTC)
    run = root.run(study.name, f"{_MANUAL}{began.isoformat()}")
    left = _without_result(run, wanted.cycles)
    goes_on = f", goes on with the {counted(len(left), 'cycle')} without a result" if earlier else ""
    say(
        f"{study.name}: {counted(len(asked.experiments), 'experiment')} x {counted(asked.cycles, 'cycle')}{goes_on}"
    )
    say(f"Run: {run.url}")
    say(f"Airflow's log: {home.airflow / 'run.log'}")
    with (
        _alone(home),
        RunProgress(console(), len(left), home.airflow / "run.log") as progress,
    ):
        try:
            code = _run(wanted, home, began, progress.line)
        except KeyboardInterrupt:
            code = INTERRUPTED
    return _show_end(run, wanted, code, home)


def require_models(study: Study, models_dir: Path, runner: str | None = None) -> None:
    """Look for every model of a study before anything starts; what a third party's engine makes of a name is its own.

    Raises:
        CannotStartError: One is not to be had.
    """
    ours = [each for each in study.experiments if each.engine in OWN_ENGINES]
    elsewhere = {each.model: (runner or each.runner) != "process" for each in ours}
    for model, in_containers in elsewhere.items():
        if why := missing_model(model, models_dir, study.folder, elsewhere=in_containers):
            raise CannotStartError(why)


def _show_end(run: StoredRun, wanted: Wanted, code: int, home: Home) -> int:
    cycles = wanted.cycles
    missing = _without_result(run, cycles)
    if code == INTERRUPTED:
        kept = len(cycles) - len(missing)
        where = f" in {run.url}" if kept else ""
        say(f"Ended with Ctrl-C. {kept} of {counted(len(cycles), 'cycle')} measured and kept{where}.")
    elif summary := run.summary():
        show(console(), render_summary(Summary.from_json(summary)), "")
        say(f"Report:  {run.url}/{layout.REPORT}")
        say(f"Open it: llem-airflow report {run.url} --open")
        say("See it in Airflow's UI: llem-airflow ui (or: make airflow)")
    else:
        say(
            f"Airflow ended with {code} and there is no summary; its log is {home.airflow / 'run.log'}", "red"
        )
    if missing and code:
        say(f"`{_resume_command(wanted)}` measures the {counted(len(missing), 'cycle')} without a result.")
    return INTERRUPTED if code == INTERRUPTED else int(bool(code))


def _run(wanted: Wanted, home: Home, began: datetime, on_line: Callable[[str], None]) -> int:
    """Run the study's DAG by ``dag.test()``: SQLite, one process, the plan's order."""
    dags = home.airflow / "run-once"
    dags.mkdir(parents=True, exist_ok=True)
    for old in dags.glob("*.py"):
        old.unlink()
    program = dags / "study.py"
    program.write_text(_program(wanted, began))
    environment = home.environment(dags) | {RESUME_VARIABLE: _resume_command(wanted)}
    migrate(home, environment)
    # A session of its own: Ctrl-C reaches it once, from us.
    with subprocess.Popen(
        [sys.executable, str(program)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                on_line(_COLOUR.sub("", line.rstrip("\n")))
        except BaseException:
            end(process, _END_S)
            raise
        return process.wait()


def _program(wanted: Wanted, began: datetime) -> str:
    """A DAG file that runs itself. `airflow dags test` would name the run by the time at which it starts."""
    if wanted.study.path is None:
        raise CannotStartError("a study that runs through Airflow must lie in a file")
    arguments = {"runner": wanted.runner} if wanted.runner else {}
    return (
        '"""The Airflow DAG of one study, made by `llem-airflow run`."""\n\n'
        "import sys\nfrom datetime import datetime\n\n"
        "from llem_airflow.factory import study_dag\nfrom llem_airflow.study import load_study\n\n"
        f"study = load_study({str(wanted.study.path.resolve())!r}, isolation={wanted.isolation!r})\n"
        f"dag = study_dag(study, chain=True, **{arguments!r})\n"
        f'dag.get_task("plan").resume = {wanted.run is not None}\n'
        'if __name__ == "__main__":\n'
        f"    began = datetime.fromisoformat({began.isoformat()!r})\n"
        f"    run = dag.test(run_after=began, logical_date=began, run_conf={wanted.conf()!r})\n"
        '    sys.exit(run is None or run.state == "failed")\n'
    )


def _unfinished(study: Study, root: ResultsRoot) -> StoredRun:
    """The newest run of the study that lacks results and was made as we make them."""
    for run in reversed(root.runs(study.name)):
        ours = run.run_id.startswith(_MANUAL) and _time_in(run.run_id)
        if ours and _without_result(run, planned(run.plan()).cycles):
            return run
    raise CannotStartError(
        f"{study.name}: no run under {root.url} lacks a result; without --resume a new one is made"
    )


def _without_result(run: StoredRun, cycles: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    """Those of the cycles that have no result, but for what was found not to be needed."""
    there = {(ref.experiment_id, ref.cycle) for ref in run.cycles()} | set(run.skipped(needed=False))
    return [key for key in cycles if key not in there]


def _request_of(run: StoredRun) -> Request:
    """What a run was asked for, from its plan and its facts."""
    plan = run.plan()
    release = run.meta().get("version")
    ids = tuple(str(each["id"]) for each in plan.get("experiments", ()))
    return Request(version=release, experiments=ids, cycles=plan.get("cycles"))


def _require_same(asked: Study, earlier: StoredRun | None) -> None:
    """A run is of one study: what its experiments are may not change while it goes on."""
    if earlier is None:
        return
    stored = {str(each["id"]): each.get("hash") for each in earlier.plan().get("experiments", ())}
    changed = [each.id for each in asked.experiments if stored.get(each.id) != each.hash]
    if changed:
        raise CannotStartError(
            f"{changed[0]} is not what it was when {earlier.url} began: the study was edited since; run it anew, "
            "without --resume"
        )


def _time_in(run_id: str) -> datetime | None:
    try:
        return datetime.fromisoformat(run_id.removeprefix(_MANUAL))
    except ValueError:
        return None


def _resume_command(wanted: Wanted) -> str:
    options = {"runner": wanted.runner, "isolation": wanted.isolation}
    told = "".join(f" --{name} {value}" for name, value in options.items() if value)
    return f"llem-airflow run {wanted.study.path}{told} --resume"


@contextmanager
def _alone(home: Home) -> Iterator[None]:
    """One run at a time in one AIRFLOW_HOME: they would take each other's DAG file, and a resumed one its results."""
    with (home.airflow / "run.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CannotStartError(
                f"another `llem-airflow run` is under way in {home.airflow}; wait for it, or set AIRFLOW_HOME"
            ) from error
        yield
