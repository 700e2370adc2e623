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


def test_a_request_that_failed_is_no_empty_answer() -> None:
    failed = {**_row(0, None), "status": "timeout"}
    answered = {**_row(0, None, 20), "status": "ok"}
    found = output_equivalence([_row(0, None, 20)], [failed, answered])
    assert (found.prompts, found.empty_candidate_ratio, found.finding) == (1, 0.0, "cannot tell")
    assert output_equivalence([_row(0, None, 20)], [failed]).prompts == 0


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


def test_shares_and_means_are_those_of_the_prompts_that_both_answered() -> None:
    broken = [*range(12), *[7] * 8]
    before = [_row(0, ANSWER), _row(1, []), _row(2, broken), _row(3, ANSWER[:10]), _row(7, ANSWER)]
    after = [_row(3, ANSWER[:5]), _row(2, broken), _row(1, []), _row(0, broken), _row(9, ANSWER)]
    found = output_equivalence(before, after)
    # Equal places: 0: 12 of 20; 1: both empty; 2: all; 3: 5 of 10.
    assert (found.prompts, found.identical_ratio) == (4, 0.5)
    assert found.token_agreement_ratio == pytest.approx((12 / 20 + 1 + 1 + 5 / 10) / 4)
    assert (found.mean_tokens_baseline, found.mean_tokens_candidate) == (50 / 4, 45 / 4)
    assert (found.empty_baseline_ratio, found.empty_candidate_ratio) == (0.25, 0.25)
    assert found.looping_candidate_ratio == 0.25  # the other one ended so before, too
    assert found.reason == "answers of the candidate end in one repeated token"


def test_the_first_measured_answer_to_a_prompt_counts() -> None:
    warm, unknown = {**_row(0, [9]), "phase": "warmup"}, {**_row(0, [9]), "prompt_index": None}
    found = output_equivalence([warm, unknown, _row(0, ANSWER), _row(0, [9])], [_row(0, ANSWER)])
    assert (found.finding, found.reason) == ("same", "100.0% of the tokens agree")


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        (20, 30, "answers are 50% longer, so the work is not the same"),
        (20, 10, "answers are 50% shorter, so the work is not the same"),
        (0, 10, "token ids were not kept; lengths agree"),  # no ratio to nothing
        (10, 0, "the candidate leaves more prompts without an answer"),
        (None, 0, "token ids were not kept; lengths agree"),
    ],
)
def test_lengths_of_answers_that_were_not_kept(before: int | None, after: int, reason: str) -> None:
    found = output_equivalence([_row(0, None, before)], [_row(0, None, after)])
    assert found.reason == reason
    shares = (found.identical_ratio, found.token_agreement_ratio, found.looping_candidate_ratio)
    assert shares == (None, None, None)


def test_one_side_without_token_ids_is_compared_by_length() -> None:
    assert output_equivalence([_row(0, ANSWER)], [_row(0, None, 20)]).finding == "cannot tell"
    assert output_equivalence([], [_row(0, ANSWER)]).reason == "no prompt was answered by both sides"


def test_seven_equal_tokens_are_no_loop_and_only_the_end_counts() -> None:
    assert not loops([1, *[5] * 7])
    assert not loops([*[5] * 8, 1])
    assert loops([5, 5], run=2)
