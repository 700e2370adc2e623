from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from llem_airflow.study.plan.order import balanced, gaps_s, ordered
from tests.study.texts import HEAD, study

THREE = "sweep:\n  task.random_seed: [1, 2, 3]\n"


def _letters(count: int, cycles: int, order: str, seed: int = 1) -> str:
    return "".join("ABCDEFGH"[index] for index, _ in ordered(count, cycles, order, seed))


@pytest.mark.parametrize(
    ("order", "expected"), [("sequential", "AAABBB"), ("interleave", "ABABAB"), ("reverse", "ABBAAB")]
)
def test_the_orders_are_those_of_the_grammar(order: str, expected: str) -> None:
    assert _letters(2, 3, order) == expected


@pytest.mark.parametrize("order", ["sequential", "interleave", "shuffle", "reverse", "latin_square"])
def test_every_order_runs_every_cycle_of_every_experiment_once(order: str) -> None:
    runs = ordered(5, 7, order, 3)
    assert sorted(runs) == [(index, cycle) for index in range(5) for cycle in range(1, 8)]


def test_shuffle_permutes_each_pass_and_follows_its_seed() -> None:
    passes = [_letters(6, 4, "shuffle")[k * 6 : k * 6 + 6] for k in range(4)]
    assert all(sorted(each) == list("ABCDEF") for each in passes)
    assert len(set(passes)) > 1
    assert _letters(6, 4, "shuffle", 1) == _letters(6, 4, "shuffle", 1) != _letters(6, 4, "shuffle", 2)


def test_the_shuffle_of_a_study_follows_from_the_study() -> None:
    execution = "study_execution: {n_cycles: 3, experiment_order: shuffle"
    body = f"sweep:\n  task.random_seed: [1, 2, 3, 4, 5, 6]\n{execution}"
    one, again = study(body + "}\n"), study(body + "}\n")
    assert one.plan.to_json()["order"] == again.plan.to_json()["order"]
    assert one.plan.to_json()["order"] != study(body + ", shuffle_seed: 5}\n").plan.to_json()["order"]


def williams(count: int) -> list[list[int]]:
    """Williams' design as the paper builds it: all rows at once."""
    first = [(step + 1) // 2 if step % 2 else (count - step // 2) % count for step in range(count)]
    rows = [[(item + shift) % count for item in first] for shift in range(count)]
    return rows if count % 2 == 0 else [*rows, *[row[::-1] for row in rows]]


@pytest.mark.parametrize("count", range(1, 12))
def test_williams_designs_are_balanced_for_every_number_of_experiments(count: int) -> None:
    rows = williams(count)
    assert len(rows) == (count if count % 2 == 0 else 2 * count)
    follows = Counter(pair for row in rows for pair in pairwise(row))
    assert len(follows) == count * (count - 1)
    assert len(set(follows.values())) <= 1
    for position in range(count):
        assert len(set(Counter(row[position] for row in rows).values())) == 1


@pytest.mark.parametrize("count", [1, 4, 5])
def test_latin_square_runs_the_rows_of_the_design(count: int) -> None:
    rows = williams(count)
    found = [index for index, _ in ordered(count, 2 * len(rows), "latin_square", 0)]
    assert found == [index for row in rows * 2 for index in row]


@pytest.mark.parametrize(
    ("count", "cycles", "expected"),
    [(4, 4, True), (4, 8, True), (4, 6, False), (3, 6, True), (3, 3, False), (1, 1, True)],
)
def test_a_latin_square_says_whether_it_is_balanced(count: int, cycles: int, expected: bool) -> None:
    assert balanced(count, cycles, "latin_square") is expected


def test_an_unbalanced_latin_square_is_told() -> None:
    body = THREE + "study_execution: {n_cycles: 3, experiment_order: latin_square}\n"
    texts = [str(notice) for notice in study(body).warnings]
    assert texts == ["latin_square of 3 experiments is balanced for 6 cycles or a multiple of it, not for 3"]


def test_the_long_gap_falls_between_blocks_in_sequential_and_between_passes_in_the_others() -> None:
    assert gaps_s(ordered(2, 3, "sequential", 0), "sequential", 1, 9) == [0, 1, 1, 9, 1, 1]
    assert gaps_s(ordered(2, 3, "interleave", 0), "interleave", 1, 9) == [0, 1, 9, 1, 9, 1]
    assert gaps_s(ordered(2, 2, "reverse", 0), "reverse", 1, 9) == [0, 1, 9, 1]


def test_one_experiment_has_passes_and_one_cycle_has_neither() -> None:
    assert gaps_s(ordered(1, 3, "sequential", 0), "sequential", 1, 9) == [0, 9, 9]
    assert gaps_s(ordered(3, 1, "sequential", 0), "sequential", 1, 9) == [0, 1, 1]
    assert gaps_s([], "sequential", 1, 9) == []


@pytest.mark.parametrize(
    ("meter", "expected"),
    [
        ("auto", [0, 60, 300, 60]),
        ("nvml", [0, 60, 300, 60]),
        ("cpu-estimate", [0, 0, 0, 0]),
        ("none", [0, 0, 0, 0]),
    ],
)
def test_thermal_gaps_are_there_by_default_on_a_gpu_meter_only(meter: str, expected: list[int]) -> None:
    body = (
        "sweep:\n  task.random_seed: [1, 2]\nstudy_execution: {n_cycles: 2, experiment_order: interleave}\n"
    )
    found = study(body, head=HEAD.replace("cpu-estimate", meter))
    assert found.plan.to_json()["gaps"] == expected


def test_written_gaps_win() -> None:
    body = (
        "sweep:\n  task.random_seed: [1, 2]\n"
        "study_execution: {n_cycles: 2, experiment_gap_seconds: 2, cycle_gap_seconds: 0}\n"
    )
    assert study(body).plan.to_json()["gaps"] == [0, 2, 0, 2]
