"""The Energy tab of a run says what happens now, what was measured, what failed, and how long it may take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llem_airflow.analysis.aggregate import aggregate_run
from llem_airflow.analysis.plan import planned
from llem_airflow.factory.sessions import SESSION_GROUP, START_TASK_ID, STOP_TASK_ID
from llem_airflow.factory.study import CYCLE_TASK_ID
from llem_airflow.frames import cycles_df
from llem_airflow.results import CycleRef, StoredRun, layout
from llem_airflow.study.plan.model import RateSearch
from llem_airflow.web.cells import MAPPED_TASK, named_by_plan, places
from llem_airflow.web.eta import time_left, time_left_searching
from llem_airflow.web.kept import Kept
from llem_airflow.web.run_view import run_view
from llem_airflow.web.seen import SeenRun, SeenTask
from llem_airflow.web.session_view import AROUND, GROUP
from tests.analysis.conftest import IDS, MakeRun, make_run
from tests.report.test_report import ESTIMATE
from tests.web.airflow_rows import BEGAN
from tests.web.conftest import Site

__all__ = ["make_run"]

ROOT = "/srv/results"


def view(state: str, *tasks: SeenTask, run: Any = None, past: Any = None, **about: Any) -> dict[str, Any]:
    seen = SeenRun(state, tasks, **about)
    return run_view(seen, run, ROOT, Kept(), past or {}, may_read_logs=True)


def cycle_task(index: int, cycle: int, state: str, **values: Any) -> SeenTask:
    return SeenTask("", state, task_id=f"{IDS[index]}.cycle_{cycle}", **values)


def cells(found: dict[str, Any]) -> dict[tuple[str, int], dict[str, Any]]:
    return {(row["id"], cell["cycle"]): cell for row in found["experiments"] for cell in row["cells"]}


def test_mistakes_of_a_plan_stand_at_their_lines_beside_the_text_that_was_given() -> None:
    found = view(
        "failed",
        SeenTask("plan", "failed", "study:3:1: engnie\nstudy:8:22: task.n: <b>", task_id="plan"),
        cycle_task(0, 1, "upstream_failed"),
        study_text="a: 1\nb: 2\nengnie: x\n",
    )
    (failure,) = found["failures"]
    assert failure["text"] == "study:3:1: engnie\nstudy:8:22: task.n: <b>"
    assert failure["places"] == [
        {"line": 3, "column": 1, "text": "engnie"},
        {"line": 8, "column": 22, "text": "task.n: <b>"},
    ]
    assert found["study_text"].startswith("a: 1")


def test_one_mistake_that_ended_several_tasks_is_told_once() -> None:
    found = view(
        "failed",
        SeenTask("plan", "failed", "study:3:1: engnie", task_id="plan"),
        SeenTask("aggregate", "failed", "study:3:1: engnie", task_id="aggregate"),
    )
    assert [[task["name"] for task in one["tasks"]] for one in found["failures"]] == [["plan", "aggregate"]]


def test_a_path_with_a_drive_or_a_time_is_no_place_in_a_file() -> None:
    assert places("at 12:30:45 it ended\nsee http://x:80/y") == []
    assert places("/srv/my studies/a.yaml:4:1: x") == [{"line": 4, "column": 1, "text": "x"}]


def test_a_run_at_work_shows_each_cycle_with_its_state_and_its_energy(make_run: MakeRun) -> None:
    run = make_run({(0, 1): ESTIMATE, (1, 1): ESTIMATE}, cycles=2)
    found = view(
        "running",
        cycle_task(0, 1, "success", duration_s=40.0),
        cycle_task(1, 1, "running", try_number=2),
        cycle_task(0, 2, "deferred"),
        run=run,
    )
    told = cells(found)
    assert told[IDS[0], 1]["state"] == "measured"
    assert told[IDS[1], 1]["state"] == "running"  # it is measured again
    assert told[IDS[0], 2]["state"] == "waiting"
    assert told[IDS[1], 2]["state"] == "waiting"
    assert (found["preliminary"], found["measured"], found["planned"]) == (True, 1, 4)
    assert found["said"].startswith("1 of 4 planned cycles measured.")
    aggregate_run(run)
    frame: Any = cycles_df(run).set_index(["experiment", "cycle"])
    assert told[IDS[0], 1]["energy_per_output_token_j"] == frame.loc[(IDS[0], 1), "energy_per_output_token_j"]
    assert told[IDS[0], 1]["energy_kind"] == "estimate"


def test_a_run_that_has_ended_has_the_numbers_of_its_table(make_run: MakeRun) -> None:
    run = make_run({(0, 1): ESTIMATE, (1, 2): ESTIMATE}, cycles=2)
    aggregate_run(run)
    found = view("failed", run=run)
    frame: Any = cycles_df(run).set_index(["experiment", "cycle"])
    for key, cell in cells(found).items():
        row = frame.loc[key]
        assert cell["state"] == {"valid": "measured"}.get(row["status"], row["status"])
        assert cell["energy_j"] == (None if pd.isna(row["energy_j"]) else row["energy_j"])
    assert (found["explorable"], found["preliminary"], found["eta"]) == (True, False, None)


def test_a_failed_attempt_has_category_hint_and_last_lines_as_text(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run({}, cycles=1)
    (tmp_path / "left").mkdir()
    lines = [f"line {number} <script>" for number in range(5000)]
    (tmp_path / "left" / "container.log").write_text("\n".join(lines))
    record = {"failure": {"category": "image_pull", "message": "no such image", "hint": "pull it"}}
    run.commit_failed(IDS[0], 1, 1, tmp_path / "left", record)
    (failure,) = cells(view("running", run=run))[IDS[0], 1]["failures"]
    assert (failure["category"], failure["message"], failure["hint"]) == (
        "image_pull",
        "no such image",
        "Pull it.",
    )
    assert failure["tail"] == lines[-40:]


def test_reasons_of_cycles_that_were_left_out_are_told(make_run: MakeRun) -> None:
    run = make_run({(0, 1): ESTIMATE}, cycles=2)
    run.mark_skipped(IDS[0], 2, "precise enough", needed=False)
    run.mark_skipped(IDS[1], 1, "the breaker has tripped", needed=True)
    found = view("running", cycle_task(0, 2, "skipped"), run=run, past={(IDS[0], 2): [10.0]})
    told = cells(found)
    assert (told[IDS[0], 2]["state"], told[IDS[0], 2]["reason"]) == ("skipped", "precise enough")
    assert told[IDS[1], 1]["reason"] == "the breaker has tripped"
    assert found["planned"] == 3
    assert found["eta"]["cycles"] == 2


def test_a_run_whose_results_are_elsewhere_says_where_they_were_looked_for() -> None:
    assert ROOT in view("success", cycle_task(0, 1, "success"))["said"]
    assert view("success", SeenTask("plan", "success", ""))["said"] == "No cycle was measured."
    assert view("queued")["said"].startswith("No cycle has begun yet")
    assert view("success", ours=False)["foreign"]


def test_tasks_are_told_by_cycle_in_groups_and_mapped_ones() -> None:
    for task_id, mapped, cycle in (
        ("a-1b2c3d4e.cycle_3", "", ("a-1b2c3d4e", 3)),
        ("mine.night.a-1b2c3d4e.cycle_12", "", ("a-1b2c3d4e", 12)),
        ("cycle", "a-1b2c3d4e cycle 2", ("a-1b2c3d4e", 2)),
        ("cycle", "", None),
        ("plan", "", None),
        ("fetch.cycle_x", "", None),
    ):
        assert SeenTask("", "", task_id=task_id, mapped_name=mapped).cycle == cycle


def test_time_left_is_that_of_the_same_experiment() -> None:
    known = {("a", 1): [10.0], ("a", 2): [14.0], ("b", 1): [100.0]}
    found = time_left({("a", 3): 4.0, ("b", 2): 0.0}, known, 1)
    assert found is not None
    assert (found.low_s, found.high_s, found.cycles) == (106.0, 110.0, 2)
    side_by_side = time_left({("a", 3): 0.0, ("b", 2): 0.0}, known, 2)
    assert side_by_side is not None
    assert side_by_side.high_s == 100.0  # as long as the longest one
    unknown = time_left({("c", 1): 0.0}, known, 1)
    assert unknown is not None
    assert (unknown.low_s, unknown.high_s) == (10.0, 100.0)
    assert "1 experiment never measured" in unknown.basis
    assert time_left({}, known, 1) is None
    assert time_left({("a", 1): 0.0}, {}, 1) is None


def test_time_left_of_a_search_counts_the_rates_that_it_may_still_ask_for() -> None:
    rates = tuple(f"r{number}" for number in range(9))
    search = RateSearch(rates, tuple(map(float, range(1, 10))), 5, 0.9)
    known = {("r0", 1): [10.0]}
    # One rate was measured, none is at work: from one more to four more, of eight candidates.
    left = {(name, 1): 0.0 for name in rates[1:]}
    found = time_left_searching(left, known, 1, [search], ["r0"])
    assert found is not None
    assert (found.low_s, found.high_s, found.cycles) == (10.0, 40.0, 4)
    assert found.basis.endswith("find_rate measures 1 more cycle to 4")
    # One is at work: it counts, and perhaps it decides all.
    found = time_left_searching({**left, ("r8", 1): 4.0}, known, 1, [search], ["r0", "r8"])
    assert found is not None
    assert (found.low_s, found.high_s, found.cycles) == (6.0, 36.0, 4)
    # Other experiments of the run are all measured; without a search it is the time left.
    both = time_left_searching({**left, ("other", 1): 0.0}, known, 1, [search], ["r0"])
    assert both is not None
    assert (both.low_s, both.high_s) == (20.0, 50.0)
    assert time_left_searching(left, known, 1, [], []) == time_left(left, known, 1)


@given(
    st.dictionaries(st.tuples(st.sampled_from("abc"), st.integers(1, 3)), st.floats(0, 1e4), min_size=1),
    st.dictionaries(
        st.tuples(st.sampled_from("abc"), st.integers(1, 3)),
        st.lists(st.floats(0.1, 1e4), min_size=1),
        min_size=1,
    ),
    st.integers(1, 4),
)
def test_time_left_is_a_range_and_never_negative(left: Any, known: Any, at_a_time: int) -> None:
    found = time_left(left, known, at_a_time)
    assert found is not None
    assert 0 <= found.low_s <= found.high_s


def test_the_api_reads_tasks_durations_and_failures_from_airflow_s_database(site: Site) -> None:
    site.stored({(0, 1): ESTIMATE}, cycles=2)
    site.dag_run("nightly", "r0")
    site.dag_run("nightly", "r1", "running", conf={"study": "x: 1"})
    for cycle, seconds in ((1, 30.0), (2, 50.0)):
        site.task("nightly", "r0", f"{IDS[0]}.cycle_{cycle}", state="success", duration=seconds)
    site.task(
        "nightly",
        "r1",
        f"{IDS[0]}.cycle_1",
        state="success",
        duration=40.0,
        operator="LLEMExperimentOperator",
    )
    site.task("nightly", "r1", f"{IDS[0]}.cycle_2", state="running", start_date=BEGAN, try_number=1)
    site.dag("other")
    site.dag_run("other", "r1")
    site.task("other", "r1", f"{IDS[0]}.cycle_2", state="success", duration=9999.0)
    found = site.get("/api/run", dag_id="nightly", run_id="r1").json()
    told = cells(found)
    assert told[IDS[0], 1]["duration_s"] == 40.0
    assert (told[IDS[0], 2]["state"], told[IDS[0], 2]["try_number"]) == ("running", 1)
    assert told[IDS[0], 2]["started_epoch_ns"] == BEGAN.timestamp() * 1e9
    # One cycle of the first experiment is at work and far beyond what is known; both of the second are to come.
    assert found["eta"]["cycles"] == 3
    assert found["eta"]["high_s"] == pytest.approx(50.0)  # 2 x 50 s at two at a time
    assert not found["foreign"]


def test_a_damaged_result_is_a_cell_and_no_error(make_run: MakeRun) -> None:
    run = make_run({(0, 1): ESTIMATE}, cycles=1)
    ref = run.cycle(IDS[0], 1)
    assert ref is not None
    stored = json.loads(ref.folder.read(layout.RESULT))
    ref.folder.write(layout.RESULT, json.dumps({**stored, "schema_version": 99}).encode())
    cell = cells(view("running", run=run))[IDS[0], 1]
    assert cell["state"] == "damaged"
    assert "newer llem-airflow" in cell["reason"]


def mapped(index: int, state: str = "None", name: str = "", task_id: str = "cycle") -> SeenTask:
    return SeenTask("", state, task_id=task_id, map_index=index, mapped_name=name)


def keys_of(tasks: tuple[SeenTask, ...]) -> list[tuple[str, int] | None]:
    return [task.cycle for task in tasks]


@pytest.mark.parametrize("task_id", ["cycle", "mine.study.cycle"])
def test_a_mapped_cycle_that_has_not_begun_is_the_one_at_its_place_in_the_plan(
    make_run: MakeRun, task_id: str
) -> None:
    plan = planned(make_run({}, cycles=2).plan())
    count = len(plan.cycles)
    first = plan.cycles[0]
    tasks = [mapped(index, task_id=task_id) for index in range(count)]
    tasks[0] = mapped(0, "success", f"{first[0]} cycle {first[1]}", task_id)
    assert keys_of(named_by_plan(tasks, plan)) == list(plan.cycles)
    part = tasks[:-1]
    assert keys_of(named_by_plan(part, plan)) == [first, *[None] * (count - 2)]
    contradicted = [mapped(0, "success", f"{first[0]} cycle {first[1] + 1}", task_id), *tasks[1:]]
    assert keys_of(named_by_plan(contradicted, plan))[1:] == [None] * (count - 1)


def test_the_cells_of_mapped_cycles_that_wait_have_their_tasks(make_run: MakeRun) -> None:
    run = make_run({}, cycles=2)
    count = len(planned(run.plan()).cycles)
    found = cells(view("running", *[mapped(index) for index in range(count)], run=run))
    assert sorted(cell["map_index"] for cell in found.values()) == list(range(count))
    assert {cell["task_id"] for cell in found.values()} == {"cycle"}


def test_the_pages_know_the_mapped_task_by_the_name_that_the_factory_gives() -> None:
    assert MAPPED_TASK == CYCLE_TASK_ID


def stored(run: StoredRun, index: int, cycle: int) -> CycleRef:
    ref = run.cycle(IDS[index], cycle)
    assert ref is not None
    return ref


def in_sessions(make_run: MakeRun) -> StoredRun:
    """A run of two experiments x two passes, each pass a session; the second one has measured one cycle."""
    run = make_run({(0, 1): ESTIMATE, (1, 1): ESTIMATE, (1, 2): ESTIMATE}, cycles=2)
    plan = run.plan()
    order = [IDS[0], IDS[1], IDS[1], IDS[0]]
    sessions = ["load-c1", "load-c1", "load-c2", "load-c2"]
    run.folder.write(layout.PLAN, json.dumps({**plan, "order": order, "sessions": sessions}).encode())
    gpus = [{"uuid": "GPU-1", "temperature_c": degrees} for degrees in (41, 52)]
    looks = [
        {"gpus": gpus[:1], "problems": [], "after_attempts": 1},
        {"gpus": gpus[1:], "problems": ["a process was left running: 7 sleep"], "after_attempts": 1},
        {"ended": "it was stopped"},
    ]
    for (index, cycle), position, lives in (((0, 1), 0, 1), ((1, 1), 1, 2), ((1, 2), 0, 1)):
        ref = stored(run, index, cycle)
        record = ref.provenance() | {
            "start_kind": "exec",
            "session": f"load-c{cycle}",
            "position_in_session": position,
        }
        after = [None, "a process was left running: 7 sleep"][:lives]
        evidence = {"lives": [{"after": each} for each in after], "health": looks[: 1 + 2 * position]}
        ref.folder.write(layout.PROVENANCE, json.dumps(record).encode())
        ref.folder.write("session.json", json.dumps(evidence).encode())
    return run


def around(session: str, name: str, state: str) -> SeenTask:
    return SeenTask("", state, task_id=f"{GROUP}{session}.{name}")


def test_sessions_are_told_with_their_cycles_in_order_and_the_health_between_them(make_run: MakeRun) -> None:
    run = in_sessions(make_run)
    tasks = (around("load-c1", "start_session", "success"), around("load-c1", "stop_session", "success"))
    first, second = view("running", *tasks, around("load-c2", "start_session", "success"), run=run)[
        "sessions"
    ]
    assert (first["id"], first["start"], first["stop"]) == ("load-c1", "success", "success")
    assert first["cycles"] == [
        {"experiment": IDS[0], "cycle": 1, "start_kind": "exec", "position": 0},
        {"experiment": IDS[1], "cycle": 1, "start_kind": "exec", "position": 1},
    ]
    assert first["restarts"] == first["problems"] == ["a process was left running: 7 sleep"]
    assert (first["checks"], first["temperature_c"]) == (2, [41, 52])
    assert (second["start"], second["stop"], second["checks"], second["restarts"]) == ("success", "", 1, [])
    assert [one["position"] for one in second["cycles"]] == [0, None], "what is not measured has no place yet"


def test_the_table_of_an_ended_run_tells_the_same_of_its_sessions(make_run: MakeRun) -> None:
    run = in_sessions(make_run)
    at_work = view("running", run=run)
    aggregate_run(run)
    ended = view("success", run=run)
    assert ended["sessions"] == at_work["sessions"]
    cell = cells(ended)[IDS[1], 1]
    assert (cell["start_kind"], cell["session"], cell["position_in_session"]) == ("exec", "load-c1", 1)


def test_evidence_of_a_session_that_cannot_be_read_hides_no_run(make_run: MakeRun) -> None:
    run = in_sessions(make_run)
    stored(run, 1, 1).folder.write("session.json", b"{")
    found = view("running", run=run)
    assert found["measured"] == 3
    assert "session.json" in found["sessions"][0]["unread"]
    assert found["sessions"][1]["unread"] == ""


def test_a_run_without_sessions_tells_of_none(make_run: MakeRun) -> None:
    assert view("running", run=make_run({(0, 1): ESTIMATE}))["sessions"] == []


def test_the_pages_know_sessions_by_the_names_that_the_factory_gives() -> None:
    assert (GROUP, AROUND) == (SESSION_GROUP, (START_TASK_ID, STOP_TASK_ID))
