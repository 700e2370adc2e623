"""A profile of a board makes no energy worse: the benchmark of the published boards, with a few windows a load."""

from __future__ import annotations

import itertools

import pytest

from benchmarks.boards import WATCHES, Simulated, simulated

PERIODS_S = (0.020, 0.100, 0.101)
"""Of the registers of the published boards."""


@pytest.fixture(scope="module")
def rows() -> dict[tuple[float, str], Simulated]:
    return {(row.period_s, row.watches): row for row in simulated(8)}


@pytest.mark.parametrize(("period_s", "watches"), [*itertools.product(PERIODS_S, WATCHES)])
def test_the_error_of_an_energy_with_a_profile_is_not_larger(
    period_s: float, watches: str, rows: dict[tuple[float, str], Simulated]
) -> None:
    mean, off = rows[period_s, watches].difference
    assert mean - off <= 0
    assert len(rows) == len(PERIODS_S) * len(WATCHES)


@pytest.mark.parametrize("watches", ["the one at the begin", "none"])
def test_a_profile_is_worth_most_where_few_of_the_register_s_moves_were_seen(
    watches: str, rows: dict[tuple[float, str], Simulated]
) -> None:
    mean, off = rows[0.020, watches].difference
    assert mean + off < 0
