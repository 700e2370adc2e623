"""Same answer, less energy? A cheap look at what two experiments answered, beside every comparison."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LENGTH_TOLERANCE_RATIO = 0.10
AGREEMENT_SAME_RATIO = 0.99


@dataclass(frozen=True, slots=True)
class AnswerCheck:
    """How the candidate's answers compare with the baseline's.

    Attributes:
        prompts: Prompts that both answered.
        identical_ratio: Share of them with the same token ids; None when ids were not kept.
        token_agreement_ratio: Equal tokens at equal places / longer answer, mean over prompts.
        mean_tokens_baseline: Mean length of the baseline's answers, in tokens.
        mean_tokens_candidate: Mean length of the candidate's answers, in tokens.
        empty_baseline_ratio: Share of the baseline's answers without a token.
        empty_candidate_ratio: Share of the candidate's answers without a token.
        looping_candidate_ratio: Share of answers that end in one repeated token, unlike the baseline's.
        finding: ``same``, ``differs``, ``suspicious`` or ``cannot tell``.
        reason: One sentence.
    """

    prompts: int
    identical_ratio: float | None
    token_agreement_ratio: float | None
    mean_tokens_baseline: float | None
    mean_tokens_candidate: float | None
    empty_baseline_ratio: float | None
    empty_candidate_ratio: float | None
    looping_candidate_ratio: float | None
    finding: str
    reason: str


def check_answers(
    baseline: Iterable[Mapping[str, Any]], candidate: Iterable[Mapping[str, Any]]
) -> AnswerCheck:
    """Compare the first answer to each prompt.

    Args:
        baseline: Rows of requests.parquet of one cycle.
        candidate: The same of the other side.
    """
    a, b = _first_answers(baseline), _first_answers(candidate)
    both = sorted(a.keys() & b.keys())
    if not both:
        return AnswerCheck(0, *(None,) * 7, "cannot tell", "no prompt was answered by both sides")
    pairs = [(a[key], b[key]) for key in both]
    kept = all(row["output_token_ids"] is not None for pair in pairs for row in pair)
    ids = [(one["output_token_ids"], other["output_token_ids"]) for one, other in pairs] if kept else []
    lengths = [(int(one["output_tokens"] or 0), int(other["output_tokens"] or 0)) for one, other in pairs]
    n = len(pairs)
    measured = AnswerCheck(
        prompts=n,
        identical_ratio=sum(list(x) == list(y) for x, y in ids) / n if ids else None,
        token_agreement_ratio=sum(agreement_ratio(x, y) for x, y in ids) / n if ids else None,
        mean_tokens_baseline=sum(x for x, _ in lengths) / n,
        mean_tokens_candidate=sum(y for _, y in lengths) / n,
        empty_baseline_ratio=sum(x == 0 for x, _ in lengths) / n,
        empty_candidate_ratio=sum(y == 0 for _, y in lengths) / n,
        looping_candidate_ratio=sum(loops(y) and not loops(x) for x, y in ids) / n if ids else None,
        finding="",
        reason="",
    )
    finding, reason = _judged(measured)
    return AnswerCheck(**{**_fields(measured), "finding": finding, "reason": reason})


def agreement_ratio(one: Sequence[int], other: Sequence[int]) -> float:
    """Positions with the same token / length of the longer answer; two empty answers agree."""
    longest = max(len(one), len(other))
    return sum(x == y for x, y in zip(one, other, strict=False)) / longest if longest else 1.0


def loops(ids: Sequence[int], run: int = 8) -> bool:
    """Whether an answer ends in one token, ``run`` times or more: how a broken model often answers."""
    tail = list(ids[-run:])
    return len(tail) == run and len(set(tail)) == 1


def _judged(found: AnswerCheck) -> tuple[str, str]:
    before, after = found.mean_tokens_baseline or 0.0, found.mean_tokens_candidate or 0.0
    if (found.empty_candidate_ratio or 0.0) > (found.empty_baseline_ratio or 0.0):
        return "suspicious", "the candidate leaves more prompts without an answer"
    if before and abs(after - before) / before > LENGTH_TOLERANCE_RATIO:
        word = "longer" if after > before else "shorter"
        return "suspicious", f"answers are {abs(after / before - 1):.0%} {word}, so the work is not the same"
    if (found.looping_candidate_ratio or 0.0) > 0.1:
        return "suspicious", "answers of the candidate end in one repeated token"
    if found.token_agreement_ratio is None:
        return "cannot tell", "token ids were not kept; lengths agree"
    if found.token_agreement_ratio >= AGREEMENT_SAME_RATIO:
        return "same", f"{found.token_agreement_ratio:.1%} of the tokens agree"
    return (
        "differs",
        f"{found.token_agreement_ratio:.1%} of the tokens agree; check the quality of the answers",
    )


def _first_answers(rows: Iterable[Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
    found: dict[int, Mapping[str, Any]] = {}
    for row in rows:
        if row["phase"] == "measure" and row["prompt_index"] is not None:
            found.setdefault(int(row["prompt_index"]), row)
    return found


def _fields(found: AnswerCheck) -> dict[str, Any]:
    return {name: getattr(found, name) for name in found.__dataclass_fields__}
