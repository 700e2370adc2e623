"""What one has to have in common for a place on the leaderboard, and the order of boards and places."""

from __future__ import annotations

from typing import Any

import pytest

from llem_airflow.analysis import hosts, leaderboard
from llem_airflow.analysis.leaderboard import LATENCIES, Entrant, boards


def entrant(
    workload: str, model: str, joules: float, latency_s: float | None = 0.1, **changes: Any
) -> Entrant:
    told: dict[str, Any] = {
        "source": {}, "model": model, "hardware": "h", "engine": "e", "workload": workload,
        "energy_kind": "measured", "n": 3, "energy_per_output_token_j": joules, "low_j": joules * 0.9,
        "high_j": joules * 1.1, "output_tokens_per_s": None, "latencies_s": {"ttft_mean_s": latency_s},
    }  # fmt: skip
    return Entrant(**told | changes)


def test_the_board_with_most_places_comes_first_then_with_most_beyond_then_by_name() -> None:
    found = boards(
        [
            entrant("d", "m", 1.0),
            entrant("c", "m", 1.0),
            entrant("b", "m", 1.0), entrant("b", "slow", 1.0, 0.3),
            entrant("a", "slow", 1.0, 0.3),
            entrant("e", "m", 1.0), entrant("e", "n", 1.0),
        ],
        limit_s=0.2,
    )  # fmt: skip
    assert [one.workload for one in found] == ["e", "b", "c", "d", "a"]


def test_beyond_the_limit_the_quickest_stands_and_of_equally_quick_ones_the_most_frugal() -> None:
    quick = [entrant("w", "m", joules, 0.3) for joules in (3.0, 1.0, 2.0)]
    (board,) = boards([entrant("w", "m", 0.5, 0.4), *quick, entrant("w", "m", 0.1, None)], limit_s=0.2)
    assert (board.ranked, board.beyond) == ((), (quick[1],))
    (board,) = boards([entrant("w", "m", 1.0, 2.5)], limit_s=2.5)
    assert len(board.ranked) == 1


def test_intervals_that_touch_are_level() -> None:
    first = entrant("w", "m", 1.0)
    touching, apart = (entrant("w", name, 2.0, low_j=low) for name, low in (("n", 1.1), ("o", 1.11)))
    unknown = entrant("w", "p", 3.0, low_j=None)
    (board,) = boards([unknown, apart, touching, first])
    assert {one.entrant.model: one.level for one in board.ranked} == {
        "m": False,
        "n": True,
        "o": False,
        "p": True,
    }
    (board,) = boards([entrant("w", "m", 1.0, high_j=None), apart])
    assert [one.level for one in board.ranked] == [False, True]
    assert [one.rank for one in board.ranked] == [1, 2]


def test_latencies_that_a_limit_may_be_set_on() -> None:
    assert len(LATENCIES) == 15
    assert (LATENCIES[0], LATENCIES[7], LATENCIES[-1]) == ("ttft_mean_s", "tpot_p90_s", "e2el_p99_s")
    with pytest.raises(ValueError, match="latency 'itl_mean_s': choose one of ttft_mean_s, "):
        boards([], "itl_mean_s")
    with pytest.raises(ValueError, match="limit 0: a number of seconds above 0, or none"):
        boards([], limit_s=0)
    assert boards([]) == []


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, ""),
        ({"cpu": "EPYC", "gpus": None}, "EPYC"),
        (
            {"cpu": "EPYC", "gpus": [{"name": "A"}, {"name": "B"}, {"name": "A"}, {}, "odd"]},
            "2 x A + 1 x B + 1 x GPU",
        ),
    ],
)
def test_hardware_is_the_boards_else_the_processor(fields: dict[str, Any], said: str) -> None:
    assert hosts.kind_of(fields) == said


@pytest.mark.parametrize(
    ("fields", "config", "boundary", "said"),
    [
        ({}, {}, None, "prompts (not known), batches, energy of what is not known, formulas ?"),
        (
            {"prompts_sha256": "0123456789", "n_prompts": 1, "energy_semantics": 6},
            {"task": {"dataset": {"source": "aienergyscore"}, "max_output_tokens": 16, "max_input_tokens": None}},
            "board",
            (
                "1 prompt aienergyscore (01234567), max_input_tokens \N{EN DASH}, max_output_tokens 16, batches, "
                "energy of board, formulas 6"
            ),
        ),
        (
            {"n_prompts": 8},
            {
                "task": "odd",
                "serving_mode": "server",
                "server": {
                    "traffic": {
                        "rate": 2.0, "slo": {}, "seed": 1, "request_timeout_seconds": 9,
                        "arrivals": "poisson", "x": None,
                    }
                },
            },
            "module",
            "8 prompts (not known), served (open loop, arrivals poisson), energy of module, formulas ?",
        ),
        (
            {},
            {"serving_mode": "server", "server": {"traffic": {}}},
            "board",
            "prompts (not known), batches, energy of board, formulas ?",
        ),
        (
            {},
            {"serving_mode": "offline", "server": {"traffic": {"rate": 2}}},
            "board",
            "prompts (not known), batches, energy of board, formulas ?",
        ),
    ],
)  # fmt: skip
def test_a_workload_is_what_was_asked_and_what_the_joules_include(
    fields: dict[str, Any], config: dict[str, Any], boundary: str | None, said: str
) -> None:
    assert leaderboard._workload(fields, config, boundary) == said
