"""A server over its rates: what is the knee, and which rate is the cheapest that meets the bounds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llem_airflow.analysis.across_rates import RATE, USERS, ladders
from llem_airflow.analysis.flags import FlagSummary
from llem_airflow.analysis.statistics import describe
from llem_airflow.analysis.summary import ExperimentSummary, MetricSummary
from llem_airflow.report.plots import rates
from llem_airflow.report.under_load import under_load


def measured(
    rate: float,
    *,
    tail_s: float,
    joules: float,
    met: float | None = 1.0,
    saturated: bool = False,
    **factors: Any,
) -> ExperimentSummary:
    """Three cycles at one rate."""
    name = f"rate-{rate:g}" + "".join(f"-{value}" for value in factors.values())
    values = {
        "offered_requests_per_s": rate,
        "requests_per_s": rate,
        "ttft_p50_s": 0.1,
        "e2el_p50_s": tail_s / 2,
        "e2el_p99_s": tail_s,
        "energy_per_output_token_j": joules,
        **({} if met is None else {"slo_met_ratio": met, "slo_attainment_ratio": 0.9 + met / 10}),
    }
    doubts = (
        (FlagSummary("saturated", "warning", "The backlog grew.", "Lower it.", "5 %", (1,)),)
        if saturated
        else ()
    )
    return ExperimentSummary(
        id=name,
        slug=name,
        hash="0" * 16,
        engine="vllm",
        engine_version="1",
        model="m",
        factors={RATE: rate, **factors},
        planned=3,
        valid=3,
        statuses={"valid": 3},
        energy_kind="measured",
        energy_source="counter",
        energy_boundary="board",
        active_over=None,
        metrics=tuple(
            MetricSummary(key, found)
            for key, value in values.items()
            if (found := describe([value * 0.99, value, value * 1.01])) is not None
        ),
        doubts=doubts,
    )


RUN = [
    measured(8, tail_s=9.0, joules=0.5, met=0.0, saturated=True),
    measured(1, tail_s=1.0, joules=2.0),
    measured(2, tail_s=1.1, joules=1.2),
    measured(4, tail_s=1.3, joules=0.8),
]


def test_the_knee_is_where_the_tail_turns_up() -> None:
    (found,) = ladders(RUN)
    assert [level.load for level in found.levels] == [1, 2, 4, 8]
    assert found.tail == "e2el_p99_s"
    assert found.knee is not None
    assert found.knee.load == 4


@pytest.mark.parametrize(
    "run",
    [
        pytest.param(RUN[1:], id="three rates have none"),
        pytest.param([measured(r, tail_s=r, joules=1) for r in (1, 2, 3, 4)], id="nor has a straight line"),
        pytest.param([measured(r, tail_s=1, joules=1) for r in (1, 2, 3, 4)], id="nor a level one"),
        pytest.param([measured(r, tail_s=5 - r, joules=1) for r in (1, 2, 3, 4)], id="nor one that falls"),
    ],
)
def test_there_is_no_knee_where_nothing_bends(run: list[ExperimentSummary]) -> None:
    (found,) = ladders(run)
    assert found.knee is None


def test_the_cheapest_rate_is_one_that_meets_the_bounds_in_every_cycle() -> None:
    (found,) = ladders(RUN)
    assert found.cheapest is not None
    assert found.cheapest.load == 4  # 8 is cheaper, and misses them
    (some,) = ladders([measured(1, tail_s=1, joules=2), measured(2, tail_s=1, joules=1, met=2 / 3)])
    assert some.cheapest is not None
    assert some.cheapest.load == 1
    (steady,) = ladders([measured(1, tail_s=1, joules=2), measured(2, tail_s=1, joules=1, saturated=True)])
    assert steady.cheapest is not None
    assert steady.cheapest.load == 1  # 2 met them in its window, and would not in a longer one
    (none,) = ladders([measured(1, tail_s=1, joules=2, met=None)])
    assert none.cheapest is None


def test_servers_that_differ_in_more_than_the_rate_have_ladders_of_their_own() -> None:
    run = [measured(r, tail_s=1, joules=1, max_num_seqs=n) for n in (4, 8) for r in (1, 2)]
    assert [(one.factors, len(one.levels)) for one in ladders(run)] == [
        ((("max_num_seqs", "4"),), 2),
        ((("max_num_seqs", "8"),), 2),
    ]


def test_the_section_says_what_the_rates_come_to() -> None:
    found = under_load(RUN, {one.id: one.id for one in RUN})
    assert found is not None
    assert [row[-1] for row in found.table.rows] == [*["meets the SLO"] * 3, "saturated, misses the SLO"]
    assert "E2EL p99" in found.table.titles
    cheapest, knee, saturated = found.said
    assert cheapest.startswith("The cheapest that meets the SLO is rate 4/s, at 0.8 J/token [")
    assert knee == "E2EL p99 turns up from rate 4/s on (the knee)."
    assert saturated.startswith("Saturated at rate 8/s: ")


def test_rates_whose_energies_are_not_told_apart_are_named_beside_the_cheapest() -> None:
    run = [
        measured(1, tail_s=1, joules=2),
        measured(2, tail_s=1, joules=1.01),
        measured(4, tail_s=1, joules=1),
    ]
    (found,) = ladders(run)
    assert [level.load for level in found.as_cheap] == [2]
    said = under_load(run, {one.id: one.id for one in run})
    assert said is not None
    assert said.said[0].endswith("; the interval of rate 2/s meets it: they are not told apart.")
    assert said.said[1] == "No knee is looked for among fewer than 4 of them."


def test_a_cheapest_rate_of_one_cycle_has_no_interval_and_that_is_said() -> None:
    run = [once(measured(1, tail_s=1, joules=2)), once(measured(2, tail_s=1, joules=1))]
    said = under_load(run, {one.id: one.id for one in run})
    assert said is not None
    assert said.said[0] == (
        "The cheapest that meets the SLO is rate 2/s, at 1 J/token; it has no interval (from 3 cycles on), so others "
        "may be as cheap."
    )


def once(one: ExperimentSummary) -> ExperimentSummary:
    """The same experiment after one cycle."""
    found = [(metric, describe([metric.all.mean])) for metric in one.metrics]
    return replace(one, metrics=tuple(replace(metric, all=all_) for metric, all_ in found if all_))


def test_a_saturated_rate_that_met_the_bounds_did_so_in_its_window_only() -> None:
    run = [measured(1, tail_s=1, joules=2), measured(2, tail_s=1, joules=1, saturated=True)]
    found = under_load(run, {one.id: one.id for one in run})
    assert found is not None
    assert [row[-1] for row in found.table.rows] == [
        "meets the SLO",
        "saturated, met the SLO in this window only",
    ]


def in_a_closed_loop(users: int, met: float = 1.0) -> ExperimentSummary:
    one = measured(users, tail_s=1.0 + users / 10, joules=8 / users, met=met)
    metrics = [
        replace(m, name="concurrency_users") if m.name == "offered_requests_per_s" else m for m in one.metrics
    ]
    return replace(one, factors={USERS: users, RATE: None}, metrics=tuple(metrics))


def test_users_of_a_closed_loop_have_a_ladder_of_their_own_and_it_is_said_what_their_latencies_are() -> None:
    closed = [in_a_closed_loop(n) for n in (4, 1, 2)]
    run = [*closed, *(replace(one, factors=one.factors | {USERS: None}) for one in RUN)]
    users, rates_ = ladders(run)
    assert [(one.closed, [level.load for level in one.levels]) for one in (users, rates_)] == [
        (True, [1, 2, 4]),
        (False, [1, 2, 4, 8]),
    ]
    assert users.factors == rates_.factors == ()
    found = under_load(run, {one.id: one.id for one in run})
    assert found is not None
    assert found.said[0].startswith("The cheapest that meets the SLO is 4 users, at 2 J/token [")
    assert any("Its latencies are not those of arrivals" in one for one in found.said)
    assert "Users" in found.table.titles
    picture = rates(ladders(run))
    assert picture is not None
    assert ">users<" in picture
    assert "requests/s, offered" in picture


def test_no_number_of_users_that_meets_the_bounds_is_said() -> None:
    run = [in_a_closed_loop(n, met=0.0) for n in (1, 2)]
    found = under_load(run, {one.id: one.id for one in run})
    assert found is not None
    assert found.said[0] == "No number of users meets the SLO in every cycle."


def test_the_rates_are_drawn_and_a_batch_has_no_such_section() -> None:
    picture = rates(ladders(RUN))
    assert picture is not None
    assert "requests/s, offered" in picture
    assert rates(ladders(RUN[:1])) is None
    assert under_load([], {}) is None
    assert ladders([]) == ()


def without(one: ExperimentSummary, *names: str) -> ExperimentSummary:
    return replace(one, metrics=tuple(metric for metric in one.metrics if metric.name not in names))


def test_the_tail_is_the_highest_percentile_that_every_rate_has() -> None:
    (found,) = ladders([without(RUN[0], "e2el_p99_s"), *RUN[1:]])
    assert found.tail == "e2el_p50_s"
    (none,) = ladders([without(one, "e2el_p99_s", "e2el_p50_s") for one in RUN])
    assert (none.tail, none.knee) == (None, None)


@pytest.mark.parametrize(("bend", "knee"), [(0.09, None), (0.11, 2.0)])
def test_a_knee_bends_by_a_tenth_of_the_height_at_least(bend: float, knee: float | None) -> None:
    """Half of the way along, the latency lies so far below the straight line from 1 to 2 s."""
    tails = {1.0: 1.0, 2.0: 1.5 - bend, 2.5: 1.75, 3.0: 2.0}
    (found,) = ladders([measured(rate, tail_s=tail, joules=1) for rate, tail in tails.items()])
    assert (found.knee and found.knee.load) == knee


def test_a_load_is_what_the_study_gives_else_what_was_measured() -> None:
    unsaid = [replace(one, factors={"max_num_seqs": None}) for one in RUN[1:3]]
    (found,) = ladders(unsaid)
    assert (found.factors, found.closed) == ((), False)
    assert [level.load for level in found.levels] == pytest.approx([1.0, 2.0])
    odd = replace(RUN[1], factors={RATE: "fast"})
    assert ladders([odd])[0].levels[0].load == pytest.approx(1.0)


def test_a_level_tells_mean_and_interval_where_they_are_known() -> None:
    level = ladders(RUN[1:2])[0].levels[0]
    assert level.value("energy_per_output_token_j") == pytest.approx(2.0)
    found = level.interval("energy_per_output_token_j")
    assert found is not None
    assert found[0] < 2.0 < found[1]
    assert (level.value("itl_mean_s"), level.interval("itl_mean_s")) == (None, None)
    assert (level.meets_slo, level.saturated, level.holds_slo) == (True, False, True)
    missed, unbounded = (
        ladders([measured(1, tail_s=1, joules=1, met=met)])[0].levels[0] for met in (0.0, None)
    )
    assert (missed.meets_slo, missed.holds_slo) == (False, False)
    assert (unbounded.meets_slo, unbounded.holds_slo) == (None, False)


def test_as_cheap_are_only_those_that_hold_the_bounds_and_whose_intervals_meet() -> None:
    run = [
        measured(1, tail_s=1, joules=1.0),
        measured(2, tail_s=1, joules=1.001),
        measured(3, tail_s=1, joules=1.001, met=0.0),
        measured(4, tail_s=1, joules=2.0),
        once(measured(5, tail_s=1, joules=1.001)),
    ]
    (found,) = ladders(run)
    assert [level.load for level in found.as_cheap] == [2]
    (alone,) = ladders([once(one) for one in run])
    assert (alone.cheapest is not None, alone.as_cheap) == (True, ())
    (none,) = ladders([without(one, "energy_per_output_token_j") for one in run])
    assert (none.cheapest, none.as_cheap) == (None, ())


def test_batches_between_servers_have_no_rate_and_hide_none() -> None:
    batch = replace(without(RUN[0], "offered_requests_per_s"), factors={})
    (found,) = ladders([batch, RUN[1], batch, RUN[2]])
    assert [level.load for level in found.levels] == [1, 2]


def test_a_load_is_the_study_s_own_number_even_where_the_measured_one_is_near_it() -> None:
    asked = replace(RUN[1], factors={RATE: 1.25, USERS: 7})
    assert ladders([asked])[0].levels[0].load == 1.25
    users = in_a_closed_loop(2)
    users = replace(users, factors={USERS: 3, RATE: 9})
    assert ladders([users])[0].levels[0].load == 3.0


def test_rates_that_are_all_the_same_have_no_knee() -> None:
    (found,) = ladders([replace(measured(n, tail_s=n, joules=1), factors={RATE: 5}) for n in (1, 2, 3, 9)])
    assert len(found.levels) == 4
    assert found.knee is None


@pytest.mark.parametrize("known", [("p99", "p95", "p90"), ("p95", "p90"), ("p90",)])
def test_the_tail_is_the_highest_of_the_percentiles_that_are_told(known: tuple[str, ...]) -> None:
    one = without(RUN[1], "e2el_p99_s")
    more = [
        MetricSummary(f"e2el_{name}_s", described)
        for name in ("p90", *known)
        if (described := describe([1.0, 1.1, 1.2])) is not None
    ]
    (found,) = ladders([replace(one, metrics=(*one.metrics, *more))])
    assert found.tail == f"e2el_{known[0]}_s"
