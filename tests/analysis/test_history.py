from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llem_airflow.analysis.aggregate import aggregate_run
from llem_airflow.analysis.history import (
    Point,
    Trend,
    change_points,
    histories,
    history_until,
    usual_time_ns,
)
from llem_airflow.analysis.verdict import Verdict
from llem_airflow.report.page import report_html
from llem_airflow.results import ResultsRoot
from tests.analysis.one_history import trend
from tests.results.recorded import Recording, experiment_id, plan_json, provenance, variant


def _points(means: list[float], conditions: list[str] | None = None) -> list[Point]:
    texts = conditions or [""] * len(means)
    return [
        Point(f"run-{k}", k, (mean * 0.999, mean, mean * 1.001), text)
        for k, (mean, text) in enumerate(zip(means, texts, strict=True))
    ]


def _noisy(rng: np.random.Generator, before: int, after: int, step: float, cv: float = 0.01) -> list[float]:
    flat, moved = rng.normal(10, 10 * cv, before), rng.normal(10 * (1 + step), 10 * cv, after)
    return [*flat.tolist(), *moved.tolist()]


def test_a_step_is_told_once_with_the_run_where_it_began() -> None:
    points = _points(_noisy(np.random.default_rng(1), 30, 30, 0.06))
    verdicts = [trend(points[:n], "lower").verdict for n in range(1, len(points) + 1)]
    assert verdicts.count(Verdict.REGRESSION) == 1
    at = verdicts.index(Verdict.REGRESSION) + 1
    assert at in {32, 33}
    found = trend(points[:at], "lower")
    assert (found.began, found.told is not None) == ("run-30", True)
    assert found.alarms[0].ratio == pytest.approx(0.06, abs=0.02)
    assert found.state.startswith("regression: step of +")


def test_a_told_change_is_the_new_level_and_its_verdict_expires() -> None:
    found = trend(_points(_noisy(np.random.default_rng(1), 50, 150, 0.05)), "lower")
    assert (found.verdict, found.told, found.began) == (Verdict.NOT_ENOUGH_EVIDENCE, None, "run-50")
    assert [change.run_id for change in found.changes] == ["run-50"]


def test_a_step_down_in_energy_is_an_improvement() -> None:
    points = _points(_noisy(np.random.default_rng(1), 30, 6, -0.06))
    assert Verdict.IMPROVEMENT in {trend(points[:n], "lower").verdict for n in range(31, 37)}


@pytest.mark.parametrize("at", [4, 30])
def test_one_run_alone_is_an_outlier_and_no_regression(at: int) -> None:
    means = _noisy(np.random.default_rng(2), at + 5, 0, 0.0)
    means[at] *= 1.25
    points = _points(means)
    found = trend(points[: at + 1], "lower")
    assert (found.verdict, found.outlier) == (Verdict.NOT_ENOUGH_EVIDENCE, True)
    assert "one run alone" in found.state
    assert trend(points, "lower").alarms == ()


@pytest.mark.parametrize("gap", [1, 2, 5])
def test_an_outlier_before_a_step_delays_nothing(gap: int) -> None:
    means = _noisy(np.random.default_rng(3), 40, 12, 0.05)
    means[40 - gap] *= 1.10
    found = trend(_points(means), "lower")
    assert [alarm.told for alarm in found.alarms] in ([40], [41], [42])
    assert len(found.changes) == 1
    assert found.changes[0].index in {40, 39}


def test_while_it_learns_it_says_so_and_tells_only_gross_changes() -> None:
    flat = _noisy(np.random.default_rng(4), 4, 0, 0.0)
    found = trend(_points(flat), "lower")
    assert found.state == "learning, night 4 of 10: only gross changes are told"
    small, gross = [*flat, 10.6, 10.6, 10.6], [*flat, 13.0, 13.0]
    assert trend(_points(small), "lower").alarms == ()
    assert trend(_points(gross), "lower").verdict is Verdict.REGRESSION


def test_a_slow_drift_is_told_as_one() -> None:
    rng = np.random.default_rng(5)
    means = rng.normal(10, 0.1, 365) * (1 + 0.03 * np.arange(365) / 365)
    found = trend(_points(means.tolist()), "lower")
    assert found.alarms
    assert all(alarm.drift for alarm in found.alarms)
    assert found.alarms[0].ratio > 0.01


DAY_NS = 86_400_000_000_000


def with_weekends(nights: int, late_h: int = 0) -> list[Point]:
    """Nights of which those of the weekend take more; every other one begins late."""
    means = np.random.default_rng(6).normal(10, 0.03, nights) * (1 + 0.03 * (np.arange(nights) % 7 >= 5))
    return [
        Point(f"run-{k}", k * DAY_NS + k % 2 * late_h * DAY_NS // 24, (mean, mean * 1.001))
        for k, mean in enumerate(means.tolist())
    ]


def test_a_pattern_of_the_weekday_is_no_change() -> None:
    assert trend(with_weekends(120), "lower").alarms == ()


def test_a_night_that_begins_some_hours_late_is_of_the_same_weekday() -> None:
    nightly = with_weekends(35)
    found = trend(nightly, "lower").detectable_ratio
    assert found == trend(with_weekends(35, late_h=7), "lower").detectable_ratio
    weekly = [
        one._replace(t_epoch_ns=7 * one.t_epoch_ns) for one in nightly
    ]  # all of one weekday: no pattern
    scattered = trend(weekly, "lower").detectable_ratio
    assert found is not None
    assert scattered is not None
    assert found < scattered


def test_more_experiments_share_the_same_budget() -> None:
    points = _points(_noisy(np.random.default_rng(7), 40, 0, 0.0))
    few, many = (trend(points, "lower", experiments=n).detectable_ratio for n in (40, 4000))
    assert few is not None
    assert many is not None
    assert few == trend(points, "lower").detectable_ratio
    assert many > few


@pytest.mark.parametrize("means", [[0.0] * 12, [5.0] * 15, [1e-300] * 12, [-3.0] * 12])
def test_values_without_spread_or_ratio_tell_nothing(means: list[float]) -> None:
    points = [Point(f"run-{k}", k, (mean, mean)) for k, mean in enumerate(means)]
    assert trend(points, "lower").alarms == ()


@pytest.mark.parametrize("means", [[0.0, 1.0] * 10, [-1.0, 2.0, 0.0] * 7])
def test_a_restless_metric_falls_silent(means: list[float]) -> None:
    points = [Point(f"run-{k}", k, (mean, mean)) for k, mean in enumerate(means)]
    assert all(alarm.told < 8 for alarm in trend(points, "lower").alarms)


def test_nights_that_differ_by_ten_percent_hardly_ever_alarm() -> None:
    rng = np.random.default_rng(9)
    told = [len(trend(_points(_noisy(rng, 60, 0, 0.0, cv=0.1)), "lower").alarms) for _ in range(20)]
    assert sum(told) <= 2


def test_two_steps_are_both_found() -> None:
    rng = np.random.default_rng(2)
    series = [*_noisy(rng, 12, 12, 0.10), *rng.normal(10, 0.1, 12).tolist()]
    assert [change.index for change in change_points(_points(series), "lower")] == [12, 24]


def test_flat_histories_hardly_ever_alarm() -> None:
    rng = np.random.default_rng(3)
    alarms = sum(bool(change_points(_points(_noisy(rng, 40, 0, 0.0)), "lower")) for _ in range(50))
    assert alarms <= 1


def test_a_step_below_two_percent_is_not_reported() -> None:
    assert change_points(_points(_noisy(np.random.default_rng(4), 30, 30, 0.012, cv=0.001)), "lower") == []


def test_two_runs_are_compared_cycle_by_cycle() -> None:
    found = trend(_points([10.0, 11.0]), "lower")
    assert (found.verdict, found.began) == (Verdict.REGRESSION, "run-1")
    assert "two runs" in found.note


def test_two_runs_that_agree_are_unchanged() -> None:
    assert trend(_points([10.0, 10.01]), "lower").verdict is Verdict.UNCHANGED


def test_one_run_has_nothing_to_compare_with() -> None:
    found = trend(_points([10.0]), "lower")
    assert (found.verdict, found.alarms) == (Verdict.NOT_ENOUGH_EVIDENCE, ())


def test_two_runs_tell_only_a_gross_change() -> None:
    assert trend(_points([10.0, 10.6]), "lower").verdict is Verdict.NOT_ENOUGH_EVIDENCE


def test_the_newest_runs_are_judged_by_how_much_runs_differ() -> None:
    rng = np.random.default_rng(8)
    restless, calm = ([*rng.normal(10, sd, 30).tolist(), 10.5, 10.5, 10.5] for sd in (0.3, 0.05))
    assert trend(_points(restless), "lower").alarms == ()
    assert [alarm.told for alarm in trend(_points(calm), "lower").alarms] == [31]


def test_runs_under_other_conditions_are_left_out() -> None:
    found = trend(_points([20.0, 20.1, 10.0, 10.05], ["old", "old", "new", "new"]), "lower")
    assert len(found.points) == 2
    assert [point.run_id for point in found.left_out] == ["run-0", "run-1"]
    assert found.changes == ()


def test_cycles_that_follow_each_other_within_a_run_are_told() -> None:
    rng = np.random.default_rng(10)

    def note(phi: float) -> str:
        cycles = rng.normal(0, 0.1, (30, 5))
        for k in range(1, 5):
            cycles[:, k] = phi * cycles[:, k - 1] + (1 - phi**2) ** 0.5 * cycles[:, k]
        return trend(
            [Point(f"run-{k}", k, tuple(row)) for k, row in enumerate((10 + cycles).tolist())], "lower"
        ).note

    assert "cycles of a run follow each other (correlation 0." in note(0.5)
    assert sum("follow each other" in note(0.0) for _ in range(20)) == 0


def test_a_release_hides_the_history_of_no_other_one(tmp_path: Path) -> None:
    """Releases share the ids of their experiments; what is measured, and so the identity, differs."""
    root = ResultsRoot(tmp_path / "results")
    name, config = experiment_id(0, "a" * 16), {"engine": "transformers"}
    releases = [("r1", "1" * 16), ("r2", "2" * 16), ("r1", "1" * 16)]
    for night, (release, identity) in enumerate(releases):
        run = root.run("watch", f"night-{night}")
        run.write_plan("", plan_json([(name, identity, config)], 1), {"dag_id": "watch", "version": release})
        variant(Recording(), hash=identity, cycle=1, config=config).write(tmp_path / f"out-{night}")
        run.commit_cycle(name, 1, tmp_path / f"out-{night}", provenance(3600.0 * night))
        aggregate_run(run, page=report_html)
    found = histories(root, "watch", "energy_per_output_token_j")
    assert {str(key): [one.run_id for one in trend.points] for key, trend in found.items()} == {
        f"{name} of r1": ["night-0", "night-2"],
        f"{name} of r2": ["night-1"],
    }
    assert list(history_until(root.run("watch", "night-2"), "energy_per_output_token_j")) == [name]


def test_what_a_verdict_rests_on_is_told_in_a_note() -> None:
    one, two, many = (trend(_points([10.0] * n), "lower").note for n in (1, 2, 3))
    assert one == "one run: nothing to compare with"
    assert two == (
        "two runs: compared cycle by cycle, which cannot see how much whole runs differ by chance: only a gross "
        "change (10% or more) counts"
    )
    assert many == (
        "at most one false alarm in 91 nights over all experiments of the study (of up to 40, and of all where there "
        "are more), and one false drift a year"
    )
    found = trend(_points([20.0, 10.0], ["old", "new"]), "lower")
    assert found.note == (
        "one run: nothing to compare with; 1 earlier runs under other conditions are not compared"
    )


@pytest.mark.parametrize(
    ("n", "state"),
    [
        (1, "not enough evidence"),
        (2, "learning, night 2 of 10: only gross changes are told"),
        (10, "learning, night 10 of 10: only gross changes are told"),
        (11, "unchanged"),
    ],
)
def test_ten_nights_are_for_learning(n: int, state: str) -> None:
    means = np.random.default_rng(8).normal(10, 0.001, n).tolist()
    assert trend(_points(means), "lower", threshold_ratio=0.1).state == state


@pytest.mark.parametrize(
    ("means", "better", "verdict"),
    [
        ([10.0, 11.1], "higher", Verdict.IMPROVEMENT),
        ([10.0, 8.9], "lower", Verdict.IMPROVEMENT),
        ([10.0, 8.9], "higher", Verdict.REGRESSION),
        ([10.0, 10.9], "lower", Verdict.NOT_ENOUGH_EVIDENCE),
    ],
)
def test_two_runs_are_judged_from_a_tenth_on_by_what_is_better(
    means: list[float], better: str, verdict: Verdict
) -> None:
    found = trend(_points(means), better)
    assert found.verdict is verdict
    changed = verdict is not Verdict.NOT_ENOUGH_EVIDENCE
    assert [(one.told, one.began) for one in found.alarms] == [(1, 1)] * changed
    if changed:
        assert found.alarms[0].ratio == pytest.approx(means[1] / means[0] - 1)
        assert found.state == f"{verdict}: step of {means[1] / means[0] - 1:+.1%} since run-1"


def test_a_point_is_an_estimate_by_its_conditions() -> None:
    assert [Point("r", 0, (1.0,), text).is_estimate for text in ("estimate 1", "measured 1", "")] == [
        True,
        False,
        False,
    ]
    assert Point("r", 0, (1.0, 2.0, 6.0)).mean == 3.0


def test_cycles_without_correlation_have_no_note() -> None:
    rng = np.random.default_rng(11)
    points = [Point(f"r{k}", k, tuple(row)) for k, row in enumerate(rng.normal(10, 0.1, (30, 5)).tolist())]
    assert "follow each other" not in trend(points, "lower").note


@pytest.mark.parametrize("by_hand_h", [0.0, 7.0, 12.0, -11.9])
def test_a_first_run_by_hand_moves_no_night_to_another_weekday(by_hand_h: float) -> None:
    rng = np.random.default_rng(7)
    minutes = rng.uniform(-15, 15, 60)
    values = [1 + 0.05 * (night % 7 > 4) + rng.normal(0, 0.003) for night in range(60)]

    def history(first_h: float) -> Trend:
        begun_h = [24 * night + minute / 60 + first_h * (not night) for night, minute in enumerate(minutes)]
        return trend(
            [
                Point(f"r{k}", round(h * 3.6e12), (value,))
                for k, (h, value) in enumerate(zip(begun_h, values, strict=True))
            ],
            "lower",
        )

    found, usual = history(by_hand_h), history(0.0)
    assert found.detectable_ratio == pytest.approx(usual.detectable_ratio, rel=0.2)
    assert (found.alarms, found.verdict) == (usual.alarms, usual.verdict)


@given(st.lists(st.integers(0, DAY_NS - 1), min_size=1, max_size=20), st.integers(0, 400))
def test_nights_that_begin_within_hours_are_each_on_a_day_of_its_own(spread: list[int], first: int) -> None:
    begun = [(first + night) * DAY_NS + ns // 4 for night, ns in enumerate(spread)]
    usual = usual_time_ns(begun)
    days = [round((t_ns - usual) / DAY_NS) for t_ns in begun]
    assert days == list(range(days[0], days[0] + len(days)))


@pytest.mark.parametrize("value", [1.0, 5.0, 0.1, 36.6, 1e-9])
def test_nights_that_are_all_the_same_are_told_the_same_whatever_their_value(value: float) -> None:
    found = trend([Point(f"r{k}", k * DAY_NS, (value,)) for k in range(40)], "lower")
    assert (found.verdict, found.newest_ratio) == (Verdict.UNCHANGED, 0.0)
    assert found.detectable_ratio == pytest.approx(0.0204, rel=0.01)


@pytest.mark.parametrize(("before", "after"), [(10.0, 5.0), (10.0, 20.0), (0.5, 0.45), (10.0, 0.0)])
def test_a_night_of_zero_leaves_changes_what_they_are(before: float, after: float) -> None:
    nights = [0.0, *[before] * 29, *[after] * 2]
    found = trend([Point(f"r{k}", k * DAY_NS, (value,)) for k, value in enumerate(nights)], "higher")
    assert found.told is not None
    assert found.told.ratio == pytest.approx(after / before - 1)
