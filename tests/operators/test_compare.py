"""LLEMCompareOperator: the verdict fails, skips, tells or lets pass, and says with what numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from llem_airflow.operators import LLEMCompareOperator
from llem_airflow.operators.compare import actions
from tests.analysis.conftest import IDS, make_run
from tests.operators.test_outcome import measured

__all__ = ["make_run", "measured"]


class TaskInstance:
    """What the operator uses of Airflow's task instance."""

    dag_id, run_id = "nightly", "new"

    def __init__(self) -> None:
        self.pushed: dict[str, Any] = {}

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed[key] = value


@pytest.fixture
def ti(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TaskInstance:
    monkeypatch.setenv("AIRFLOW__LLEM__RESULTS_ROOT", str(tmp_path / "results"))
    monkeypatch.setenv("AIRFLOW__LLEM__NOTIFIER", "tests.operators.test_notify.FileNotifier")
    monkeypatch.setenv("AIRFLOW__LLEM__NOTIFIER_ARGS", f'{{"path": "{tmp_path / "told"}"}}')
    return TaskInstance()


def compare(ti: TaskInstance, **args: Any) -> dict[str, Any]:
    context: Any = {"ti": ti, "params": {}}
    return LLEMCompareOperator(task_id="compare", **args).execute(context)


def test_a_regression_fails_the_task_tells_the_notifier_and_keeps_the_numbers(
    measured: Any, ti: TaskInstance, tmp_path: Path
) -> None:
    measured("old", 200, 1)
    measured("new", 220, 2)
    with pytest.raises(AirflowFailException, match=r"regression:\n.*energy_per_output_token_j \+10\.0%"):
        compare(ti)
    told = (tmp_path / "told").read_text()
    assert told.startswith(f"regression: nightly/new#{IDS[0]} against nightly/old")
    assert told.count("Caution: cycles of two runs were compared") == 1
    found = ti.pushed["return_value"]
    assert found["verdict"] == "regression"
    change = found["changes"][f"nightly/new#{IDS[1]}"]["energy_per_output_token_j"]
    assert change["difference_ratio"] == pytest.approx(0.1, abs=0.005)
    assert change["n_candidate"] == 5


def test_an_unchanged_run_passes_or_skips_what_follows(measured: Any, ti: TaskInstance) -> None:
    measured("old", 200, 1)
    measured("new", 200, 2)
    assert compare(ti)["verdict"] == "unchanged"
    with pytest.raises(AirflowSkipException, match="unchanged: what follows is not needed"):
        compare(ti, on={"unchanged": "skip"})


def test_a_first_run_has_no_baseline_and_passes(measured: Any, ti: TaskInstance) -> None:
    measured("new", 200, 2)
    assert compare(ti)["verdict"] == "no baseline"


def test_releases_are_compared_with_one_of_them(measured: Any, ti: TaskInstance) -> None:
    for day, (release, power_w) in enumerate({"r1": 200, "r2": 200, "r3": 150}.items()):
        measured(f"run-{release}", power_w, day, version=release)
    found = compare(ti, baseline="nightly@r1", candidates="nightly@*")
    assert found["outcomes"] == {
        **{f"nightly/run-r2#{name}": "unchanged" for name in IDS},
        **{f"nightly/run-r3#{name}": "improvement" for name in IDS},
    }
    with pytest.raises(
        AirflowFailException, match=r"no aggregated run of the release 'r9'.*releases: r1, r2, r3"
    ):
        compare(ti, baseline="nightly@r9", candidates="nightly@*")


def test_two_experiments_of_this_run_are_compared_in_pairs(measured: Any, ti: TaskInstance) -> None:
    measured("new", 200, 2)
    found = compare(ti, baseline=f"#{IDS[0]}", candidates=f"#{IDS[1]}", paired=True)
    assert found["verdict"] == "unchanged"
    with pytest.raises(AirflowFailException, match="name an experiment on both sides, or on neither"):
        compare(ti, baseline=f"#{IDS[0]}", candidates="nightly/new")


def test_a_run_without_results_is_asked_for_names(ti: TaskInstance) -> None:
    with pytest.raises(AirflowFailException, match=r"this DAG run has no results under .*`candidates`"):
        compare(ti)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"worse": "fail"}, "on: 'worse' is no outcome of a comparison; there are: regression, "),
        ({"regression": "explode"}, "on: 'regression': 'explode' is no action; there are: fail, skip, "),
        ({"regression": ()}, r"on: 'regression': \(\) is no action"),
    ],
)
def test_an_unknown_outcome_or_action_is_named_with_the_known_ones(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        actions(given)


@pytest.mark.parametrize("threshold", [0, -0.02, float("nan"), float("inf"), "0.02", None])
def test_a_threshold_that_is_not_above_zero_is_refused_when_the_dag_is_made(threshold: Any) -> None:
    with pytest.raises(ValueError, match=r"a number above 0; 0\.02 is 2 %"):
        LLEMCompareOperator(task_id="compare", threshold_ratio=threshold)


def test_a_metric_that_cannot_decide_is_refused_when_the_dag_is_made() -> None:
    with pytest.raises(ValueError, match=r"metric 'window_s' cannot decide .* energy_per_output_token_j, "):
        LLEMCompareOperator(task_id="compare", metric="window_s")
