from __future__ import annotations

from typing import Any

import pytest

from llem_airflow.analysis.compare import agreement_ratio, loops, output_equivalence


def _row(prompt: int, ids: list[int] | None, tokens: int | None = None) -> dict[str, Any]:
    length = len(ids) if ids is not None else tokens
    return {"phase": "measure", "prompt_index": prompt, "output_tokens": length, "output_token_ids": ids}


ANSWER = list(range(20))


def test_the_same_tokens_are_the_same_answer() -> None:
    found = output_equivalence([_row(0, ANSWER)], [_row(0, ANSWER)])
    assert (found.finding, found.identical_ratio, found.token_agreement_ratio) == ("same", 1.0, 1.0)


def test_other_tokens_differ() -> None:
    found = output_equivalence([_row(0, ANSWER)], [_row(0, [*range(15), 90, 91, 92, 93, 94])])
    assert found.finding == "differs"
    assert found.identical_ratio == 0.0
    assert found.token_agreement_ratio == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("ids", "reason"),
    [([], "without an answer"), (ANSWER[:10], "50% shorter"), ([*range(8), *[7] * 12], "one repeated token")],
)
def test_a_broken_model_is_not_praised(ids: list[int], reason: str) -> None:
    found = output_equivalence([_row(0, ANSWER)], [_row(0, ids)])
    assert found.finding == "suspicious"
    assert reason in found.reason


def test_answers_without_token_ids_are_compared_by_length_only() -> None:
    found = output_equivalence([_row(0, None, 20)], [_row(0, None, 20)])
    assert found.finding == "cannot tell"
    assert found.identical_ratio is None


def test_sides_that_answered_different_prompts_cannot_be_told() -> None:
    assert output_equivalence([_row(0, ANSWER)], [_row(1, ANSWER)]).finding == "cannot tell"


def test_agreement_counts_equal_positions() -> None:
    assert agreement_ratio([1, 2, 3], [1, 9, 3, 4]) == pytest.approx(0.5)
    assert agreement_ratio([], []) == 1.0


def test_only_a_long_repetition_is_a_loop() -> None:
    assert loops([1, *[5] * 8])
    assert not loops([5] * 7)


@pytest.mark.parametrize(("tokens", "may_be_the_same"), [(22, True), (18, True), (23, False), (17, False)])
def test_lengths_may_differ_by_a_tenth(tokens: int, may_be_the_same: bool) -> None:
    found = output_equivalence([_row(0, None, 20)], [_row(0, None, tokens)])
    assert found.finding == ("cannot tell" if may_be_the_same else "suspicious")


@pytest.mark.parametrize(("other", "finding"), [(1, "same"), (2, "differs")])
def test_answers_are_the_same_up_to_one_token_in_a_hundred(other: int, finding: str) -> None:
    answer = list(range(100))
    found = output_equivalence([_row(0, answer)], [_row(0, [*answer[:-other], *[-1] * other])])
    assert found.finding == finding


@pytest.mark.parametrize(("looping", "finding"), [(1, "differs"), (2, "suspicious")])
def test_one_answer_in_ten_may_end_in_one_repeated_token(looping: int, finding: str) -> None:
    broken = [*range(12), *[7] * 8]
    before = [_row(prompt, ANSWER) for prompt in range(10)]
    after = [_row(prompt, broken if prompt < looping else ANSWER) for prompt in range(10)]
    assert output_equivalence(before, after).finding == finding
