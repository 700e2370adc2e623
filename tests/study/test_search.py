"""find_rate: the candidates of a search, the order in which it asks for them, and what a plan says of it."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llem_airflow.analysis.rate_search import progress
from llem_airflow.protocol.typed_json import from_json
from llem_airflow.study.plan.model import RateSearch
from llem_airflow.study.plan.order import grid, most_probes, probe_order
from llem_airflow.study.plan.request import Request, requested
from tests.study.texts import report, study

HEAD = "serving_mode: server\nengine: vllm\ntask: {model: org/model}\nmeasurement: {meter: cpu-estimate}\n"
SLO = "slo: {ttft_ms: 500, percentile: 0.9}"


def searched(keys: str = "", beside: str = "", rest: str = "") -> str:
    return (
        f"server: {{traffic: {{find_rate: {{from: 1, to: 8, tolerance: 0.5, {SLO}{keys}}}{beside}}}}}\n{rest}"
    )


@given(st.floats(0.001, 1000), st.floats(1.02, 1e6), st.floats(0.01, 1), st.integers(3, 10))
def test_the_grid_ascends_from_bound_to_bound_within_budget_and_tolerance(
    lowest: float, ratio: float, tolerance: float, probes: int
) -> None:
    rates = grid(lowest, lowest * ratio, tolerance, probes)
    assert (rates[0], rates[-1]) == (lowest, lowest * ratio)
    assert all(low < high for low, high in pairwise(rates))
    assert most_probes(len(rates)) <= probes
    if most_probes(len(rates)) < probes:
        assert max(high / low for low, high in pairwise(rates)) <= (1 + tolerance) * 1.002


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 64])
def test_a_search_finds_the_highest_rate_of_every_monotone_server_within_its_budget(steps: int) -> None:
    count = steps + 1
    for highest in range(-1, count):
        found = progress(count, lambda at, highest=highest: at <= highest)  # type: ignore[misc]
        assert found.asks is None
        assert found.met == (highest if highest >= 0 else None)
        assert found.missed == (highest + 1 if highest < count - 1 else None)
        assert len(found.probes) <= most_probes(count)


@pytest.mark.parametrize("steps", [1, 2, 8, 32])
def test_in_the_order_of_its_candidates_a_search_never_waits(steps: int) -> None:
    for highest in range(-1, steps + 1):
        known: dict[int, bool] = {}
        for at in probe_order(steps + 1):
            now = progress(steps + 1, known.get)
            if now.asks == at:
                known[at] = at <= highest
            else:
                assert now.rules_out(at)
        assert progress(steps + 1, known.get).asks is None


@given(st.lists(st.booleans(), min_size=33, max_size=33))
def test_whatever_a_server_answers_the_search_ends_between_a_rate_that_met_and_one_that_missed(
    answers: list[bool],
) -> None:
    found = progress(33, answers.__getitem__)
    assert found.asks is None
    assert len(found.probes) <= 7
    if found.met is not None and found.missed is not None:
        assert found.missed == found.met + 1
        assert answers[found.met]
        assert not answers[found.missed]


def test_each_candidate_is_the_experiment_that_its_rate_alone_would_be() -> None:
    plan = study(searched(), head=HEAD).plan
    (search,) = plan.searches
    assert search.rates_per_s == (1, 1.297, 1.682, 2.181, 2.828, 3.668, 4.757, 6.169, 8)
    for name, rate in zip(search.experiments, search.rates_per_s, strict=True):
        (alone,) = study(f"server: {{traffic: {{rate: {rate:g}, {SLO}}}}}\n", head=HEAD).experiments
        probe = next(one for one in plan.experiments if one.id == name)
        assert probe.hash == alone.hash
        assert probe.config["server"]["traffic"] == alone.config["server"]["traffic"]
        # A failed request is one that missed the SLO: an overloaded probe is an answer, and no failure.
        assert (probe.config["server"]["max_failed_ratio"], alone.config["server"]["max_failed_ratio"]) == (
            1,
            0.05,
        )


def test_the_plan_has_the_probes_in_order_and_the_time_of_the_budget() -> None:
    found = study(searched(rest="study_execution: {n_cycles: 2, experiment_gap_seconds: 10}\n"), head=HEAD)
    (search,) = found.plan.searches
    first = [run.experiment_id for run in found.plan.planned_cycles][::2]
    assert first[:3] == [search.experiments[at] for at in (0, 8, 4)]
    assert search.max_probes == 5
    assert found.plan.most_cycles == 10
    longest_s = found.experiments[0].wall_clock_s or 0
    assert 10 * longest_s <= found.plan.wall_clock_s <= 10 * (longest_s + 10)
    assert from_json(RateSearch, found.plan.to_json()["searches"][0], "") == search
    told = [str(notice) for notice in found.warnings]
    assert any("5 rates of 9 are measured at most, 2 cycles each" in text for text in told)
    assert "searches" not in study("server: {traffic: {rate: 1}}\n", head=HEAD).plan.to_json()


def test_one_cycle_a_rate_is_told_as_chance_near_the_bound() -> None:
    one = study(searched(rest="study_execution: {n_cycles: 1}\n"), head=HEAD)
    assert any("near the bound an answer is chance" in str(notice) for notice in one.warnings)


def test_each_configuration_of_a_sweep_has_a_search_of_its_own() -> None:
    text = searched(rest="sweep: {vllm.engine_params.max_num_seqs: [8, 16]}\n")
    found = study(text, head=HEAD).plan
    assert [len(one.experiments) for one in found.searches] == [9, 9]
    assert not set(found.searches[0].experiments) & set(found.searches[1].experiments)
    assert len(found.experiments) == 18


def test_a_run_of_some_of_the_rates_measures_these() -> None:
    found = study(searched(), head=HEAD)
    some = requested(found, Request(experiments=("*rate-1-*", "*rate-8-*")))
    assert len(some.experiments) == 2
    assert some.plan.searches == ()
    assert requested(found, Request(cycles=1)).plan.searches == found.plan.searches


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (searched(beside=", rate: 2"), "find_rate chooses the rate"),
        (searched(beside=", concurrency: 2"), "a closed loop has no find_rate"),
        (searched(beside=", slo: {ttft_ms: 1}"), "find_rate has an slo too"),
        (searched(keys=", max_probes: 2"), "found 2"),
        ("server: {traffic: {find_rate: {from: 1, to: 8}}}\n", "find_rate has no bound to meet"),
        ("server: {traffic: {find_rate: {from: 1, to: 8, slo: {percentile: 0.9}}}}\n", "no bound to meet"),
        ("server: {traffic: {find_rate: {from: 8, to: 1, slo: {ttft_ms: 1}}}}\n", "from 8 is not below to 1"),
        ("server: {traffic: {find_rate: {from: 1, to: 1.05, slo: {ttft_ms: 1}}}}\n", "within the tolerance"),
        ("server: {traffic: {find_rate: {from: 1, slo: {ttft_ms: 1}}}}\n", "the key 'to' is missing"),
        (searched(rest="study_execution: {experiment_order: shuffle}\n"), "no order for find_rate"),
        (
            searched(rest="experiments:\n- {}\n- {server: {traffic: {find_rate: {to: 16}}}}\n"),
            "the same measurement",
        ),
    ],
)
def test_a_search_that_cannot_be_is_told(text: str, words: str) -> None:
    assert words in report(text, head=HEAD)


def test_a_search_takes_the_slo_of_its_traffic() -> None:
    text = "server: {traffic: {slo: {ttft_ms: 7}, find_rate: {from: 1, to: 8}}}\n"
    found = study(text, head=HEAD)
    assert {one.config["server"]["traffic"]["slo"]["ttft_ms"] for one in found.experiments} == {7}
    assert found.plan.searches[0].percentile == 0.99
