"""find_rate in a run: which rates are measured follows from what is stored, whoever restarts what."""

from __future__ import annotations

import io
import itertools
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from airflow.sdk.exceptions import AirflowSkipException

from llem_airflow.analysis.aggregate import aggregate_run
from llem_airflow.factory import study_dag
from llem_airflow.frames import rates_df, searches_df
from llem_airflow.frames.tables import export_table
from llem_airflow.operators.gates import AnswerTrigger, Candidate, check
from llem_airflow.operators.waits import Pause
from llem_airflow.protocol.result import CycleResult, Served
from llem_airflow.report.under_load import under_load
from llem_airflow.results import ResultsRoot, StoredRun
from llem_airflow.study import Experiment, Study
from tests.results.recorded import Recording, provenance
from tests.study.texts import study

TEXT = """\
serving_mode: server
engine: vllm
task: {model: org/model}
measurement: {meter: cpu-estimate}
server: {traffic: {find_rate: {from: 1, to: 8, tolerance: 0.5, slo: {ttft_ms: 500, percentile: 0.9}}}}
"""
RATES = (1, 1.297, 1.682, 2.181, 2.828, 3.668, 4.757, 6.169, 8)
NUMBERS = itertools.count()


@dataclass(frozen=True)
class Probe(Recording):
    """A cycle of a server that answers within 0.1 s, or too late."""

    rate: float = 1.0

    def result(self) -> CycleResult:
        served = Served(("serve",), 1.0, self.rate, self.requests, 0.1, 1.0, 40.0)
        return replace(super().result(), engine="vllm", served=served)

    def request_rows(self) -> list[dict[str, Any]]:
        return [
            {
                **row,
                "status": "ok",
                "t_due_mono_ns": row["t_submit_mono_ns"],
                "t_end_mono_ns": row["t_last_mono_ns"],
            }
            for row in super().request_rows()
        ]


class Run:
    """A run of the study upon a server that sustains some rate."""

    def __init__(self, folder: Path, sustains: float, cycles: int = 1, seen: Study | None = None) -> None:
        self.study = seen or study(f"study_execution: {{n_cycles: {cycles}}}\n", head=TEXT)
        self.folder, self.sustains = folder, sustains
        self.run = ResultsRoot(folder / "results").run(self.study.name, "r1")
        self.run.write_plan(TEXT, self.study.plan.to_json(), {"started_epoch_ns": 1})
        self.measured: list[float] = []

    def check(self, experiment: Experiment, cycle: int, tries: int = 1, retries: int = 2) -> Pause | None:
        context: Any = {"ti": SimpleNamespace(try_number=tries)}
        # Each try of a task is another process, which knows the stored run only.
        run = StoredRun.at(self.run.folder)
        return check(Candidate(self.study, run, experiment, cycle, context, retries))

    def store(self, experiment: Experiment, cycle: int, good: bool) -> None:
        out = self.folder / f"out-{next(NUMBERS)}"
        rate = rate_of(experiment)
        Probe(
            hash=experiment.hash,
            cycle=cycle,
            config=experiment.config,
            ttft_s=0.1 if good else 0.9,
            rate=rate,
        ).write(out)
        self.run.commit_cycle(
            experiment.id, cycle, out, provenance(60.0) | {"finished_epoch_ns": time.time_ns()}
        )

    def fail(self, experiment: Experiment, cycle: int, attempt: int, retryable: bool) -> None:
        out = self.folder / f"out-{next(NUMBERS)}"
        out.mkdir()
        failure = {"category": "crash", "retryable": retryable, "hint": "", "message": "it crashed"}
        self.run.commit_failed(
            experiment.id,
            cycle,
            attempt,
            out,
            {**provenance(60.0), "finished_epoch_ns": time.time_ns(), "failure": failure},
        )

    def task(self, experiment: Experiment, cycle: int) -> None:
        try:
            assert self.check(experiment, cycle) is None
        except AirflowSkipException:
            return
        self.measured.append(rate_of(experiment))
        self.store(experiment, cycle, rate_of(experiment) <= self.sustains)

    def all(self) -> None:
        for one in self.study.plan.planned_cycles:
            self.task(self.study.experiment(one.experiment_id), one.cycle)

    def at(self, rate: float) -> Experiment:
        return next(one for one in self.study.experiments if rate_of(one) == rate)

    def said(self) -> tuple[str, ...]:
        summary = aggregate_run(self.run)
        found = under_load(summary.experiments, summary.labels, summary.searches)
        assert found is not None
        return found.said


def rate_of(experiment: Experiment) -> float:
    return float(experiment.config["server"]["traffic"]["rate"])


def test_what_was_found_is_a_row_of_a_frame_and_of_an_export(tmp_path: Path) -> None:
    run = Run(tmp_path, sustains=4, cycles=3)
    run.all()
    summary = aggregate_run(run.run)
    [row] = searches_df(run.run).to_dict("records")
    assert (row["state"], row["experiment"], row["probes"], row["max_probes"]) == (
        "found",
        run.at(3.668).id,
        5,
        5,
    )
    assert (row["rate_per_s"], row["missed_rate_per_s"], row["close"]) == (3.668, 4.757, False)
    assert (row["from_rate_per_s"], row["to_rate_per_s"], row["percentile_ratio"]) == (1.0, 8.0, 0.9)
    assert row["server.traffic.rate"] == 3.668
    assert pd.isna(row["asks_rate_per_s"])
    found = next(one for one in summary.experiments if one.id == run.at(3.668).id)
    energy = found.metric("energy_per_output_token_j")
    assert energy is not None
    assert energy.all.interval is not None
    told = [row[f"energy_per_output_token_j{end}"] for end in ("", "_low", "_high")]
    assert told == [energy.all.mean, energy.all.interval.low, energy.all.interval.high]
    rates = rates_df(run.run)
    assert list(rates["rate_per_s"]) == [1.0, 2.828, 3.668, 4.757, 8.0]
    assert list(rates["meets_slo"]) == [True, True, True, False, False]
    assert not rates["saturated"].any()
    assert list(rates[rates["cheapest"] | rates["as_cheap"]]["rate_per_s"]) == [1.0, 2.828, 3.668]
    assert rates["cheapest"].sum() == 1
    [at] = rates[rates["rate_per_s"] == 3.668].to_dict("records")
    assert [at[f"energy_per_output_token_j{end}"] for end in ("", "_low", "_high")] == told
    target = io.BytesIO()
    assert export_table(run.run, "searches", "json", target) == 1
    assert json.loads(target.getvalue())[0]["rate_per_s"] == 3.668


def test_a_search_that_no_rate_has_met_names_its_configuration_and_one_that_is_not_over_what_it_lacks(
    tmp_path: Path,
) -> None:
    run = Run(tmp_path, sustains=0.5)
    run.all()
    aggregate_run(run.run)
    [row] = searches_df(run.run).to_dict("records")
    assert (row["state"], row["experiment"], row["missed_rate_per_s"]) == ("below", run.at(1).id, 1.0)
    assert pd.isna(row["rate_per_s"])
    assert pd.isna(row["energy_per_output_token_j"])
    begun = Run(tmp_path / "begun", sustains=4)
    begun.task(begun.at(1), 1)
    aggregate_run(begun.run)
    [row] = searches_df(begun.run).to_dict("records")
    assert (row["state"], row["rate_per_s"], row["asks_rate_per_s"]) == ("open", 1.0, 8.0)


def test_only_the_rates_on_the_way_are_measured_and_the_others_say_why_not(tmp_path: Path) -> None:
    run = Run(tmp_path, sustains=4)
    run.all()
    assert run.measured == [1, 8, 2.828, 4.757, 3.668]
    left = run.run.skipped(needed=False)
    assert len(left) == 4
    assert left[run.at(1.297).id, 1] == (
        "not needed: find_rate does not ask for 1.297/s: 2.828/s meets the SLO, 4.757/s misses the SLO"
    )
    summary = aggregate_run(run.run)
    assert [
        rate for one in summary.experiments for rate in [one.factors["server.traffic.rate"]]
    ] == run.measured
    assert (summary.planned, summary.missing) == (5, ())
    assert run.said()[0].startswith("Find_rate: the highest rate that meets the SLO is 3.668/s, at ")
    assert run.said()[0].endswith("; 4.757/s misses it (5 of at most 5 rates measured).")


@pytest.mark.parametrize(
    ("sustains", "measured", "words"),
    [
        (0.5, [1], "the SLO is missed at 1/s, the lowest rate"),
        (9, [1, 8], "the SLO is met at 8/s, the highest rate, at "),
    ],
)
def test_bounds_that_hold_no_answer_end_the_search_and_are_told(
    tmp_path: Path, sustains: float, measured: list[float], words: str
) -> None:
    run = Run(tmp_path, sustains)
    run.all()
    assert run.measured == measured
    assert words in run.said()[0]


def test_a_killed_try_is_repeated_and_the_search_goes_on_where_it_was(tmp_path: Path) -> None:
    run = Run(tmp_path, sustains=4)
    runs = run.study.plan.planned_cycles
    for one in runs[:2]:
        run.task(run.study.experiment(one.experiment_id), one.cycle)
    assert run.check(run.at(2.828), 1) is None  # a worker is killed here, and a further try begins
    assert run.check(run.at(2.828), 1, tries=2) is None
    for (
        one
    ) in runs:  # the DAG run goes on from its begin: what is stored is measured again only if it was cleared
        experiment = run.study.experiment(one.experiment_id)
        if not run.run.is_committed(experiment.id, 1):
            run.task(experiment, one.cycle)
    assert run.measured == [1, 8, 2.828, 4.757, 3.668]


def test_a_probe_that_may_get_another_try_is_waited_for(tmp_path: Path) -> None:
    run = Run(tmp_path, sustains=4)
    run.store(run.at(1), 1, good=True)
    pause = run.check(run.at(2.828), 1)
    assert pause is not None
    assert pause.text == "find_rate at 8/s decides whether this rate is asked for"
    run.fail(run.at(8), 1, attempt=1, retryable=True)
    assert run.check(run.at(2.828), 1) is not None
    trigger = pause.trigger
    assert isinstance(trigger, AnswerTrigger)
    assert trigger.is_over()  # a failure came since


def test_a_probe_without_a_result_leaves_the_search_open_and_what_depends_on_it_missing(
    tmp_path: Path,
) -> None:
    run = Run(tmp_path, sustains=4)
    run.store(run.at(1), 1, good=True)
    run.fail(run.at(8), 1, attempt=1, retryable=False)
    with pytest.raises(AirflowSkipException, match="find_rate at 8/s has no result"):
        run.check(run.at(2.828), 1)
    assert (run.at(2.828).id, 1) in run.run.skipped(needed=True)
    assert "not over: 8/s has no answer; met at 1/s (1 of at most 5 rates measured)" in run.said()[0]
    run.store(run.at(8), 1, good=False)  # its task was cleared
    assert run.check(run.at(2.828), 1) is None


def test_a_rate_meets_the_slo_when_every_cycle_does_and_disagreement_is_told(tmp_path: Path) -> None:
    run = Run(tmp_path, sustains=0, cycles=2)
    for rate, good in ((1, True), (8, False)):
        for cycle in (1, 2):
            run.store(run.at(rate), cycle, good)
    run.store(run.at(2.828), 1, good=True)
    assert run.check(run.at(2.828), 2) is None
    run.store(run.at(2.828), 2, good=False)
    with pytest.raises(
        AirflowSkipException, match=r"does not ask for 4\.757/s: 1/s meets the SLO, 2\.828/s misses"
    ):
        run.check(run.at(4.757), 1)
    assert run.check(run.at(1.682), 1) is None
    assert any("close at 2.828/s: cycles disagree" in text for text in run.said())


def test_a_cycle_that_is_cleared_is_measured_again(tmp_path: Path) -> None:
    run = Run(tmp_path, sustains=4)
    run.all()
    assert run.check(run.at(8), 1) is None


def test_in_the_dag_each_rate_follows_the_one_before_and_fails_none(tmp_path: Path) -> None:
    found = Run(tmp_path, 1, cycles=2).study
    dag = study_dag(found, image="own:1")
    cycles = found.plan.planned_cycles
    for before, after in itertools.pairwise(cycles):
        ended = f"{before.experiment_id}.ended_{before.cycle}"
        task = dag.get_task(f"{after.experiment_id}.cycle_{after.cycle}")
        assert task.upstream_task_ids == {"plan", "prefetch_1", ended}
        assert task.trigger_rule == "all_success"
        assert dag.get_task(ended).upstream_task_ids == {f"{before.experiment_id}.cycle_{before.cycle}"}
        assert dag.get_task(ended).trigger_rule == "all_done"
