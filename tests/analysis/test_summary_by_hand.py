"""What cycles mean together, cycle by cycle written down; and what a search for a rate has found."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llem_airflow.analysis.aggregate import aggregate_run
from llem_airflow.analysis.cycle import Cycle
from llem_airflow.analysis.flags import Flag, FlagSummary, gravity, places_text
from llem_airflow.analysis.leaderboard import entrants_of
from llem_airflow.analysis.metrics import co2e_g, cost, derived
from llem_airflow.analysis.plan import Planned, PlannedExperiment
from llem_airflow.analysis.rate_search import found_rate
from llem_airflow.analysis.statistics import Interval, describe
from llem_airflow.analysis.summary import (
    ExperimentSummary,
    MetricSummary,
    Summary,
    precision,
    setup,
    setup_texts,
    summarise,
)
from llem_airflow.study.plan.model import RateSearch
from tests.analysis.conftest import IDS, MakeRun
from tests.results.recorded import Recording

ENERGY, SPEED = "energy_per_output_token_j", "output_tokens_per_s"
WARNING = Flag("gap", "It gaped.", "Look.", "5", "warning")
INFO = Flag("estimate", "It is one.", "Know.", "", "info")


def cycle(number: int, joules: float | None = 1.0, **changes: Any) -> Cycle:
    given: dict[str, Any] = {
        "experiment": "a",
        "cycle": number,
        "status": "valid",
        "position": number - 1,
        "engine": "vllm",
        "engine_version": "1.2",
        "model": "tiny",
        "host": "node",
        "energy_kind": "measured",
        "energy_source": "counter",
        "energy_boundary": "board",
        "measures": {ENERGY: joules, SPEED: 10.0},
        "started_epoch_ns": 100 * number,
        "finished_epoch_ns": 100 * number + 50,
        **changes,
    }
    return Cycle(**given)


def plan(count: int, *names: str, **changes: Any) -> Planned:
    experiments = {
        name: PlannedExperiment(name, f"slug-{name}", "f" * 16, "vllm", {"task": {"model": "tiny"}})
        for name in names
    }
    cycles = tuple((name, number) for number in range(1, count + 1) for name in names)
    return replace(Planned(experiments, cycles, ()), **changes)


def summed(rows: list[Cycle], of: Planned) -> Summary:
    return summarise("study", "run", of, rows)


def test_a_summary_counts_what_was_planned_what_is_valid_and_what_is_missing() -> None:
    rows = [
        cycle(1, failed_attempts=2),
        cycle(2, flags=(INFO,)),
        cycle(3, None, status="failed", reason="out_of_memory: 80 GiB", next_step="Less.", measures={}),
        cycle(4, status="skipped", reason="not needed", measures={}),
        cycle(5, None, status="missed", reason="no GPU came", measures={}, host="other"),
    ]
    found = summed(rows, plan(5, "a"))
    assert (found.planned, found.valid, found.energy_kind) == (4, 2, "measured")
    assert (found.started_epoch_ns, found.finished_epoch_ns) == (100, 550)
    assert (found.power_rows, found.power_absent, found.environments) == (0, (), ())
    assert found.missing == (
        {
            "experiment": "a",
            "cycle": 3,
            "status": "failed",
            "reason": "out_of_memory: 80 GiB",
            "next_step": "Less.",
        },
        {"experiment": "a", "cycle": 5, "status": "missed", "reason": "no GPU came"},
    )
    assert found.reliability == (
        {
            "host": "node",
            "engine": "vllm",
            "cycles": 4,
            "valid": 2,
            "missed": 0,
            "failed_attempts": 2,
            "reasons": {"not needed": 1, "out_of_memory": 1},
        },
        {
            "host": "other",
            "engine": "vllm",
            "cycles": 1,
            "valid": 0,
            "missed": 1,
            "failed_attempts": 0,
            "reasons": {"no GPU came": 1},
        },
    )
    (one,) = found.experiments
    assert (one.id, one.slug, one.hash, one.engine, one.model) == ("a", "slug-a", "f" * 16, "vllm", "tiny")
    assert (one.planned, one.valid, one.engine_version) == (4, 2, "1.2")
    assert one.statuses == {"valid": 2, "failed": 1, "skipped": 1, "missed": 1}
    assert (one.energy_source, one.energy_boundary, one.active_over) == ("counter", "board", "none")
    assert {flag.code: flag.cycles for flag in one.doubts} == {
        "incomplete": (),
        "few_cycles": (),
        "estimate": (2,),
    }
    assert [gravity(flag.severity) for flag in one.doubts] == [2, 2, 3]


@pytest.mark.parametrize(("n", "few"), [(1, True), (4, True), (5, False)])
def test_fewer_than_five_cycles_are_few(n: int, few: bool) -> None:
    (one,) = summed([cycle(k) for k in range(1, n + 1)], plan(n, "a")).experiments
    assert [flag.code for flag in one.doubts] == ["few_cycles"] * few


def test_cycles_with_a_warning_stand_apart_and_an_outlier_is_named() -> None:
    joules = (1.0, 1.01, 0.99, 1.02, 0.98, 3.0)
    rows = [cycle(k, value, flags=(WARNING,) * (k == 2)) for k, value in enumerate(joules, 1)]
    (one,) = summed(rows, plan(6, "a")).experiments
    found = one.metric(ENERGY)
    assert found is not None
    assert found.all.mean == pytest.approx(sum(joules) / 6)
    assert found.undoubted is not None
    assert (found.undoubted.n, found.undoubted.mean) == pytest.approx((5, (sum(joules) - 1.01) / 5))
    assert found.outlier_cycles == (6,)
    assert {flag.code: flag.cycles for flag in one.doubts} == {"gap": (2,), "outlier": (6,)}
    (all_doubtful,) = summed([replace(row, flags=(WARNING,)) for row in rows], plan(6, "a")).experiments
    metric = all_doubtful.metric(ENERGY)
    assert metric is not None
    assert metric.undoubted is None


def test_the_drift_goes_by_the_place_in_the_run_order() -> None:
    rows = [cycle(k, 10.0 + k, position=2 * k) for k in range(1, 6)]
    rows.append(cycle(6, 13.0, position=None))
    (one,) = summed(rows, plan(6, "a")).experiments
    found = one.metric(ENERGY)
    assert found is not None
    assert found.slope_ratio == pytest.approx(0.5 / 13.0)  # 1 J in two places, of a median of 13 J
    assert one.metric("ttft_mean_s") is None


@pytest.mark.parametrize(("half_width", "met"), [(0.0985, True), (0.0975, False)])
def test_the_precision_of_a_study_is_judged_by_the_energy(half_width: float, met: bool) -> None:
    """t interval of 10 +- 0.098 at n = 5."""
    rows = [cycle(k, value) for k, value in enumerate((10.0, 10.1, 9.9, 10.05, 9.95), 1)]
    target = {"relative_half_width": half_width / 10, "min_cycles": 3}
    (one,) = summed(rows, plan(5, "a", precision_target=target)).experiments
    assert one.precision_met is met
    assert [flag.code for flag in one.doubts] == ["precision_not_met"] * (not met)
    (unasked,) = summed(rows, plan(5, "a")).experiments
    assert unasked.precision_met is None


def test_precision_needs_two_cycles_and_those_that_the_study_asks_for() -> None:
    found = precision([10.0], relative_half_width=9.0, min_cycles=1)
    assert (found.n, found.half_width_ratio, found.met, found.reason) == (
        1,
        None,
        False,
        "1 of at least 2 cycles",
    )
    assert precision([], relative_half_width=9.0, min_cycles=4).reason == "0 of at least 4 cycles"
    assert precision([10.0, 10.1], relative_half_width=9.0, min_cycles=2).met
    exact = precision([10.0, 10.0], relative_half_width=0.0, min_cycles=2)
    assert (exact.met, exact.reason) == (True, "half width 0.00% of the mean after 2 cycles; 0.00% reached")


def test_kinds_of_energy_that_differ_are_mixed() -> None:
    rows = [cycle(1), cycle(2, energy_kind="estimate", energy_source=None), cycle(3, energy_kind="none")]
    found = summed(rows, plan(3, "a"))
    (one,) = found.experiments
    assert (one.energy_kind, one.energy_source, found.energy_kind) == ("mixed", "counter", "mixed")
    (empty,) = summed([cycle(1, status="failed", measures={})], plan(1, "a")).experiments
    assert (empty.energy_kind, empty.energy_source, empty.engine_version) == ("none", None, "")
    assert empty.metrics == ()


def test_an_experiment_that_a_search_did_not_ask_for_is_left_out() -> None:
    search = RateSearch(("a", "b"), (1.0, 2.0), 2, 0.99)
    rows = [cycle(1), cycle(1, experiment="b", status="skipped", measures={})]
    of = plan(1, "a", "b", searches=(search,))
    assert [one.id for one in summed(rows, of).experiments] == ["a"]
    assert [one.id for one in summed(rows, replace(of, searches=())).experiments] == ["a", "b"]


def test_the_setting_is_what_the_cycles_and_environments_tell() -> None:
    gpus = [{"name": "H100"}, {"name": "H100"}, {"name": "A100"}, {}]
    environments = [
        {"cycles": 1, "environment": {"gpus": gpus, "driver": "550"}},
        {"cycles": 1, "environment": {"gpus": [], "cpu": {"model": "EPYC", "count": 64, "usable": 8}}},
        {"cycles": 1, "environment": {"cpu": {"model": "Xeon", "count": 4}}},
        {"cycles": 1, "environment": {"cpu": {"count": 4}, "driver": "550"}},
    ]
    rows = [
        cycle(1, fingerprint={"meter": "nvml"}, characterised="characterised by gpu-check"),
        cycle(2, fingerprint={"meter": "none"}, energy_kind="none"),
        cycle(3, status="failed", model="-", engine="sglang", host=""),
    ]
    found = setup(rows, environments, "2024-01")
    assert found == {
        "model": ["tiny"],
        "release": ["2024-01"],
        "engine": ["vllm 1.2"],
        "hardware": ["1 x A100 + 1 x GPU + 2 x H100", "EPYC, 8 CPUs", "Xeon, 4 CPUs"],
        "driver": ["550"],
        "meter": ["nvml (measured, counter, board, characterised by gpu-check)", "none"],
        "host": ["node"],
    }
    assert setup_texts(found)[:3] == [("model", "tiny"), ("release", "2024-01"), ("engine", "vllm 1.2")]
    failed = setup([cycle(1, status="failed", engine="sglang", engine_version="")], [])
    assert failed["engine"] == ["sglang"]


@pytest.mark.parametrize(("at_most", "text"), [(3, "a; b; c"), (2, "a; b; and 1 more"), (1, "a; and 2 more")])
def test_places_that_are_left_out_are_counted(at_most: int, text: str) -> None:
    assert places_text(["a", "b", "c"], at_most) == text


def test_carbon_and_cost_follow_from_the_kilowatt_hours_of_a_million_tokens() -> None:
    """3.6 J a token are one kilowatt hour a million."""
    assert co2e_g(3.6e6, 400.0) == pytest.approx(400.0)
    assert cost(7.2e6, 0.25) == pytest.approx(0.5)
    rates = {
        "carbon": {"g_per_kwh": 400.0, "source": "grid", "year": 2024},
        "price": {"per_kwh": 0.25, "currency": "EUR", "source": "bill", "year": 2023},
    }
    energy = describe([3.6, 3.6, 3.6])
    carbon, price = derived(rates, energy)
    assert (carbon.mean, carbon.low, carbon.high) == pytest.approx((400.0, 400.0, 400.0))
    assert (price.mean, price.low, price.high) == pytest.approx((0.25, 0.25, 0.25))
    assert (carbon.unit, price.unit) == ("g CO2e", "EUR")
    assert carbon.basis == "400 g CO2e/kWh (grid, 2024)"
    assert price.basis == "0.25 EUR/kWh (bill, 2023)"
    (alone,) = derived({"price": rates["price"]}, describe([3.6, 7.2]))
    assert alone.mean == pytest.approx(0.375)
    assert (alone.low, alone.high) == (None, None)
    assert derived(rates, None) == ()


# a search for the highest rate


def rate(
    name: str, met: list[float] | None, attained: list[float] | None = None, *, saturated: bool = False
) -> ExperimentSummary:
    values = {"slo_met_ratio": met, "slo_attainment_ratio": attained}
    metrics = [
        MetricSummary(key, found)
        for key, told in values.items()
        if told and (found := describe(told)) is not None
    ]
    (base,) = summed([cycle(1)], plan(1, "a")).experiments
    doubts = (FlagSummary("saturated", "warning", "It grew.", "Lower it.", "", (1,)),) * saturated
    return replace(base, id=name, metrics=tuple(metrics), doubts=doubts)


SEARCH = RateSearch(("r1", "r2", "r3", "r4", "r5"), (1.0, 2.0, 4.0, 8.0, 16.0), 5, 0.9)


def test_a_search_tells_the_highest_rate_that_met_and_the_lowest_that_missed() -> None:
    runs = [rate("r1", [1.0] * 3), rate("r5", [0.0] * 3), rate("r3", [1.0] * 3), rate("r4", [0.0] * 3)]
    found = found_rate(SEARCH, {one.id: one for one in runs})
    assert [(probe.rate_per_s, probe.met) for probe in found.probes] == [
        (1.0, True),
        (16.0, False),
        (4.0, True),
        (8.0, False),
    ]
    assert found.highest_met is not None
    assert found.lowest_missed is not None
    assert (found.highest_met.rate_per_s, found.lowest_missed.rate_per_s) == (4.0, 8.0)
    assert (found.asks_per_s, found.state) == (None, "found")


@pytest.mark.parametrize(
    ("answers", "state", "asks_per_s"),
    [
        ({}, "open", 1.0),
        ({"r1": 0.0}, "below", None),
        ({"r1": 1.0}, "open", 16.0),
        ({"r1": 1.0, "r5": 1.0}, "above", None),
        ({"r1": 1.0, "r5": 0.0}, "open", 4.0),
    ],
)
def test_the_state_of_a_search(answers: dict[str, float], state: str, asks_per_s: float | None) -> None:
    found = found_rate(SEARCH, {name: rate(name, [met] * 3) for name, met in answers.items()})
    assert (found.state, found.asks_per_s) == (state, asks_per_s)


@pytest.mark.parametrize(
    ("one", "met", "close"),
    [
        (rate("r1", [1.0] * 3, [0.99] * 3), True, False),
        (rate("r1", [1.0, 1.0, 0.0], [0.99] * 3), False, True),  # the cycles disagree
        (rate("r1", [0.0] * 3, [0.5] * 3), False, False),
        (rate("r1", [1.0] * 3, [0.89, 0.91, 0.92]), True, True),  # the interval holds nine tenths
        (rate("r1", [0.0] * 3, [0.88, 0.89, 0.91]), False, True),
        (rate("r1", [1.0] * 3, [0.9] * 3), True, False),  # without any spread it is exact
        (rate("r1", [1.0, 1.0, 0.0], [0.99] * 3, saturated=True), False, False),
        (rate("r1", [1.0] * 3, [0.99] * 3, saturated=True), False, False),
        (rate("r1", [1.0] * 3), True, False),
    ],
)
def test_an_answer_is_close_where_another_measurement_could_say_the_opposite(
    one: ExperimentSummary, met: bool, close: bool
) -> None:
    (probe,) = found_rate(SEARCH, {"r1": one}).probes
    assert (probe.met, probe.close) == (met, close)
    assert found_rate(SEARCH, {"r1": rate("r1", None)}).probes == ()


# the leaderboard


def test_an_entrant_has_what_its_run_measured(make_run: MakeRun) -> None:
    run = make_run(
        {(0, k): Recording(power_w=200.0 + k) for k in (1, 2, 3)} | {(1, 1): Recording()}, cycles=3
    )
    aggregate_run(run)
    one, other = entrants_of(run)
    # 40 s of 202 W on average for 20 requests of 11 tokens
    assert one.energy_per_output_token_j == pytest.approx(202 * 40 / 220, rel=1e-3)
    assert (one.n, one.model, one.energy_kind) == (3, "tiny", "measured")
    assert one.engine == "transformers 5.16.0"
    assert one.output_tokens_per_s == pytest.approx(220 / 40)
    assert one.source["experiment"] == IDS[0]
    assert one.latencies_s["ttft_mean_s"] == pytest.approx(0.5)
    assert one.latencies_s["ttft_p99_s"] is None
    assert one.low_j is not None
    assert one.high_j is not None
    assert one.low_j < one.energy_per_output_token_j < one.high_j
    assert (other.n, other.low_j, other.high_j) == (1, None, None)
    assert one.workload == other.workload
    assert one.workload.startswith("1 prompt (abababab), batches, energy of board, formulas ")


def test_an_interval_is_its_own_confidence() -> None:
    assert Interval(1.0, 2.0, "t").confidence == 0.95
