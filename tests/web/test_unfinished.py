"""The Energy tab of a run without a report says what is going on, and never a bare "no results yet"."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from llem_airflow.analysis import formatting
from llem_airflow.operators.ui import FAILURE_KEY, keeps_failure
from llem_airflow.results import ResultsRoot
from llem_airflow.web.evidence import cycle_page
from llem_airflow.web.seen import SeenRun, SeenTask
from llem_airflow.web.unfinished import comparison_page, unfinished_page
from tests.analysis.conftest import IDS, MakeRun, make_run
from tests.report.test_report import ESTIMATE

__all__ = ["make_run"]

ROOT = ResultsRoot("/srv/results")


def told(state: str, *tasks: SeenTask, run: Any = None) -> str:
    return bytes(unfinished_page(SeenRun(state, tasks, ()), run, ROOT).body).decode()


def test_mistakes_of_a_plan_are_shown_as_they_are_and_as_text() -> None:
    page = told(
        "failed",
        SeenTask("plan", "failed", "study:3:1: engnie\n  <b>"),
        SeenTask("cycle", "upstream_failed", ""),
    )
    assert "<pre>study:3:1: engnie\n  &lt;b&gt;</pre>" in page
    assert "plan failed" in page
    assert "upstream failed" in page
    assert "http-equiv='refresh'" not in page


def test_one_mistake_that_ended_several_tasks_is_shown_once() -> None:
    page = told(
        "failed",
        SeenTask("plan", "failed", "study:3:1: engnie"),
        SeenTask("cycle", "failed", ""),
        SeenTask("aggregate", "failed", "study:3:1: engnie"),
    )
    assert page.count("study:3:1: engnie") == 1
    assert "<h2>plan; aggregate failed</h2>" in page
    assert "<h2>cycle failed</h2><p>The log says why.</p>" in page


def test_a_run_at_work_says_how_far_it_is_and_is_looked_at_again(make_run: MakeRun) -> None:
    run = make_run({(0, 1): ESTIMATE}, cycles=2)
    page = told("running", SeenTask("batch_size 8, cycle 1", "running", ""), run=run)
    assert "1 of 4 planned cycles measured." in page
    assert "batch_size 8, cycle 1" in page
    assert "http-equiv='refresh'" in page


def test_a_run_whose_results_are_elsewhere_says_where_they_were_looked_for() -> None:
    assert "/srv/results" in told("success", SeenTask("a, cycle 1", "success", ""))
    assert "No cycle was measured." in told("success", SeenTask("plan", "success", ""))
    assert "No cycle has begun yet" in told("queued")


def test_a_comparison_is_shown_with_its_verdicts_changes_and_sentences() -> None:
    found = {
        "verdict": "regression",
        "outcomes": {"s/r2#e": "regression", "s/r2#f": "no baseline"},
        "baselines": {"s/r2#e": "s/r1#e"},
        "metric": "energy_j",
        "changes": {
            "s/r2#e": {
                "energy_j": {
                    "difference_ratio": 0.1,
                    "low_ratio": 0.08,
                    "high_ratio": 0.12,
                    "n_baseline": 3,
                    "n_candidate": 5,
                }
            }
        },
        "said": ["s/r2#e against s/r1#e: it became worse"],
        "without_baseline": ["s/r2#f"],
    }
    page = bytes(comparison_page(SeenRun("failed", (), (found,))).body).decode()
    for text in (
        "regression",
        "<h2>s/r2 against s/r1</h2>",
        f"{formatting.signed(0.1)} ({formatting.change_interval(0.08, 0.12)})",
        "3 and 5",
        "<li>e: it became worse",
    ):
        assert text in page
    assert page.count("s/r1") == 1
    assert "No earlier run to compare with: s/r2#f" in page


def test_the_evidence_of_a_cycle_has_its_line_its_doubts_and_its_files(make_run: MakeRun) -> None:
    run = make_run({(0, 1): ESTIMATE}, cycles=1)
    page = bytes(cycle_page(run, IDS[0], 1).body).decode()
    assert f"<h1>{IDS[0]}, cycle 1</h1>" in page
    assert " J (estimate, cpu-estimate)" in page
    assert "<a href='run?dag_id=nightly&amp;run_id=r1'>" in page
    assert "result.json" in page
    assert run.url in page
    assert "No attempt has left a result or an error" in bytes(cycle_page(run, IDS[1], 1).body).decode()


def test_the_evidence_of_a_failed_attempt_has_its_reason_and_last_lines(
    make_run: MakeRun, tmp_path: Any
) -> None:
    run = make_run({}, cycles=1)
    (tmp_path / "left").mkdir()
    (tmp_path / "left" / "container.log").write_text("<first>\nlast line\n")
    record = {"failure": {"category": "image_pull", "message": "no such image", "hint": "pull it"}}
    run.commit_failed(IDS[0], 1, 1, tmp_path / "left", record)
    page = bytes(cycle_page(run, IDS[0], 1).body).decode()
    told_what = "<p>No such image.</p><p>What to do: Pull it.</p>"
    for text in ("Attempt 1 failed: image_pull", told_what, "&lt;first&gt;\nlast line"):
        assert text in page
    assert "no such image" in told("running", run=run)


class Pushed:
    def __init__(self) -> None:
        self.pushed: dict[str, Any] = {}

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed[key] = value


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        (AirflowFailException("a.yaml:1:2: x"), "a.yaml:1:2: x"),
        (KeyError("k"), "KeyError: 'k'"),
        (AirflowSkipException("no"), None),
    ],
)
def test_what_a_task_fails_with_is_kept_and_raised(error: Exception, kept: str | None) -> None:
    @keeps_failure
    def execute(_: Any, __: Any) -> None:
        raise error

    ti = Pushed()
    with pytest.raises(type(error)):
        execute(None, {"ti": ti})  # type: ignore[typeddict-item]  # as far as it is read
    assert ti.pushed.get(FAILURE_KEY) == kept


def test_a_text_that_cannot_be_kept_hides_no_error() -> None:
    @keeps_failure
    def execute(_: Any, __: Any) -> None:
        raise AirflowFailException("the real one")

    with pytest.raises(AirflowFailException, match="the real one"):
        execute(None, {"ti": None})  # type: ignore[typeddict-item]  # as when Airflow is away
