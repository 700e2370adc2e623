"""A night has an end, and the next one goes on with what was left."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException, DownstreamTasksSkipped

from llem_airflow.analysis.aggregate import aggregate_run
from llem_airflow.analysis.integrity import check_run
from llem_airflow.operators import LLEMAggregateOperator, LLEMPlanOperator
from llem_airflow.operators.gates import Candidate, skip, window
from llem_airflow.results import ResultsRoot, StoredRun
from llem_airflow.study import Experiment, Study, load_study_text
from tests.results.recorded import Recording, provenance, variant

TEXT = """\
study_name: nights
serving_mode: offline
engine: transformers
task: {model: m, dataset: {source: builtin, n_prompts: 2}}
sweep: {transformers.llem_execution.batch_size: [1, 2]}
study_execution: {n_cycles: 2, experiment_order: interleave}
airflow: {schedule: "0 22 * * *", timezone: Europe/Berlin, window: "22:00-06:00", carry_over: true}
"""
STUDY = load_study_text(TEXT)
FIRST, SECOND = STUDY.experiments
MIDNIGHT = datetime(2026, 1, 2, 23, 30, tzinfo=UTC)  # 00:30 in Berlin
MORNING = datetime(2026, 1, 3, 5, 0, tzinfo=UTC)  # 06:00 in Berlin


@pytest.fixture(autouse=True)
def root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ResultsRoot:
    monkeypatch.setenv("LLEM_RESULTS_ROOT", str(tmp_path / "results"))
    return ResultsRoot(tmp_path / "results")


def context(day: int = 2, run_type: str = "scheduled", try_number: int = 1) -> Any:
    """A task of the night that began on this day of January."""
    run_id = f"{run_type}__2026-01-{day:02}T21:00:00+00:00"
    pushed: dict[str, Any] = {}
    return {
        "ti": SimpleNamespace(
            dag_id="nights", run_id=run_id, try_number=try_number, xcom_push=pushed.__setitem__, pushed=pushed
        ),
        "dag_run": SimpleNamespace(
            run_type=run_type, start_date=datetime(2026, 1, day, 21, 0, tzinfo=UTC), note=None
        ),
        "outlet_events": {},
    }


def planned(where: Any, study: Study = STUDY) -> list[str]:
    """Run the plan task; the cycles that it leaves to be measured."""
    cycles = {
        (run.experiment_id, run.cycle): (f"{run.experiment_id}.cycle_{run.cycle}", -1)
        for run in study.plan.planned_cycles
    }
    skipped: list[Any] = []
    try:
        LLEMPlanOperator(task_id="plan", study=study, cycles=cycles).execute(where)
    except DownstreamTasksSkipped as skips:
        skipped = list(skips.tasks)
    return sorted(task_id for task_id, _ in cycles.values() if task_id not in skipped)


def measure(run: StoredRun, tmp_path: Path, *cells: tuple[Any, int]) -> None:
    for experiment, cycle in cells:
        folder = tmp_path / f"out-{run.run_id}-{experiment.hash}-{cycle}"
        variant(Recording(), hash=experiment.hash, cycle=cycle, config=experiment.config).write(folder)
        run.commit_cycle(experiment.id, cycle, folder, provenance() | {"experiment_hash": experiment.hash})


def night(root: ResultsRoot, day: int) -> StoredRun:
    return root.run("nights", context(day)["ti"].run_id)


def begin(root: ResultsRoot, experiment: Experiment, cycle: int, where: Any, now: datetime) -> None:
    """Begin a cycle of the second night at that time."""
    candidate = Candidate(STUDY, night(root, 2), experiment, cycle, where)
    if reason := window(candidate, now):
        skip(candidate, reason)


def test_inside_the_window_a_cycle_begins_also_after_midnight(root: ResultsRoot) -> None:
    begin(root, FIRST, 1, context(), MIDNIGHT)
    assert night(root, 2).skipped(needed=True) == {}


def test_after_the_window_a_cycle_is_skipped_and_the_reason_is_in_the_results(root: ResultsRoot) -> None:
    with pytest.raises(
        AirflowSkipException,
        match=r"skipped: it was 06:00 and the window is 22:00-06:00 \(Europe/Berlin\); the next scheduled run",
    ):
        begin(root, FIRST, 1, context(), MORNING)
    assert list(night(root, 2).skipped(needed=True)) == [(FIRST.id, 1)]


def test_what_a_person_asks_for_and_what_has_begun_is_not_held_back(root: ResultsRoot) -> None:
    for where in (context(run_type="manual"), context(run_type="backfill"), context(try_number=2)):
        begin(root, FIRST, 1, where, MORNING)


def test_a_night_that_left_something_is_red_and_says_what_and_why(root: ResultsRoot, tmp_path: Path) -> None:
    planned(context())
    measure(night(root, 2), tmp_path, (FIRST, 1), (SECOND, 1), (FIRST, 2))
    with pytest.raises(AirflowSkipException):
        begin(root, SECOND, 2, context(), MORNING)
    with pytest.raises(
        AirflowFailException,
        match=rf"1 of 4 planned cycles without a result:\n  {SECOND.id} cycle 2: skipped: it was 06:00 and the window",
    ):
        LLEMAggregateOperator(task_id="aggregate", study=STUDY).execute(context())


def test_the_next_night_measures_only_what_was_left_and_is_whole(root: ResultsRoot, tmp_path: Path) -> None:
    planned(context(2))
    measure(night(root, 2), tmp_path, (FIRST, 1), (SECOND, 1), (FIRST, 2))
    assert planned(context(3)) == [f"{SECOND.id}.cycle_2"]
    measure(night(root, 3), tmp_path, (SECOND, 2))
    summary = aggregate_run(night(root, 3))
    assert (summary.planned, summary.valid, summary.missing) == (4, 4, ())
    taken = night(root, 3).cycle(FIRST.id, 2)
    assert taken is not None
    assert taken.provenance()["carried_from"].endswith("cycle-2")
    assert night(root, 2).run_id.replace(":", "-")[:20] in taken.provenance()["carried_from"]
    assert planned(context(3)) == [f"{SECOND.id}.cycle_2"], "the plan was cleared: nothing is taken twice"
    assert check_run(night(root, 3)) == []


def test_after_a_night_that_began_everything_the_next_is_fresh_also_when_some_failed(
    root: ResultsRoot, tmp_path: Path
) -> None:
    planned(context(2))
    measure(night(root, 2), tmp_path, (FIRST, 1), (SECOND, 1), (FIRST, 2))
    night(root, 2).commit_failed(SECOND.id, 2, 1, tmp_path / "nothing", {"failure": {"category": "crash"}})
    assert len(planned(context(3))) == 4


def test_an_experiment_that_was_edited_is_measured_anew(root: ResultsRoot, tmp_path: Path) -> None:
    planned(context(2))
    measure(night(root, 2), tmp_path, (FIRST, 1), (SECOND, 1))
    edited = load_study_text(TEXT.replace("[1, 2]", "[1, 4]"))
    assert len(planned(context(3), edited)) == 3


def test_a_manual_run_and_a_study_that_does_not_say_so_take_nothing_over(
    root: ResultsRoot, tmp_path: Path
) -> None:
    planned(context(2))
    measure(night(root, 2), tmp_path, (FIRST, 1))
    assert len(planned(context(3, run_type="manual"))) == 4
    assert len(planned(context(4), load_study_text(TEXT.replace(", carry_over: true", "")))) == 4


def test_how_a_run_came_about_and_when_is_in_its_record(root: ResultsRoot) -> None:
    planned(context(2))
    record = json.loads(night(root, 2).folder.read("run.json"))
    assert record["run_type"] == "scheduled"
    assert record["started_epoch_ns"] == int(datetime(2026, 1, 2, 21, tzinfo=UTC).timestamp()) * 10**9
