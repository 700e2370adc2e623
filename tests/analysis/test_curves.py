"""What an aggregate draws and writes: thinned curves, rows in run order, environments told apart, JSON by lines."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llem_airflow.analysis import aggregate
from llem_airflow.analysis.aggregate import aggregate_run, curve, midpoints_ns, thinned
from llem_airflow.analysis.cycle import NO_METER, Reading, read_cycle
from llem_airflow.analysis.plan import Planned
from tests.analysis.conftest import IDS, MakeRun
from tests.results.recorded import Recording

S = 10**9


@given(st.lists(st.integers(-50, 50), min_size=1, max_size=60), st.integers(1, 8))
def test_a_thinned_curve_keeps_both_ends_and_the_extremes_of_each_bucket(
    values: list[int], buckets: int
) -> None:
    t_s, y = np.arange(float(len(values))), np.array(values, dtype=float)
    kept_s, kept = thinned(t_s, y, buckets)
    assert (np.diff(kept_s) > 0).all()
    assert kept.tolist() == y[kept_s.astype(int)].tolist()
    assert (kept_s[0], kept_s[-1]) == (0.0, len(values) - 1.0)
    if len(values) <= 2 * buckets:
        assert len(kept) == len(values)
        return
    assert len(kept) <= 2 * buckets + 2
    width = -(-len(values) // buckets)
    for begin in range(0, len(values), width):
        inside = kept[(kept_s >= begin) & (kept_s < begin + width)]
        assert (inside.min(), inside.max()) == (
            min(values[begin : begin + width]),
            max(values[begin : begin + width]),
        )


def test_six_hundred_points_are_drawn_as_they_are_and_more_are_thinned() -> None:
    y = np.zeros(601)
    assert len(thinned(y[:600], y[:600])[1]) == 600
    assert (
        len(thinned(np.arange(601.0), np.arange(601.0))[1]) == 401
    )  # 201 buckets of 3: first, last and the odd one


def reading(make_run: MakeRun, recording: Recording) -> Reading:
    ref = make_run({(0, 1): recording}, cycles=1).cycle(IDS[0], 1)
    assert ref is not None
    _, found = read_cycle(ref, position=0, failed_attempts=0)
    assert found is not None
    return found


def test_a_curve_has_watts_by_device_and_phases_from_the_first_one_on(make_run: MakeRun) -> None:
    seen = reading(make_run, Recording(gpus=("GPU-b", "GPU-a"), power_w=lambda t_s: t_s, hz=1.0))
    found = curve("x", 7, seen)
    assert (found.experiment, found.cycle, found.estimate) == ("x", 7, False)
    assert found.phases == (
        ("load", 0.0, 5.0),
        ("warmup", 5.0, 15.0),
        ("measure", 15.0, 55.0),
        ("cooldown", 55.0, 57.0),
    )
    assert list(found.series) == ["GPU-a", "GPU-b"]
    t_s, watts = found.series["GPU-a"]
    assert (t_s.tolist(), watts.tolist()) == (list(range(58)), [1000.0 + k for k in range(58)])


def test_a_curve_without_phases_begins_with_its_samples_and_one_without_instant_power_is_the_average(
    make_run: MakeRun,
) -> None:
    seen = reading(
        make_run, Recording(hz=1.0, power_w=100.0, energy_kind="estimate", meter_kind="cpu-estimate")
    )
    unknown = np.full(58, np.nan)
    power = replace(seen.power, columns={**seen.power.columns, "power_instant_mw": unknown})
    averaged = seen.power.columns["power_average_mw"].astype(float)
    averaged[3] = np.nan
    found = curve(
        "x",
        1,
        replace(
            seen, phases=(), power=replace(power, columns={**power.columns, "power_average_mw": averaged})
        ),
    )
    ((t_s, watts),) = found.series.values()
    assert (t_s[0], len(t_s), set(watts.tolist()), found.estimate) == (0.0, 57, {100.0}, True)
    assert 3.0 not in t_s
    unknown_too = {**power.columns, "power_average_mw": unknown}
    nothing = curve("x", 1, replace(seen, power=replace(power, columns=unknown_too)))
    assert nothing.series == {}
    some = seen.power.columns["power_instant_mw"].astype(float)
    some[:10] = np.nan  # what instant power does not tell, the average does not stand for
    partly = replace(seen.power, columns={**seen.power.columns, "power_instant_mw": some})
    assert len(next(iter(curve("x", 1, replace(seen, power=partly)).series.values()))[0]) == 48


def test_a_board_without_instant_power_is_drawn_by_its_average_beside_one_that_has_it(
    make_run: MakeRun,
) -> None:
    seen = reading(make_run, Recording(gpus=("GPU-a", "GPU-b"), power_w=100.0, hz=1.0))
    columns = seen.power.columns
    instant = columns["power_instant_mw"].astype(float)
    instant[columns["gpu"].codes == columns["gpu"].names.index("GPU-b")] = np.nan
    mixed = replace(seen.power, columns={**columns, "power_instant_mw": instant})
    found = curve("x", 1, replace(seen, power=mixed))
    assert {gpu: len(watts) for gpu, (_, watts) in found.series.items()} == {"GPU-a": 58, "GPU-b": 58}


def test_a_sample_stands_in_the_middle_of_its_call() -> None:
    power = {"t_before_mono_ns": np.array([10, 2**62]), "t_after_mono_ns": np.array([15, 2**62 + 4])}
    assert midpoints_ns(power).tolist() == [12, 2**62 + 2]


def test_rows_stand_in_run_order_and_what_was_not_planned_behind_them() -> None:
    plan = Planned({}, (("b", 1), ("a", 1), ("b", 1)), ())
    found = aggregate._rows(plan, {("a", 1): 0, ("c", 2): 0}, {("a", 9): 0, ("c", 2): 0})
    assert found == [(("b", 1), 0), (("a", 1), 1), (("a", 9), None), (("c", 2), None)]


def test_environments_are_told_apart_by_what_stays() -> None:
    gpu = {"uuid": "GPU-1", "name": "H100"}
    one: dict[str, Any] = {
        "driver": "550", "cpu": {"model": "EPYC", "load_average_1min": 0.1}, "gpus": [{**gpu, "temperature_c": 40}],
        "gpus_after": [gpu, "odd"], "boot_id": "x", "anchors": [1], "time_namespace_offsets": "0",
    }  # fmt: skip
    stays = {"driver": "550", "cpu": {"model": "EPYC"}, "gpus": [gpu], "gpus_after": [gpu]}
    assert json.loads(aggregate._stable(one)) == stays
    assert aggregate._stable({"b": 1, "a": None, "cpu": "EPYC", "gpus": None}) == (
        '{"a": null, "b": 1, "cpu": "EPYC", "gpus": null}'
    )


def test_a_summary_has_each_member_and_each_item_of_a_list_on_a_line() -> None:
    text = aggregate._json_lines({"b": [{"y": 1, "x": 2}, 3], "a": {"z": [1, 2]}, "c": []}).decode()
    assert text == '{\n"a": {"z": [1, 2]},\n"b": [\n{"x": 2, "y": 1},\n3\n],\n"c": []\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        aggregate._json_lines({"a": float("nan")})


def test_cycles_that_were_not_needed_or_not_measured_and_series_that_are_not_there_are_told(
    make_run: MakeRun,
) -> None:
    run = make_run({(0, 1): Recording(meter_kind="none"), (0, 2): Recording(), (1, 1): Recording()}, cycles=3)
    run.mark_skipped(IDS[0], 3, "precise enough", needed=False)
    run.mark_skipped(IDS[0], 1, "precise enough", needed=False)  # it was measured all the same
    run.mark_skipped(IDS[1], 3, "no time was left", needed=True)
    run.mark_skipped(IDS[1], 1, "no time was left", needed=True)
    found = aggregate_run(run)
    assert [(one["experiment"], one["cycle"], one["status"], one["reason"]) for one in found.missing] == [
        (IDS[1], 2, "missing", "no attempt left a result or an error"),
        (IDS[1], 3, "missing", "no time was left"),
    ]
    assert (found.planned, found.valid) == (5, 3)
    assert found.experiments[0].statuses == {"valid": 2, "skipped": 1}
    assert found.power_absent == ({"experiment": IDS[0], "cycle": 1, "reason": NO_METER},)
    told = {cycle for each in found.environments for cycle in each["cycles"]}
    assert told == {f"{IDS[0]} cycle 1", f"{IDS[0]} cycle 2", f"{IDS[1]} cycle 1"}
    assert len(found.environments) == 2  # with the board, and without
