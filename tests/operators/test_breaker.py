"""A study whose cycles fail one after the other stops; a probe after a pause may let it go on."""

from __future__ import annotations

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException
from airflow.triggers.base import BaseTrigger

from llem_airflow.operators import LLEMAggregateOperator, waits
from llem_airflow.operators.evidence import open_run
from llem_airflow.operators.gates import Candidate, ProbeTrigger, check, tripped
from llem_airflow.operators.waits import Pause, PauseTrigger
from llem_airflow.results import StoredRun
from llem_airflow.study import Experiment, load_study_text
from tests.results.recorded import Recording, provenance, variant

STUDY = load_study_text("""\
study_name: broken
serving_mode: offline
engine: transformers
task: {model: m, dataset: {source: builtin, n_prompts: 2}}
sweep: {transformers.llem_execution.batch_size: [1, 2, 4]}
study_execution: {n_cycles: 2, max_consecutive_failures: 3, circuit_breaker_cooldown_seconds: 60}
""")
FIRST, SECOND, THIRD = STUDY.experiments


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> StoredRun:
    monkeypatch.setenv("LLEM_RESULTS_ROOT", str(tmp_path / "results"))
    return open_run(STUDY, context())


def context(try_number: int = 1) -> Any:
    return {"ti": SimpleNamespace(dag_id="broken", run_id="manual__x", try_number=try_number)}


def fail(
    run: StoredRun, experiment: Any, cycle: int, *, ago_s: float, category: str = "crash", attempt: int = 1
) -> None:
    """A failed attempt that took a second."""
    ended_s = time.time_ns() / 1e9 - ago_s
    record = {
        "started_epoch_ns": int((ended_s - 1) * 1e9),
        "finished_epoch_ns": int(ended_s * 1e9),
        "failure": {"category": category, "message": "it fell", "hint": "", "retryable": False},
    }
    run.commit_failed(experiment.id, cycle, attempt, Path("nowhere"), record)


def work(run: StoredRun, tmp_path: Path, experiment: Any, cycle: int, *, ago_s: float) -> None:
    folder = tmp_path / f"out-{experiment.hash}-{cycle}"
    variant(Recording(), hash=experiment.hash, cycle=cycle, config=experiment.config).write(folder)
    run.commit_cycle(
        experiment.id, cycle, folder, provenance() | {"finished_epoch_ns": time.time_ns() - int(ago_s * 1e9)}
    )


def begin(
    run: StoredRun, try_number: int = 1, experiment: Experiment = THIRD, cycle: int = 2
) -> Pause | None:
    """Begin a cycle; the pause that it makes first."""
    return check(Candidate(STUDY, run, experiment, cycle, context(try_number)))


def three_failures(run: StoredRun, *, ago_s: float) -> None:
    for k, experiment in enumerate(STUDY.experiments):
        fail(run, experiment, 1, ago_s=ago_s + 20 - 10 * k)


def test_fewer_failures_than_allowed_change_nothing(run: StoredRun) -> None:
    fail(run, FIRST, 1, ago_s=5)
    fail(run, SECOND, 1, ago_s=3)
    assert begin(run) is None


def test_tries_of_one_cycle_are_one_failure(run: StoredRun) -> None:
    for attempt in (1, 2, 3, 4):
        fail(run, FIRST, 1, ago_s=20 - attempt, attempt=attempt)
    assert begin(run) is None


def test_a_cycle_that_worked_in_between_starts_the_count_again(run: StoredRun, tmp_path: Path) -> None:
    three_failures(run, ago_s=5)
    work(run, tmp_path, FIRST, 2, ago_s=10)
    assert begin(run) is None


@pytest.mark.parametrize("category", ["gpu_unavailable", "cancelled"])
def test_a_busy_gpu_and_a_cancelled_cycle_say_nothing_about_the_study(run: StoredRun, category: str) -> None:
    for experiment in STUDY.experiments:
        fail(run, experiment, 1, ago_s=5, category=category)
    assert begin(run) is None


def test_after_so_many_failures_the_next_cycle_waits_for_the_cooldown_in_the_triggerer_and_is_the_probe(
    run: StoredRun,
) -> None:
    three_failures(run, ago_s=5)
    pause = begin(run)
    assert pause is not None
    assert 0 < pause.left_s <= 55
    assert "This cycle is the probe, after a pause of 60 s" in pause.text
    assert isinstance(pause.trigger, PauseTrigger)
    assert not pause.trigger.is_over()


def test_when_it_comes_back_from_the_pause_it_is_still_the_probe(run: StoredRun) -> None:
    three_failures(run, ago_s=57)
    pause = begin(run)
    assert pause is not None
    time.sleep(pause.left_s + 0.1)
    assert begin(run) is None
    other = begin(run, experiment=SECOND)
    assert other is not None
    assert isinstance(other.trigger, ProbeTrigger)


def test_of_many_that_begin_at_once_exactly_one_is_the_probe(run: StoredRun) -> None:
    three_failures(run, ago_s=300)
    with ThreadPoolExecutor(8) as pool:
        pauses = list(pool.map(lambda number: begin(run, cycle=number), range(8)))
    assert pauses.count(None) == 1
    waiting = [pause for pause in pauses if pause is not None]
    assert all(isinstance(pause.trigger, ProbeTrigger) for pause in waiting)


def fires(monkeypatch: pytest.MonkeyPatch, trigger: BaseTrigger | None, within_s: float = 1.0) -> bool:
    """Whether a trigger, as Airflow's database brings it back, fires soon."""
    monkeypatch.setattr(waits, "SETTLE_S", 0.0)
    monkeypatch.setattr(waits, "LOOK_EVERY_S", 0.05)
    assert trigger is not None
    path, arguments = trigger.serialize()
    module, _, kind = path.rpartition(".")
    made = getattr(import_module(module), kind)(**json.loads(json.dumps(arguments)))

    async def first() -> bool:
        async for event in made.run():
            return bool(event.payload == {})
        return False

    async def soon() -> bool:
        try:
            return await asyncio.wait_for(first(), within_s)
        except TimeoutError:
            return False

    return asyncio.run(soon())


def test_the_others_wait_for_the_probe_s_end_and_go_on_when_it_works(
    run: StoredRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    three_failures(run, ago_s=300)
    assert begin(run) is None  # the probe
    waiting = begin(run, experiment=SECOND)
    assert waiting is not None
    assert not fires(monkeypatch, waiting.trigger)
    work(run, tmp_path, THIRD, 2, ago_s=0)
    assert fires(monkeypatch, waiting.trigger)
    assert begin(run, experiment=SECOND) is None
    for experiment in STUDY.experiments:
        fail(run, experiment, 1, ago_s=-1, attempt=2)
    assert begin(run, experiment=FIRST) is not None  # the probe of the next opening


def test_the_others_are_skipped_when_the_probe_fails_or_never_ends(
    run: StoredRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    three_failures(run, ago_s=300)
    assert begin(run) is None  # the probe
    waiting = begin(run, experiment=SECOND)
    assert waiting is not None
    name = f"breaker/probe-{tripped(run, 3, 60).epoch_ns}"  # type: ignore[union-attr]  # it is
    long_ago = f"{THIRD.id} 2 {time.time_ns() / 1e9 - 60 - 2 * (SECOND.wall_clock_s or 0) - 1:.0f}"
    (Path(run.url) / name).write_text(long_ago)
    with pytest.raises(AirflowSkipException, match="The probe has not ended within"):
        begin(run, experiment=SECOND)
    fail(run, THIRD, 2, ago_s=0)
    assert fires(monkeypatch, waiting.trigger)
    with pytest.raises(AirflowSkipException, match="A probe after a pause of 60 s failed too"):
        begin(run, experiment=SECOND)


def test_a_probe_that_an_older_release_noted_counts(run: StoredRun) -> None:
    three_failures(run, ago_s=300)
    run.folder.child("breaker").create(f"probe-{tripped(run, 3, 60).epoch_ns}", f"{FIRST.id} 2".encode())  # type: ignore[union-attr]  # it is
    assert begin(run) is not None
    assert begin(run, experiment=FIRST) is None


def test_after_the_cooldown_the_probe_begins_at_once(run: StoredRun) -> None:
    three_failures(run, ago_s=300)
    assert begin(run) is None


def test_when_the_probe_fails_too_the_rest_is_skipped_with_the_reason(run: StoredRun) -> None:
    three_failures(run, ago_s=300)
    fail(run, FIRST, 2, ago_s=5)
    with pytest.raises(
        AirflowSkipException,
        match=r"skipped: 4 cycles in a row failed, the last one .* \[crash\]: it fell. A probe after a pause of 60 s "
        r"failed too. Correct the cause, then clear this task",
    ):
        begin(run)
    assert list(run.skipped(needed=True)) == [(THIRD.id, 2)]


def test_when_the_probe_works_the_study_goes_on(run: StoredRun, tmp_path: Path) -> None:
    three_failures(run, ago_s=300)
    work(run, tmp_path, FIRST, 2, ago_s=5)
    assert begin(run) is None
    assert tripped(run, 3, 60) is None


def test_what_has_begun_and_what_a_person_clears_is_measured(run: StoredRun) -> None:
    three_failures(run, ago_s=300)
    fail(run, FIRST, 2, ago_s=5)
    assert begin(run, try_number=2) is None


def test_zero_is_for_any_number(run: StoredRun) -> None:
    three_failures(run, ago_s=300)
    assert tripped(run, 0, 60) is None


@pytest.mark.parametrize(
    ("category", "said", "not_said"),
    [
        ("config", "unless the study is changed: correct it and start a new run", "clear the failed tasks"),
        ("model_access", "clear the failed tasks", "unless the study is changed"),
    ],
)
def test_what_only_another_study_mends_is_not_said_to_be_cleared(
    run: StoredRun, category: str, said: str, not_said: str
) -> None:
    for experiment in STUDY.experiments:
        for cycle in (1, 2):
            fail(run, experiment, cycle, ago_s=5, category=category)
    with pytest.raises(AirflowFailException, match=said) as caught:
        LLEMAggregateOperator(task_id="aggregate", study=STUDY).execute(
            {**context(), "outlet_events": {}, "dag_run": None}  # type: ignore[typeddict-item]
        )
    assert not_said not in str(caught.value)


def test_a_run_that_was_stopped_is_not_green_and_says_why(run: StoredRun) -> None:
    three_failures(run, ago_s=300)
    fail(run, FIRST, 2, ago_s=5)
    with pytest.raises(AirflowSkipException):
        begin(run)
    with pytest.raises(AirflowFailException, match=rf"{THIRD.id} cycle 2: skipped: 4 cycles in a row failed"):
        LLEMAggregateOperator(task_id="aggregate", study=STUDY).execute(
            {**context(), "outlet_events": {}, "dag_run": None}  # type: ignore[typeddict-item]
        )
