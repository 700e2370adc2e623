"""A server over its rates: what is the knee, and which rate is the cheapest that meets the bounds."""

from __future__ import annotations

from typing import Any

import pytest

from llem_airflow.analysis.across_rates import RATE, ladders
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
    assert [level.rate_per_s for level in found.levels] == [1, 2, 4, 8]
    assert found.tail == "e2el_p99_s"
    assert found.knee is not None
    assert found.knee.rate_per_s == 4


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
    assert found.cheapest.rate_per_s == 4  # 8 is cheaper, and misses them
    (some,) = ladders([measured(1, tail_s=1, joules=2), measured(2, tail_s=1, joules=1, met=2 / 3)])
    assert some.cheapest is not None
    assert some.cheapest.rate_per_s == 1
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


def test_the_rates_are_drawn_and_a_batch_has_no_such_section() -> None:
    picture = rates(ladders(RUN))
    assert picture is not None
    assert "requests/s, offered" in picture
    assert rates(ladders(RUN[:1])) is None
    assert under_load([], {}) is None
    assert ladders([]) == ()
