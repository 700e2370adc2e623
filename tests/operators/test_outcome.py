"""A run against its baseline: which run that is, and what counts as worse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llem_airflow.analysis.aggregate import aggregate_run
from llem_airflow.operators.outcome import baseline_run, compared, key_numbers, nightly, said
from llem_airflow.operators.outcome import worse as worse_nights
from llem_airflow.results import ResultsRoot, StoredRun
from llem_airflow.study import Study, load_study_text
from tests.analysis.conftest import IDS, MakeRun, make_run
from tests.results.recorded import Recording

__all__ = ["make_run"]

JITTER = (0.0, 0.4, -0.4, 0.2, -0.2)


@pytest.fixture
def measured(make_run: MakeRun, tmp_path: Path) -> Any:
    def measure(run_id: str, power_w: float, day: int, version: str | None = None) -> StoredRun:
        facts: dict[str, Any] = {"dag_id": "nightly", "started_epoch_ns": day}
        if version:
            facts["version"] = version
        ResultsRoot(tmp_path / "results").run("nightly", run_id).write_plan("", {}, facts)
        recordings = {
            (index, cycle): Recording(power_w=power_w + JITTER[cycle - 1])
            for index in (0, 1)
            for cycle in range(1, 6)
        }
        run = make_run(recordings, cycles=5, run_id=run_id)
        aggregate_run(run)
        return run

    return measure


def study(baseline: str, threshold_ratio: float = 0.02) -> Study:
    return load_study_text(
        "study_name: nightly\nserving_mode: offline\nengine: transformers\n"
        "task: {model: m, dataset: {source: builtin, n_prompts: 2}}\n"
        f"airflow: {{regression: {{baseline: {baseline}, threshold_ratio: {threshold_ratio}}}}}\n"
        "versions: [{name: r1, released: 2026-01-01}, {name: r2, released: 2026-02-01}]\n"
    )


def test_previous_is_the_newest_earlier_run_of_the_same_release(measured: Any, tmp_path: Path) -> None:
    root = ResultsRoot(tmp_path / "results")
    first, second, third = measured("a", 200, 1), measured("b", 210, 2), measured("c", 220, 3)
    measured("other", 100, 2, version="r9")
    found = baseline_run(study("previous"), third, root)
    assert found is not None
    assert found.url == second.url
    assert baseline_run(study("previous"), first, root) is None


def test_a_named_release_is_the_baseline_of_every_other_release(measured: Any, tmp_path: Path) -> None:
    base, new = measured("a", 200, 2, version="r1"), measured("b", 220, 1, version="r2")
    found = baseline_run(study("r1"), new, ResultsRoot(tmp_path / "results"))
    assert found is not None
    assert found.url == base.url


def worse(question: Study, base: StoredRun, new: StoredRun) -> list[str]:
    return said(compared(question, base, new), "energy_per_output_token_j", "regression")


def test_an_experiment_that_became_worse_is_told_with_numbers_and_n(measured: Any) -> None:
    sentences = worse(study("previous"), measured("a", 200, 1), measured("b", 220, 2))
    assert len(sentences) == 2
    assert sentences[0].startswith(f"nightly/b#{IDS[0]} against nightly/a#{IDS[0]}: regression: ")
    assert "energy_per_output_token_j +10.0%" in sentences[0]
    assert "n = 5 and 5 cycles" in sentences[0]


def test_a_change_below_the_study_s_threshold_is_not_worse(measured: Any) -> None:
    base, new = measured("a", 200, 1), measured("b", 220, 2)
    assert worse(study("previous", threshold_ratio=0.2), base, new) == []
    assert worse(study("previous"), new, base) == []


def test_the_key_numbers_carry_mean_interval_and_n(measured: Any) -> None:
    numbers = key_numbers(aggregate_run(measured("a", 200, 1)))
    assert (numbers["planned"], numbers["valid"]) == (10, 10)
    metric = numbers["experiments"][IDS[0]]["energy_per_output_token_j"]
    assert metric["low"] < metric["mean"] < metric["high"]
    assert metric["n"] == 5


def nights(measured: Any, *powers_w: float) -> list[StoredRun]:
    return [measured(f"n{day:02}", power_w, day) for day, power_w in enumerate(powers_w, start=1)]


def test_from_three_runs_on_the_history_is_the_verdict_and_tells_a_change_once(measured: Any) -> None:
    runs = nights(measured, 200, 201, 199, 200, 202, 198, 200, 201, 199, 200, 201, 199, 230, 231, 230)
    metric = "energy_per_output_token_j"
    verdicts = []
    for run in runs[11:]:
        trends = nightly(study("previous"), run)
        verdicts.append({str(one.verdict) for one in trends.values()})
        assert bool(worse_nights(trends, run, metric)) == (verdicts[-1] == {"regression"})
    assert [one == {"regression"} for one in verdicts] == [False, False, True, False]
    outlier = nightly(study("previous"), runs[12])
    assert all(one.outlier for one in outlier.values())
