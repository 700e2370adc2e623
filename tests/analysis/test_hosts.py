"""Cycles that several hosts measured are analysed within the hosts: mean, interval, comparison, history."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from llem_airflow.analysis.aggregate import aggregate_run
from llem_airflow.analysis.blocked import host_effect, host_mean
from llem_airflow.analysis.compare import How, PairReport, compare_runs, compare_sides
from llem_airflow.analysis.history import Point, cycle_correlation
from llem_airflow.analysis.hosts import unequal_on_hosts
from llem_airflow.analysis.leaderboard import entrants_of
from llem_airflow.analysis.nights import measured
from llem_airflow.analysis.statistics import describe, slope_ratio
from llem_airflow.analysis.summary import Summary, load_summary, precision
from llem_airflow.analysis.tables import RunRows
from llem_airflow.analysis.verdict import Usual, Verdict, compare, usual_error
from llem_airflow.frames import experiments_df
from llem_airflow.report.markdown import report_markdown
from llem_airflow.results import ResultsRoot, StoredRun
from tests.analysis.conftest import CONFIGS, HASHES, IDS
from tests.analysis.one_history import trend
from tests.results.recorded import Recording, plan_json, provenance, variant

METRIC = "energy_per_output_token_j"
REPEATS = 2000
SE = (0.95 * 0.05 / REPEATS) ** 0.5


def _drawn(
    rng: np.random.Generator, shift: np.ndarray[Any, Any], cycles: tuple[int, ...]
) -> list[list[float]]:
    return [list(level * rng.normal(1.0, 0.01, n)) for level, n in zip(shift, cycles, strict=True)]


def _flat(cells: list[list[float]]) -> tuple[list[float], list[str]]:
    return [x for cell in cells for x in cell], [f"gpu{k}" for k, cell in enumerate(cells) for _ in cell]


@pytest.mark.parametrize("cycles", [(3, 3), (8, 2), (5, 3, 2), (2, 2, 2, 2)])
def test_the_interval_within_hosts_covers_the_mean_over_hosts_and_the_pooled_one_does_not(
    cycles: tuple[int, ...],
) -> None:
    rng = np.random.default_rng(19)
    within = pooled = 0
    for _ in range(REPEATS):
        shift = np.exp(rng.normal(0.0, 0.05, len(cycles)))
        values, hosts = _flat(_drawn(rng, shift, cycles))
        for found, blocked in ((describe(values, hosts=hosts), True), (describe(values), False)):
            assert found is not None
            assert found.interval is not None
            holds = found.interval.low <= shift.mean() <= found.interval.high
            within, pooled = within + (blocked and holds), pooled + (not blocked and holds)
    assert abs(within / REPEATS - 0.95) < 4 * SE
    assert abs(pooled / REPEATS - 0.95) > 6 * SE


@pytest.mark.parametrize(
    ("ours", "theirs"), [((3, 3), (3, 3)), ((5, 1), (1, 5)), ((2, 1, 1), (2, 1, 1)), ((1,) * 4, (1,) * 4)]
)
def test_the_interval_of_a_change_within_hosts_covers_it_and_welchs_does_not(
    ours: tuple[int, ...], theirs: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(20)
    within = pooled = 0
    for _ in range(REPEATS):
        shift = np.exp(rng.normal(0.0, 0.05, len(ours)))
        (a, on), (b, at) = _flat(_drawn(rng, shift, ours)), _flat(_drawn(rng, 1.05 * shift, theirs))
        for found, blocked in (
            (compare(a, b, "lower", hosts=(on, at)), True),
            (compare(a, b, "lower"), False),
        ):
            assert found.low_ratio is not None
            assert found.high_ratio is not None
            holds = found.low_ratio <= 0.05 <= found.high_ratio
            within, pooled = within + (blocked and holds), pooled + (not blocked and holds)
    assert abs(within / REPEATS - 0.95) < 4 * SE
    assert abs(pooled / REPEATS - 0.95) > 6 * SE


def test_the_mean_over_hosts_is_that_of_a_linear_model_with_hosts() -> None:
    cells = [[10.0, 11.0, 12.0], [20.0, 22.0]]
    found = host_mean(cells)
    # R: fit <- lm(x ~ 0 + host); the contrast (1/2, 1/2)
    assert found.mean == 16.0
    assert found.df == 3
    assert found.sd == pytest.approx((4.0 / 3) ** 0.5)
    assert found.error == pytest.approx((4.0 / 3) ** 0.5 * (1 / 3 + 1 / 2) ** 0.5 / 2)
    alone = host_mean([[10.0], [14.0]])  # the spread of hosts, where hosts tell none
    assert [alone.sd, alone.error, alone.df] == pytest.approx([8**0.5, 2.0, 1])


def test_the_effect_within_hosts_is_the_least_squares_one() -> None:
    rng = np.random.default_rng(3)
    cells = [
        [[*rng.normal(5.0 + h + 2 * side, 1.0, n)] for h, n in enumerate(row)]
        for side, row in enumerate([(3, 2), (1, 4)])
    ]
    found = host_effect(*cells, unit=1.0)
    rows = [(x, side, h) for side in (0, 1) for h in (0, 1) for x in cells[side][h]]
    y = np.array([x for x, _, _ in rows])
    design = np.array([[1.0, side, h] for _, side, h in rows])
    fit, squares, *_ = np.linalg.lstsq(design, y, rcond=None)
    covariance = np.linalg.inv(design.T @ design) * squares[0] / (len(y) - 3)
    assert found.size == pytest.approx(fit[1])
    assert found.variance == pytest.approx(covariance[1, 1])
    assert found.df == len(y) - 3
    full = np.column_stack([design, design[:, 1] * design[:, 2]])  # with an effect of its own on each host
    _, own, *_ = np.linalg.lstsq(full, y, rcond=None)
    f = (squares[0] - own[0]) / (own[0] / (len(y) - 4))
    assert found.differs_p == pytest.approx(float(stats.f.sf(f, 1, len(y) - 4)))


def test_one_cycle_on_each_host_is_compared_as_pairs_within_hosts() -> None:
    a, b = [1.00, 1.10, 0.95, 1.21], [1.03, 1.12, 0.99, 1.22]
    names = ["w", "x", "y", "z"]
    found = compare(a, b, "lower", hosts=(names, names))
    assert found.p == pytest.approx(float(stats.ttest_rel(np.log(b), np.log(a)).pvalue))
    assert (found.method, found.hosts, found.n_baseline) == ("blocked", 4, 4)


VALUES = st.lists(st.floats(0.5, 2.0), min_size=2, max_size=6)


@given(VALUES, VALUES)
def test_one_host_is_as_no_host(a: list[float], b: list[float]) -> None:
    one, other = ["gpu1"] * len(a), ["gpu1"] * len(b)
    assert describe(a, hosts=one) == describe(a)
    assert compare(a, b, "lower", hosts=(one, other)) == compare(a, b, "lower")
    assert usual_error([(a, b)] * 4, [(one, other)] * 4) == usual_error([(a, b)] * 4)


@given(
    st.lists(st.lists(st.floats(0.5, 2.0), min_size=2, max_size=4), min_size=2, max_size=4),
    st.floats(0.5, 3.0),
)
def test_what_a_host_adds_to_both_sides_changes_no_verdict(cells: list[list[float]], shift: float) -> None:
    other = [[x * 1.1 for x in cell] for cell in cells]
    moved = [[x * (shift if k == 0 else 1.0) for x in cell] for k, cell in enumerate(cells)]
    before, after = host_effect(cells, other), host_effect(moved, [[x * 1.1 for x in cell] for cell in moved])
    assert after.size == pytest.approx(before.size)
    assert after.variance == pytest.approx(before.variance, abs=1e-15)


def test_what_one_side_alone_measured_is_left_out_and_told() -> None:
    on = ["gpu1", "gpu1", "gpu2", "gpu2", "gpu3"]
    found = compare([1.0, 1.01, 1.1, 1.12, 9.0], [1.0, 1.02, 1.11, 1.12], "lower", hosts=(on, on[:4]))
    assert (found.n_baseline, found.n_candidate, found.hosts) == (4, 4, 2)
    assert found.reason == "left out as only one side was measured there: gpu3"
    alone = compare(
        [1.0, 1.01, 9.0], [1.0, 1.02], "lower", hosts=(["gpu1", "gpu1", "gpu3"], ["gpu1", "gpu1"])
    )
    assert (alone.method, alone.n_baseline, alone.hosts) == ("welch", 2, 1)
    assert alone.reason == "left out as only one side was measured there: gpu3"
    apart = compare([1.0, 1.01], [1.0, 1.02], "lower", hosts=(["gpu1"] * 2, ["gpu2"] * 2))
    assert apart.verdict is Verdict.NOT_ENOUGH_EVIDENCE
    assert (
        apart.reason == "left out as only one side was measured there: gpu1, gpu2; the reference has no value"
    )


def test_a_change_that_differs_between_hosts_is_told_by_host_and_widens_the_interval() -> None:
    hosts = ["gpu1"] * 4 + ["gpu2"] * 4
    a = [1.0, 1.01, 0.99, 1.0] * 2
    same = compare(a, [1.05, 1.06, 1.04, 1.05] * 2, "lower", hosts=(hosts, hosts))
    apart = compare(a, [1.0, 1.01, 0.99, 1.0, 1.10, 1.11, 1.09, 1.1], "lower", hosts=(hosts, hosts))
    assert "differs" not in same.reason
    assert apart.reason.startswith("the change differs between hosts (p ")
    assert apart.reason.endswith("): gpu1 +0.0%, gpu2 +10.0%")
    assert apart.high_ratio is not None
    assert same.high_ratio is not None
    assert apart.high_ratio > same.high_ratio


def test_values_that_can_be_negative_or_that_are_equal_are_compared_within_hosts_too() -> None:
    hosts = ["gpu1"] * 2 + ["gpu2"] * 2
    found = compare([-1.0, 1.5, 4.0, 5.0], [0.0, 2.4, 5.1, 6.0], "higher", hosts=(hosts, hosts))
    assert found.difference_ratio == pytest.approx(1.0 / 2.375)
    exact = compare([1.0, 1.0, 2.0, 2.0], [1.5, 1.5, 3.0, 3.0], "lower", hosts=(hosts, hosts))
    assert (exact.verdict, exact.reason) == (Verdict.REGRESSION, "no spread on either side: exact")
    unknown = compare([1.0, None, 1.1, 1.12], [1.0, 1.02, float("nan"), 1.12], "lower", hosts=(hosts, hosts))
    assert (unknown.n_baseline, unknown.n_candidate) == (3, 3)
    assert unknown.reason == "2 values are not known and left out"
    nothing = compare([0.0] * 4, [1.0, 0.0, 1.0, 0.0], "lower", hosts=(hosts, hosts))
    assert nothing.difference_ratio is None
    assert nothing.reason == "the reference is 0, and a change from it is no share of it"


def test_outliers_and_drift_are_looked_for_within_hosts() -> None:
    values, hosts = [10.0, 10.1, 9.9, 10.05, 12.0, 20.0, 20.1, 19.9], ["a"] * 5 + ["b"] * 3
    found = describe(values, hosts=hosts)
    assert found is not None
    assert found.outliers == (4,)
    assert describe(values).outliers == (5, 6, 7)  # type: ignore[union-attr]  # those of the other host
    at = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert slope_ratio(at, [10.0, 10.0, 10.0, 20.0, 20.0, 20.0], ["a"] * 3 + ["b"] * 3) == 0.0
    assert slope_ratio(at, [10.0, 10.0, 10.0, 20.0, 20.0, 20.0]) != 0.0


def test_an_interval_of_one_degree_of_freedom_is_not_shown() -> None:
    few = describe([1.0, 1.01, 1.1], hosts=["a", "a", "b"])
    assert few is not None
    assert (few.n, few.hosts, few.df, few.shown_interval) == (3, 2, 1, None)
    assert describe([1.0, -1.01, 1.1], hosts=["a", "a", "b"]).interval is None  # type: ignore[union-attr]


def test_the_precision_target_is_judged_within_hosts() -> None:
    values, hosts = [1.0, 1.001, 1.2, 1.201, 1.0, 1.199], ["a", "a", "b", "b", "a", "b"]
    found = precision(values, relative_half_width=0.01, min_cycles=3, hosts=hosts)
    assert found.met
    assert "after 6 cycles on 2 hosts" in found.reason
    assert not precision(values, relative_half_width=0.01, min_cycles=3).met


@dataclass(frozen=True)
class _OfKind(Recording):
    """A recording of a board of some kind."""

    kind: str = "Test GPU"

    def environment(self) -> dict[str, Any]:
        told = super().environment()
        return {**told, "gpus": [{**gpu, "name": self.kind} for gpu in told["gpus"]]}


Spread = Callable[..., StoredRun]


@pytest.fixture
def spread(tmp_path: Path) -> Spread:
    """A run of two experiments whose cycles several hosts measured."""

    def make(
        run_id: str,
        hosts: Mapping[int, tuple[str, ...]],
        power_w: Mapping[str, float],
        kinds: Mapping[str, str] | None = None,
        ratio: float = 1.0,
    ) -> StoredRun:
        run = ResultsRoot(tmp_path / "results").run("nightly", run_id)
        cycles = max(map(len, hosts.values()))
        run.write_plan("model: tiny\n", plan_json(list(zip(IDS, HASHES, CONFIGS, strict=True)), cycles), {})
        for index, names in hosts.items():
            for cycle, host in enumerate(names, 1):
                folder = tmp_path / f"{run_id}-{index}-{cycle}"
                recording = _OfKind(
                    power_w=power_w[host] * (1 + 0.2 * index) * ratio + 0.3 * (cycle % 3),
                    gpus=(f"GPU-{host}",),
                    config=CONFIGS[index],
                    kind=(kinds or {}).get(host, "Test GPU"),
                )
                variant(recording, hash=HASHES[index], cycle=cycle).write(folder)
                told = provenance(60.0 * (2 * cycle + index)) | {"host": {"name": host}}
                run.commit_cycle(IDS[index], cycle, folder, told)
        aggregate_run(run)
        return run

    return make


POWERS = {"gpu1": 200.0, "gpu2": 230.0, "gpu3": 260.0}
EVEN = ("gpu1", "gpu2") * 3


def _summary(run: StoredRun) -> Summary:
    found = load_summary(run)
    assert found is not None
    return found


def test_a_run_on_two_hosts_tells_cycles_and_hosts(spread: Spread) -> None:
    run = spread("r1", {0: EVEN, 1: EVEN}, POWERS)
    summary = _summary(run)
    first = summary.experiments[0]
    metric = first.metric(METRIC)
    assert metric is not None
    assert metric.all.interval is not None
    assert metric.all.interval.method == "log t, within hosts"
    assert metric.all.hosts == 2
    assert metric.all.half_width_ratio is not None
    assert metric.all.half_width_ratio < 0.005  # the hosts differ by 15 %
    assert first.hosts == ("gpu1", "gpu2")
    (told,) = [flag for flag in first.doubts if flag.code == "hosts_differ"]
    assert told.message.startswith("energy per output token differs by 15.0% between hosts (gpu1 ")
    (contrast,) = summary.contrasts
    assert (contrast.method, contrast.hosts) == ("paired", 2)
    assert summary.answer is not None
    assert "n = 6 cycles on 2 hosts" in summary.answer
    assert "6/6, on 2 hosts" in report_markdown(summary)
    assert list(experiments_df(run)["hosts"].iloc[0]) == ["gpu1", "gpu2"]


def test_experiments_that_were_spread_in_another_order_are_compared_within_hosts(spread: Spread) -> None:
    run = spread("r1", {0: EVEN, 1: tuple(reversed(EVEN))}, POWERS)
    (contrast,) = _summary(run).contrasts
    assert (contrast.method, contrast.hosts, contrast.n_candidate) == ("blocked", 2, 6)
    assert contrast.difference_ratio == pytest.approx(0.2, abs=0.002)
    rows = RunRows.of(run)
    with pytest.raises(
        ValueError, match=r"cycles 1, 2, 3, 4, 5, 6 were measured on different hosts; compare them"
    ):
        compare_sides(rows.side(IDS[0]), rows.side(IDS[1]), How(paired=True))


def test_two_runs_on_the_same_hosts_are_compared_within_them(spread: Spread) -> None:
    before = spread("r1", {0: EVEN, 1: EVEN}, POWERS)
    after = spread("r2", {0: ("gpu1",) * 4 + ("gpu2",) * 2, 1: EVEN}, POWERS, ratio=1.05)
    reports = compare_runs(before, after)
    assert [report.verdict for report in reports] == [Verdict.REGRESSION] * 2
    found = reports[0].metrics[METRIC]
    assert (found.method, found.hosts) == ("blocked", 2)
    assert found.difference_ratio == pytest.approx(0.05, abs=0.002)  # pooled it would be nothing
    assert reports[0].to_json()["metrics"][METRIC]["hosts"] == 2


def _one(reports: list[PairReport]) -> PairReport:
    return next(report for report in reports if report.candidate.endswith(IDS[0]))


def test_runs_on_other_hosts_or_kinds_of_gpu_are_not_comparable(spread: Spread) -> None:
    kinds = {"gpu3": "Another GPU"}
    before = spread("r1", {0: EVEN}, POWERS)
    apart = _one(
        compare_runs(before, spread("r2", {0: ("gpu3",) * 3 + ("gpu4",) * 3}, POWERS | {"gpu4": 200.0}))
    )
    assert apart.verdict is Verdict.NOT_COMPARABLE
    assert apart.differences == {"host": [["gpu1", "gpu2"], ["gpu3", "gpu4"]]}
    mixed = spread("r3", {0: ("gpu1", "gpu3") * 3}, POWERS, kinds)
    both = _one(compare_runs(mixed, spread("r4", {0: ("gpu1", "gpu3") * 3}, POWERS, kinds)))
    assert both.verdict is Verdict.NOT_COMPARABLE
    kind = ["1 x Another GPU", "1 x Test GPU"]
    assert both.differences == {"hardware": [kind, kind]}
    allowed = _one(compare_runs(mixed, mixed, How(ignore=("hardware",))))
    assert allowed.verdict is Verdict.UNCHANGED


def test_a_condition_that_changed_on_one_host_is_told(spread: Spread) -> None:
    before = spread("r1", {0: EVEN}, POWERS)
    after = spread("r2", {0: EVEN}, POWERS, {"gpu2": "Another GPU"})
    report = _one(compare_runs(before, after))
    assert sorted(report.differences) == ["gpus", "hardware"]
    assert report.differences["hardware"][1] == ["1 x Another GPU", "1 x Test GPU"]


@pytest.mark.parametrize(
    ("hosts", "code", "said", "step"),
    [
        (
            ("gpu1", "gpu2"),
            "few_cycles_on_hosts",
            (
                "2 cycles on 2 hosts (gpu1 1, gpu2 1) hardly tell how much cycles of one host differ: the interval has "
                "the differences of hosts in it"
            ),
            "set study_execution.n_cycles to 4 or more, or use fewer hosts",
        ),
        (
            ("gpu1", "gpu1", "gpu2"),
            "few_cycles_on_hosts",
            "3 cycles on 2 hosts (gpu1 2, gpu2 1) hardly tell how much cycles of one host differ",
            "set study_execution.n_cycles to 4 or more, or use fewer hosts",
        ),
        (
            ("gpu1",) * 4 + ("gpu2",),
            "hosts_unbalanced",
            (
                "its cycles are spread unevenly over hosts (gpu1 4, gpu2 1): each host weighs the same, so the "
                "interval is wider than as many cycles spread evenly would make it"
            ),
            "make study_execution.n_cycles a multiple of 2, and clear the tasks that failed",
        ),
        (
            ("gpu1", "gpu3") * 3,
            "mixed_hardware",
            (
                "its cycles were measured on 2 kinds of hardware (1 x Another GPU; 1 x Test GPU): the mean is that of "
                "no kind, and it is not compared"
            ),
            "measure each kind in a study of its own (gpus.kind)",
        ),
    ],
)
def test_what_limits_an_analysis_within_hosts_is_flagged_with_the_next_step(
    spread: Spread, hosts: tuple[str, ...], code: str, said: str, step: str
) -> None:
    run = spread("r1", {0: hosts}, POWERS, {"gpu3": "Another GPU"})
    flags = {flag.code: flag for flag in _summary(run).experiments[0].doubts}
    assert (flags[code].message, flags[code].next_step) == (said, step)
    others = {"few_cycles_on_hosts", "hosts_unbalanced", "mixed_hardware"} - {code}
    assert not others & flags.keys()


def test_a_leaderboard_names_every_kind_that_measured_an_experiment(spread: Spread) -> None:
    mixed = spread("r1", {0: ("gpu1", "gpu3") * 2}, POWERS, {"gpu3": "Another GPU"})
    (entrant,) = entrants_of(mixed)
    assert entrant.hardware == "1 x Another GPU and 1 x Test GPU"


def test_experiments_of_other_hosts_or_kinds_are_not_compared_in_the_answer(spread: Spread) -> None:
    alone = _summary(spread("r1", {0: EVEN, 1: ("gpu3", "gpu4") * 3}, POWERS | {"gpu4": 1.0}))
    assert alone.contrasts == ()
    assert alone.answer is not None
    assert "not compared, as no host measured both: " in alone.answer
    other = _summary(spread("r2", {0: ("gpu1",) * 3, 1: ("gpu3",) * 3}, POWERS, {"gpu3": "Another GPU"}))
    assert other.answer is not None
    assert "not compared, as another kind of hardware was used: " in other.answer


def test_a_night_is_the_mean_over_its_hosts_however_its_cycles_were_spread(spread: Spread) -> None:
    nights = [
        spread("r1", {0: ("gpu1",) * 4 + ("gpu2",) * 2}, POWERS),
        spread("r2", {0: ("gpu1",) * 2 + ("gpu2",) * 4}, POWERS),
    ]
    points = []
    for at, run in enumerate(nights):
        found = measured(run, METRIC)
        points.append(Point(run.run_id, at, found[0].values, found[0].conditions, found[0].hosts))
    assert points[0].mean == pytest.approx(points[1].mean, rel=0.002)
    assert trend(points, "lower").verdict is Verdict.UNCHANGED
    assert cycle_correlation(points) == (0.0, 0.0)


A100 = {"gpus": ['[{"name": "A100"}]']}
H100 = {"gpus": ['[{"name": "H100"}]']}


@pytest.mark.parametrize(
    ("ours", "theirs", "told"),
    [
        ({"a": A100, "b": A100}, {"a": A100, "b": A100}, set()),
        ({"a": A100, "b": A100}, {"a": H100, "b": H100}, {"gpus", "hardware"}),
        ({"a": A100, "b": H100}, {"a": A100, "b": H100}, {"hardware"}),
        (
            {"a": {"driver": ["1"]}, "b": {"driver": ["2"]}},
            {"a": {"driver": ["1"]}, "b": {"driver": ["2"]}},
            set(),
        ),
        ({"a": {"driver": ["1", "2"]}}, {"a": {"driver": ["1", "2"]}}, {"driver"}),
        ({"a": {"driver": ["1"]}}, {"a": {"driver": ["2"]}, "b": {"driver": ["3"]}}, {"driver"}),
        ({"a": {"driver": ["1"]}}, {"b": {"driver": ["1"]}}, {"host"}),
    ],
)
def test_a_condition_may_differ_between_hosts_and_not_on_one_and_the_kind_of_gpu_on_none(
    ours: dict[str, Any], theirs: dict[str, Any], told: set[str]
) -> None:
    assert set(unequal_on_hosts(ours, theirs)) == told


def test_what_cycles_differ_by_is_learnt_within_hosts() -> None:
    """Hosts are 50 % apart, and cycles on one of them 1 %."""
    on = ["gpu1"] * 3 + ["gpu2"] * 3
    sides = [
        ([1.0, 1.01 + k / 1000, 0.99, 1.5, 1.515, 1.485], [1.0, 1.01, 0.99 - k / 1000, 1.5, 1.515, 1.485])
        for k in range(4)
    ]
    blocked, pooled = usual_error(sides, [(on, on)] * 4), usual_error(sides)
    assert blocked is not None
    assert pooled is not None
    effects = [host_effect([a[:3], a[3:]], [b[:3], b[3:]]) for a, b in sides]
    assert blocked == Usual.of([(one.variance, one.df) for one in effects])
    assert blocked.variance < pooled.variance / 100


def test_a_cycle_of_nothing_leaves_a_comparison_within_hosts_one_of_ratios() -> None:
    """Twice on one host and four times on the other."""
    on = ["gpu1"] * 2 + ["gpu2"] * 2
    found = compare([0.0, 2.0, 1.0, 3.0], [0.0, 4.0, 4.0, 12.0], "lower", hosts=(on, on))
    assert found.difference_ratio == pytest.approx(8**0.5 - 1)
