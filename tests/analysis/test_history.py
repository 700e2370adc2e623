from __future__ import annotations

import numpy as np
import pytest

from llem_airflow.analysis.history import Point, change_points, trend
from llem_airflow.analysis.verdict import Verdict


def _points(means: list[float], conditions: list[str] | None = None) -> list[Point]:
    texts = conditions or [""] * len(means)
    return [
        Point(f"run-{k}", k, (mean * 0.999, mean, mean * 1.001), text)
        for k, (mean, text) in enumerate(zip(means, texts, strict=True))
    ]


def _noisy(rng: np.random.Generator, before: int, after: int, step: float, cv: float = 0.01) -> list[float]:
    flat, moved = rng.normal(10, 10 * cv, before), rng.normal(10 * (1 + step), 10 * cv, after)
    return [*flat.tolist(), *moved.tolist()]


def test_a_step_is_found_at_the_run_where_it_began() -> None:
    found = trend(_points(_noisy(np.random.default_rng(1), 20, 6, 0.06)), "lower")
    assert [change.run_id for change in found.changes] == ["run-20"]
    assert (found.verdict, found.began) == (Verdict.REGRESSION, "run-20")
    assert found.changes[0].ratio == pytest.approx(0.06, abs=0.01)


def test_a_step_down_in_energy_is_an_improvement() -> None:
    found = trend(_points(_noisy(np.random.default_rng(1), 20, 6, -0.06)), "lower")
    assert found.verdict is Verdict.IMPROVEMENT


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
    assert (found.verdict, found.latest) == (Verdict.NOT_ENOUGH_EVIDENCE, None)


def test_the_newest_run_is_judged_by_how_much_runs_differ() -> None:
    restless = [10.0, 10.6, 9.5, 10.4, 9.6, 10.5]
    assert trend(_points(restless), "lower").verdict is Verdict.NOT_ENOUGH_EVIDENCE
    calm = [10.0, 10.01, 9.99, 10.02, 9.98, 10.5]
    assert trend(_points(calm), "lower").verdict is Verdict.REGRESSION


def test_runs_under_other_conditions_are_left_out() -> None:
    found = trend(_points([20.0, 20.1, 10.0, 10.05], ["old", "old", "new", "new"]), "lower")
    assert len(found.points) == 2
    assert [point.run_id for point in found.left_out] == ["run-0", "run-1"]
    assert found.changes == ()
