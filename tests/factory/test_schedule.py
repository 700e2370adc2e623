"""When a study runs by itself, on its own clock, and who hears that it is late."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pendulum
import pytest
from airflow.sdk.definitions.deadline import DeadlineAlert
from airflow.serialization.serialized_objects import DagSerialization
from airflow.timetables.base import TimeRestriction

from llem_airflow.factory import study_dag
from llem_airflow.factory.folder import dag_problems
from llem_airflow.factory.schedule import next_runs
from llem_airflow.operators.notify import tell_late
from llem_airflow.study import StudyFileError, load_study_text

TEXT = """\
study_name: nightly
serving_mode: offline
engine: transformers
task: {{model: m, dataset: {{source: builtin, n_prompts: 2}}}}
airflow: {{{airflow}}}
"""


def dag_of(airflow: str) -> Any:
    return study_dag(load_study_text(TEXT.format(airflow=airflow)))


def first_run(airflow: str) -> pendulum.DateTime:
    """When Airflow's scheduler would run it first, from what is in its database."""
    stored = DagSerialization.from_dict(DagSerialization.to_dict(dag_of(airflow)))
    assert stored.start_date is not None
    start = pendulum.instance(stored.start_date)
    info = stored.timetable.next_dagrun_info(
        last_automated_data_interval=None, restriction=TimeRestriction(start, None, catchup=True)
    )
    assert info is not None
    return info.run_after


def test_a_schedule_is_on_the_study_s_own_clock_in_summer_and_in_winter() -> None:
    berlin = 'schedule: "0 2 * * *", timezone: Europe/Berlin, start_date: {}'
    assert first_run(berlin.format("2030-01-10")) == pendulum.datetime(2030, 1, 10, 1)
    assert first_run(berlin.format("2030-07-10")) == pendulum.datetime(2030, 7, 10, 0)


def test_without_a_time_zone_the_clock_is_utc() -> None:
    assert first_run('schedule: "@daily", start_date: 2030-01-10') == pendulum.datetime(2030, 1, 10)


def test_a_night_never_overlaps_the_one_before_and_past_nights_are_not_caught_up() -> None:
    dag = dag_of('schedule: "0 2 * * *"')
    assert (dag.max_active_runs, dag.catchup) == (1, False)


@pytest.mark.parametrize(
    ("airflow", "message"),
    [
        ('schedule: "0 25 * * *"', r"5:21: airflow\.schedule: .*0 25 \* \* \*.* not acceptable"),
        (
            'schedule: "0 2 * * *", timezone: Europe/Berln',
            r"airflow\.timezone: .*Did you mean 'Europe/Berlin'",
        ),
        ('schedule: "0 2 * * *", window: 22-6', r"airflow\.window: found '22-6'.*such as 22:00-06:00"),
        (
            'window: "22:00-06:00"',
            r"airflow\.window: it holds for scheduled runs, and the study has no schedule",
        ),
        ("carry_over: true", r"airflow\.carry_over: it holds for scheduled runs"),
        (
            'schedule: "0 0 30 2 *"',
            r"5:21: airflow\.schedule: found '0 0 30 2 \*' \(text\), which never comes",
        ),
        (
            'schedule: "0 0 2 * * *"',
            r"airflow\.schedule: found '0 0 2 \* \* \*' \(text\), which has 6 fields",
        ),
        ('schedule: "@every 5m"', r"airflow\.schedule: found '@every 5m'"),
        ('schedule: "@never"', r"airflow\.schedule: found '@never'"),
        (
            'schedule: "R 0 * * *"',
            r"airflow\.schedule: found 'R 0 \* \* \*' \(text\), with a hashed or random field",
        ),
        ('schedule: "@continuous"', r"Airflow runs @continuous only from a start_date on; add start_date"),
        (
            'schedule: "0 12 * * *", window: "22:00-06:00"',
            r"airflow\.window: no run of the schedule '0 12 \* \* \*' begins in the window 22:00-06:00, but at 12:00",
        ),
        (
            'schedule: "0 2 * * *", deadline: 48h',
            r"airflow\.deadline: 172800 s are longer than the 86400 s from one run to the next",
        ),
        ("deadline: soon", r"airflow\.deadline: found 'soon'.*30s, 5m, 1h"),
    ],
)
def test_a_mistake_about_time_is_told_with_its_place(airflow: str, message: str) -> None:
    with pytest.raises(StudyFileError, match=message):
        dag_of(airflow)


def test_a_deadline_counts_from_when_the_run_was_due_or_else_from_when_it_was_queued() -> None:
    for airflow, reference in (
        ('schedule: "0 2 * * *", deadline: 4h', "DagRunLogicalDateDeadline"),
        ("deadline: 4h", "DagRunQueuedAtDeadline"),
    ):
        (alert,) = dag_of(airflow).deadline
        assert isinstance(alert, DeadlineAlert)
        assert alert.reference.reference_name == reference
        assert alert.interval == pendulum.duration(hours=4)
    assert not dag_of("retries: 1").deadline


LATE: dict[str, Any] = {
    "dag_run": {"dag_id": "nightly", "dag_run_id": "scheduled__x", "state": "running", "end_date": None},
    "deadline": {"id": "1", "deadline_time": "2026-01-02T06:00:00Z"},
}


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A file that a real notifier, named in the configuration, writes to."""
    monkeypatch.setenv("AIRFLOW__LLEM__NOTIFIER", "tests.operators.test_notify.FileNotifier")
    args = f'{{"path": "{tmp_path}/told", "line": "{{{{ dag.dag_id }}}} {{{{ llem_event }}}}: {{{{ llem_message }}}}"}}'
    monkeypatch.setenv("AIRFLOW__LLEM__NOTIFIER_ARGS", args)
    return tmp_path / "told"


def test_a_late_run_is_told_by_name_with_what_to_look_at(told: Path) -> None:
    asyncio.run(tell_late(study="nightly", context=LATE))
    text = told.read_text()
    assert text.startswith("nightly late: nightly is late: its run scheduled__x was to be done by 2026-01-02")
    assert "is running" in text


def test_a_run_that_failed_before_its_deadline_is_not_called_late(told: Path) -> None:
    run = {**LATE["dag_run"], "state": "failed", "end_date": "2026-01-02T05:00:00+00:00"}
    said = asyncio.run(tell_late(study="nightly", context={**LATE, "dag_run": run}))
    assert said == "scheduled__x had ended in time (failed)"
    assert not told.exists()


def test_a_run_that_its_time_limit_has_ended_is_told_as_no_aggregate_does_it(told: Path) -> None:
    limit = "study_execution: {n_cycles: 1, wall_clock_timeout_hours: 8}\n"
    text = TEXT.format(airflow="notify_on: [failure]") + limit
    dag: Any = study_dag(load_study_text(text))
    run = {"dag": dag, "run_id": "scheduled__x"}
    dag.on_failure_callback({**run, "reason": "task_failure"})
    assert not told.exists()
    dag.on_failure_callback({**run, "reason": "timed_out"})
    assert (
        "its run scheduled__x was ended after 8 h (study_execution.wall_clock_timeout_hours)"
        in told.read_text()
    )
    assert study_dag(load_study_text(text.replace("notify_on: [failure]", ""))).on_failure_callback is None


def test_the_next_runs_are_those_of_airflow_on_the_study_s_clock() -> None:
    """Over the end of summer time in Berlin, 2026-10-25."""
    text = TEXT.format(airflow='schedule: "0 4 * * *", timezone: Europe/Berlin')
    found = next_runs(load_study_text(text), pendulum.datetime(2026, 10, 23, 12))
    assert [f"{one:%d %H:%M %Z}" for one in found] == ["24 04:00 CEST", "25 04:00 CET", "26 04:00 CET"]
    later = TEXT.format(airflow='schedule: "@daily", start_date: 2030-01-10')
    assert next_runs(load_study_text(later), pendulum.datetime(2026, 1, 1))[0] == pendulum.datetime(
        2030, 1, 10
    )
    assert next_runs(load_study_text(TEXT.format(airflow="retries: 1")), pendulum.datetime(2026, 1, 1)) == []


SERVED = """\
serving_mode: server
engine: vllm
task: {model: m}
server: {traffic: {rate: 1%s}}
"""
TWO_WINDOWS = (
    "study_execution: {experiment_timeout_seconds: 300}\nsweep: {server.traffic.window_seconds: [%s]}\n"
)


@pytest.mark.parametrize("windows", ["60, 600", "600, 60"])
def test_a_limit_that_some_experiments_keep_is_accepted_whichever_comes_first(windows: str) -> None:
    found = load_study_text(SERVED % "" + TWO_WINDOWS % windows)
    assert dag_problems(found) == ()


def test_a_server_gets_a_limit_that_its_window_fits_into() -> None:
    found = load_study_text(SERVED % ", window_seconds: 1800")
    assert dag_problems(found) == ()


def test_why_no_run_could_end_well_and_what_its_times_say_are_told_together() -> None:
    text = (
        "serving_mode: offline\ntask: {model: m}\nmeasurement: {meter: cpu-estimate}\n"
        "study_execution: {experiment_timeout_seconds: 5}\n"
        'airflow: {schedule: "0 2 * * *", window: "22:00-23:00", deadline: 2d}\n'
    )
    paths = [one.path for one in dag_problems(load_study_text(text))]
    assert sorted(paths) == [
        "airflow.deadline",
        "airflow.window",
        "study_execution.experiment_timeout_seconds",
    ]
