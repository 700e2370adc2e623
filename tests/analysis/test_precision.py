from __future__ import annotations

import pytest

from llem_airflow.analysis.aggregate import aggregate_run
from llem_airflow.analysis.summary import precision, precision_of
from tests.analysis.conftest import IDS, MakeRun
from tests.results.recorded import Recording

VALUES = (10.0, 10.1, 9.9, 10.05, 9.95)  # t interval 10 +- 0.098: half width 0.98 %


def test_a_narrow_interval_is_met_from_the_smallest_number_of_cycles_on() -> None:
    found = precision(VALUES, relative_half_width=0.01, min_cycles=5)
    assert found.met
    assert found.half_width_ratio == pytest.approx(0.0098, abs=0.0001)
    assert not precision(VALUES[:4], relative_half_width=0.5, min_cycles=5).met


def test_a_wide_interval_is_not_met_and_says_how_wide_it_is() -> None:
    found = precision(VALUES, relative_half_width=0.005, min_cycles=3)
    assert not found.met
    assert found.reason == "half width 0.98% of the mean after 5 cycles; 0.50% not reached"


def test_the_committed_cycles_of_one_experiment_are_judged(make_run: MakeRun) -> None:
    jitter = (0.0, 0.3, -0.3)
    run = make_run({(0, k): Recording(power_w=200 + jitter[k - 1]) for k in (1, 2, 3)}, cycles=3)
    assert precision_of(run, IDS[0], relative_half_width=0.02, min_cycles=3).met
    assert precision_of(run, IDS[1], relative_half_width=0.02, min_cycles=3).n == 0


def test_cycles_that_were_not_needed_are_skipped_and_not_missing(make_run: MakeRun) -> None:
    run = make_run({(i, k): Recording() for i in (0, 1) for k in (1, 2)}, cycles=3)
    run.write_plan("", run.plan() | {"precision_target": {"relative_half_width": 0.02, "min_cycles": 2}}, {})
    for name in IDS:
        run.mark_skipped(name, 3, "half width 0.1 % after 2 cycles", needed=False)
    summary = aggregate_run(run)
    assert (summary.planned, summary.valid, summary.missing) == (4, 4, ())
    assert summary.experiments[0].statuses == {"valid": 2, "skipped": 1}
    assert summary.experiments[0].precision_met is True


def test_withheld_energy_counts_as_missing_when_the_study_requires_energy(make_run: MakeRun) -> None:
    run = make_run({(0, 1): Recording(meter_kind="none"), (1, 1): Recording()}, cycles=1)
    assert aggregate_run(run).missing == ()
    bad = Recording(counter=False, hz=0.1)
    run = make_run({(0, 1): bad, (1, 1): Recording()}, cycles=1, run_id="r2")
    assert aggregate_run(run).missing == ()
    plan = run.plan()
    for item in plan["experiments"]:
        item["config"] = item["config"] | {"measurement": {"require_energy": True}}
    run.write_plan("", plan, {})
    (missing,) = aggregate_run(run).missing
    assert (missing["experiment"], missing["status"]) == (IDS[0], "invalid_energy")


def test_without_a_value_nothing_is_reached_and_that_is_said() -> None:
    found = precision([], relative_half_width=0.01, min_cycles=1)
    assert (found.n, found.half_width_ratio, found.met) == (0, None, False)
    assert found.reason == "0 of at least 2 cycles"
