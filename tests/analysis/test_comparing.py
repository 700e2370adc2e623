from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from benchmarks.error_rates import shipped
from llem_airflow.analysis.aggregate import aggregate_run
from llem_airflow.analysis.compare import How, PairReport, compare_runs, compare_sides, corrected, unmatched
from llem_airflow.analysis.plan import factor_changes
from llem_airflow.analysis.tables import RunRows
from llem_airflow.analysis.verdict import Verdict, compare
from llem_airflow.report.terminal import render_comparisons
from llem_airflow.results import ResultReadError, StoredRun
from tests.analysis.conftest import CONFIGS, IDS, MakeRun
from tests.results.recorded import Recording

JITTER = (0.0, 0.4, -0.4, 0.2, -0.2)


def _run(make_run: MakeRun, run_id: str, power_w: float, **changes: object) -> StoredRun:
    recordings = {
        (index, cycle): Recording(power_w=power_w * (1 + index) + JITTER[cycle - 1], **changes)  # type: ignore[arg-type]  # fields of a test recording
        for index in (0, 1)
        for cycle in range(1, 6)
    }
    run = make_run(recordings, cycles=5, run_id=run_id)
    aggregate_run(run)
    return run


def test_a_run_that_uses_more_energy_is_a_regression_and_the_rest_is_unchanged(make_run: MakeRun) -> None:
    first, second = compare_runs(_run(make_run, "a", 200), _run(make_run, "b", 220))
    assert first.verdict is Verdict.REGRESSION
    assert first.metrics["energy_per_output_token_j"].difference_ratio == pytest.approx(0.10, abs=0.005)
    assert first.metrics["output_tokens_per_s"].verdict is Verdict.UNCHANGED
    assert first.baseline == f"nightly/a#{IDS[0]}"
    assert second.candidate == f"nightly/b#{IDS[1]}"


def test_the_same_answers_are_said_to_be_the_same(make_run: MakeRun) -> None:
    (first, _) = compare_runs(_run(make_run, "a", 200), _run(make_run, "b", 150))
    assert first.verdict is Verdict.IMPROVEMENT
    assert first.answers is not None
    assert first.answers.finding == "same"


def test_less_energy_for_a_broken_answer_is_suspicious(make_run: MakeRun) -> None:
    broken = _run(make_run, "b", 150, token_ids=[9] * 11)
    (first, _) = compare_runs(_run(make_run, "a", 200), broken)
    assert first.answers is not None
    assert first.answers.finding == "suspicious"


def test_another_gpu_is_not_comparable_and_says_what_differs(make_run: MakeRun) -> None:
    (first, _) = compare_runs(_run(make_run, "a", 200), _run(make_run, "b", 220, gpus=("GPU-other",)))
    assert first.verdict is Verdict.NOT_COMPARABLE
    assert first.metrics == {}
    assert list(first.differences) == ["gpus"]


def test_a_condition_can_be_ignored_by_name(make_run: MakeRun) -> None:
    other = _run(make_run, "b", 220, gpus=("GPU-other",))
    (first, _) = compare_runs(_run(make_run, "a", 200), other, How(ignore=["gpus"]))
    assert first.verdict is Verdict.REGRESSION


def test_another_engine_version_is_a_factor_and_named(make_run: MakeRun) -> None:
    (first, _) = compare_runs(_run(make_run, "a", 200), _run(make_run, "b", 220, engine_version="6.0.0"))
    assert first.verdict is Verdict.REGRESSION
    assert first.factors == {"engine_version": ["5.16.0", "6.0.0"]}


def test_estimates_are_never_compared_with_measurements(make_run: MakeRun) -> None:
    estimate = _run(make_run, "b", 200, energy_kind="estimate")
    (first, _) = compare_runs(_run(make_run, "a", 200), estimate)
    assert first.verdict is Verdict.NOT_COMPARABLE
    assert "energy_kind" in first.differences


def test_two_experiments_of_a_run_are_compared_pair_by_pair(make_run: MakeRun) -> None:
    run = _run(make_run, "a", 200)
    found = compare_sides(RunRows.of(run).side(IDS[0]), RunRows.of(run).side(IDS[1]), How(paired=True))
    assert found.verdict is Verdict.REGRESSION
    assert found.metrics["energy_per_output_token_j"].method == "paired"


def test_only_a_change_between_two_runs_is_told_with_a_caution(make_run: MakeRun) -> None:
    first, second = RunRows.of(_run(make_run, "a", 200)), RunRows.of(_run(make_run, "b", 220))
    assert "one comparison in five is a false alarm" in compare_runs(first, second)[0].caution
    assert compare_runs(first, first)[0].caution == ""
    assert compare_sides(first.side(IDS[0]), first.side(IDS[1]), How(paired=True)).caution == ""


def _reports(p: dict[str, list[float]]) -> list[PairReport]:
    """Reports of experiments with these p values of metrics."""
    n = len(next(iter(p.values())))
    template = compare((1.0, 1.1, 0.9), (2.0, 2.1, 1.9), "lower")
    return [
        PairReport(
            "a#x",
            "b#x",
            {name: replace(template, p=values[k]) for name, values in p.items()},
            {},
            {},
            None,
            False,
        )
        for k in range(n)
    ]


def test_the_deciding_metric_is_a_family_of_its_own_and_what_derives_from_energy_counts_nowhere_else() -> (
    None
):
    p = {
        "energy_per_output_token_j": [0.01, 0.5],
        "output_tokens_per_s": [0.02, 0.9],
        "ttft_mean_s": [0.8, 0.9],
        "energy_per_request_j": [0.03, 0.9],
    }
    found, _ = corrected(_reports(p))
    # Of two experiments the smaller p doubles; of the two metrics beside it, which are one family, it is times four.
    assert {name: one.p_adjusted for name, one in found.metrics.items()} == pytest.approx(
        {
            "energy_per_output_token_j": 0.02,
            "output_tokens_per_s": 0.08,
            "ttft_mean_s": 0.9,
            "energy_per_request_j": 0.06,
        }
    )
    alone, _ = corrected(_reports({"energy_per_output_token_j": [0.01, 0.5]}))
    name = "energy_per_output_token_j"
    assert found.metrics[name].p_adjusted == alone.metrics[name].p_adjusted


def test_values_that_are_no_numbers_are_not_known(make_run: MakeRun) -> None:
    rows = RunRows.of(_run(make_run, "a", 200))
    bad = tuple({**row, "energy_per_output_token_j": math.nan} for row in rows.rows)
    (found, _) = compare_runs(rows, RunRows(rows.run, bad))
    assert "energy_per_output_token_j" not in found.metrics
    json.dumps(found.to_json(), allow_nan=False)


def test_versions_are_matched_by_everything_but_the_factor(make_run: MakeRun) -> None:
    first, second = _run(make_run, "a", 200), _run(make_run, "b", 220)
    plan = second.plan()
    for item, config in zip(plan["experiments"], CONFIGS, strict=True):
        item["config"] = json.loads(json.dumps(config)) | {"task": {"model": "tiny-2"}}
    second.write_plan("model: tiny-2\n", plan, {"dag_id": "nightly"})
    assert len(compare_runs(first, second, How(factor="task.model"))) == 2
    assert len(compare_runs(first, second, How(factor="task.dtype"))) == 0


def test_flagged_cycles_are_left_out_only_when_asked_for(make_run: MakeRun) -> None:
    recordings = {(0, cycle): Recording() for cycle in (1, 2, 3)} | {
        (0, 4): Recording(window_s=12, requests=6)
    }
    run = make_run(recordings, cycles=4, run_id="a")
    aggregate_run(run)
    assert len(RunRows.of(run).side(IDS[0]).rows) == 4
    kept = RunRows.of(run).side(IDS[0], without_flagged=True)
    assert (len(kept.rows), kept.excluded) == (3, (4,))


def test_a_prefix_of_an_experiment_never_matches_it(make_run: MakeRun) -> None:
    run = _run(make_run, "a", 200)
    with pytest.raises(ResultReadError, match="no experiment"):
        RunRows.of(run).side(IDS[0][:-1])


def test_a_run_that_was_not_aggregated_says_so(make_run: MakeRun) -> None:
    run = make_run({(0, 1): Recording()})
    with pytest.raises(ResultReadError, match="not aggregated yet"):
        RunRows.of(run).side(IDS[0])


def test_a_comparison_is_plain_json(make_run: MakeRun) -> None:
    run = _run(make_run, "a", 200)
    (first, _) = compare_runs(run, run)
    assert json.loads(json.dumps(first.to_json(), allow_nan=False))["verdict"] == "unchanged"


def test_pairs_must_have_been_measured_next_to_each_other(make_run: MakeRun) -> None:
    first, second = _run(make_run, "a", 200), _run(make_run, "b", 200)
    with pytest.raises(
        ValueError, match=r"are no pairs: two runs; measure both in one run with `experiment_order"
    ):
        compare_sides(RunRows.of(first).side(IDS[0]), RunRows.of(second).side(IDS[0]), How(paired=True))
    first.write_plan("", {**first.plan(), "order": [IDS[0]] * 5 + [IDS[1]] * 5}, {"dag_id": "nightly"})
    aggregate_run(first)
    with pytest.raises(ValueError, match=r"cycles 1, 2, 3, 4, 5 were not measured next to each other"):
        compare_sides(RunRows.of(first).side(IDS[0]), RunRows.of(first).side(IDS[1]), How(paired=True))


def test_releases_of_a_model_are_matched_by_id_and_what_differs_is_named(make_run: MakeRun) -> None:
    first, second = _run(make_run, "a", 200), _run(make_run, "b", 220, model="tiny-2")
    (one, _) = compare_runs(first, second)
    assert one.verdict is Verdict.REGRESSION
    assert one.factors == {"model": ["tiny", "tiny-2"]}
    assert unmatched(first, second) == ([], [])


def test_two_experiments_of_a_run_say_which_key_differs_and_not_their_hashes(make_run: MakeRun) -> None:
    run = RunRows.of(_run(make_run, "a", 200))
    found = compare_sides(run.side(IDS[0]), run.side(IDS[1]))
    assert found.factors == {"transformers.batch_size": [1, 4]}
    assert factor_changes(found.factors) == ["batch_size 1 -> 4"]
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(render_comparisons([found]))
    assert "under study: batch_size 1 -> 4" in console.export_text()


def test_what_differs_between_two_plans_is_named_too(make_run: MakeRun) -> None:
    first, second = _run(make_run, "a", 200), _run(make_run, "b", 200)
    plan = second.plan()
    plan["experiments"][0]["config"] = {"engine": "transformers", "task": {"model": "other", "max_tokens": 9}}
    second.folder.write("plan.json", json.dumps(plan).encode())
    ours, theirs = RunRows.of(first).side(IDS[0]), RunRows.of(second).side(IDS[0])
    rows = tuple(_refingerprinted(row, experiment_hash="0" * 16, model="other") for row in theirs.rows)
    found = compare_sides(ours, replace(theirs, rows=rows))
    assert factor_changes(found.factors) == [
        "max_tokens unset -> 9",
        "batch_size 1 -> unset",
        "model tiny -> other",
    ]


def test_a_hash_is_told_where_no_plan_says_what_differs(make_run: MakeRun) -> None:
    run = RunRows.of(_run(make_run, "a", 200))
    one, other = (replace(run.side(name), config={}) for name in IDS)
    assert list(compare_sides(one, other).factors) == ["experiment_hash"]


def _refingerprinted(row: dict[str, Any], **changes: str) -> dict[str, Any]:
    return row | {"fingerprint": json.dumps(json.loads(row["fingerprint"]) | changes)}


def test_eight_experiments_keep_the_power_that_the_page_promises() -> None:
    # With all metrics in one family, 27 % of these changes were found.
    _, _, found = shipped(np.random.default_rng(4), 8, 8, 12, n=3, cv=0.01, change=0.05)
    assert found > 0.85
    false_share, _, _ = shipped(np.random.default_rng(5), 8, 0, 12, n=3, cv=0.01, change=0.05)
    assert false_share < 0.3
