"""Adaptive cycles: a cycle that is not needed skips itself, and the store says why."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowSkipException

from llem_airflow.analysis.aggregate import aggregate_run
from llem_airflow.operators.gates import Candidate, check
from llem_airflow.results import StoredRun
from llem_airflow.study import Experiment, Study
from tests.analysis.conftest import IDS, MakeRun, make_run
from tests.results.recorded import Recording
from tests.study.texts import study

__all__ = ["make_run"]

JITTER = (0.0, 0.4, -0.4)


def asked(half_width: float) -> tuple[Study, Experiment]:
    target = f"{{relative_half_width: {half_width}, min_cycles: 2, max_cycles: 4}}"
    found = study(f"study_execution: {{precision_target: {target}}}\n")
    return found, replace(found.experiments[0], id=IDS[0])


def measured(make_run: MakeRun, half_width: float) -> StoredRun:
    run = make_run({(0, k): Recording(power_w=200 + JITTER[k - 1]) for k in (1, 2, 3)}, cycles=4)
    run.write_plan(
        "", {**run.plan(), "precision_target": {"relative_half_width": half_width, "min_cycles": 2}}, {}
    )
    return run


def test_a_cycle_that_is_not_needed_is_skipped_and_the_store_says_why(make_run: MakeRun) -> None:
    run = measured(make_run, 0.02)
    with pytest.raises(
        AirflowSkipException, match=r"cycle 4: not needed: half width 0\.\d+% of the mean after 3"
    ):
        begin(0.02, run, cycle=4)
    assert run.skipped(needed=False)[IDS[0], 4].startswith("not needed: half width 0.")
    summary = aggregate_run(run)
    assert summary.experiments[0].precision_met is True
    assert not [item for item in summary.missing if item["experiment"] == IDS[0]]


def test_a_cycle_that_is_needed_is_measured(make_run: MakeRun) -> None:
    run = measured(make_run, 0.0001)
    begin(0.0001, run, cycle=4)
    begin(0.02, run, cycle=2)
    assert run.skipped(needed=False) == {}


def test_a_target_that_was_not_reached_is_a_reason_to_doubt(make_run: MakeRun) -> None:
    (first, _) = aggregate_run(measured(make_run, 0.0001)).experiments
    assert first.precision_met is False
    assert "precision_not_met" in [doubt.code for doubt in first.doubts]


def begin(half_width: float, run: StoredRun, cycle: int) -> None:
    wanted, experiment = asked(half_width)
    context: Any = {"ti": SimpleNamespace(try_number=1)}
    assert check(Candidate(wanted, run, experiment, cycle, context)) is None
