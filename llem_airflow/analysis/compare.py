"""Two runs, or two experiments of a run: which metrics changed, and are the outputs equivalent."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from llem_airflow.analysis.blocked import are_several
from llem_airflow.analysis.cycle import FACTORS
from llem_airflow.analysis.hosts import unequal_on_hosts
from llem_airflow.analysis.metrics import BY_NAME, deciding_metric, positive_threshold
from llem_airflow.analysis.plan import differing_keys, flatten
from llem_airflow.analysis.tables import RunRows, Side
from llem_airflow.analysis.verdict import (
    THRESHOLD_RATIO,
    Comparison,
    Hosts,
    Usual,
    Verdict,
    adjusted,
    compare,
    compare_pairs,
    usual_error,
)
from llem_airflow.protocol.typed_json import to_json
from llem_airflow.results import ResultReadError, StoredRun

LENGTH_TOLERANCE_RATIO = 0.10
AGREEMENT_SAME_RATIO = 0.99


@dataclass(frozen=True, slots=True)
class OutputEquivalence:
    """How the candidate's answers compare with the reference's.

    Attributes:
        prompts: Prompts that both answered.
        identical_ratio: Share of them with the same token ids; None when ids were not kept.
        token_agreement_ratio: Equal tokens at equal places / longer answer, mean over prompts.
        mean_tokens_baseline: Mean length of the reference's answers, in tokens.
        mean_tokens_candidate: Mean length of the candidate's answers, in tokens.
        empty_baseline_ratio: Share of the reference's answers without a token.
        empty_candidate_ratio: Share of the candidate's answers without a token.
        looping_candidate_ratio: Share of answers that end in one repeated token, unlike the reference's.
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


def output_equivalence(
    baseline: Iterable[Mapping[str, Any]], candidate: Iterable[Mapping[str, Any]]
) -> OutputEquivalence:
    """Compare the first answer to each prompt.

    Args:
        baseline: Rows of requests.parquet of one cycle.
        candidate: The same of the other side.
    """
    a, b = _first_answers(baseline), _first_answers(candidate)
    both = sorted(a.keys() & b.keys())
    if not both:
        return OutputEquivalence(0, *(None,) * 7, "cannot tell", "no prompt was answered by both sides")
    pairs = [(a[key], b[key]) for key in both]
    kept = all(row["output_token_ids"] is not None for pair in pairs for row in pair)
    ids = [(one["output_token_ids"], other["output_token_ids"]) for one, other in pairs] if kept else []
    lengths = [(int(one["output_tokens"] or 0), int(other["output_tokens"] or 0)) for one, other in pairs]
    n = len(pairs)
    measured = OutputEquivalence(
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
    return replace(measured, finding=finding, reason=reason)


def agreement_ratio(one: Sequence[int], other: Sequence[int]) -> float:
    """Positions with the same token / length of the longer answer; two empty answers agree."""
    longest = max(len(one), len(other))
    return sum(x == y for x, y in zip(one, other, strict=False)) / longest if longest else 1.0


def loops(ids: Sequence[int], run: int = 8) -> bool:
    """Whether an answer ends in one token, ``run`` times or more: how a broken model often answers."""
    tail = list(ids[-run:])
    return len(tail) == run and len(set(tail)) == 1


def _judged(found: OutputEquivalence) -> tuple[str, str]:
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
        if row["phase"] != "measure" or row["prompt_index"] is None:
            continue
        if row.get("status") in {None, "ok"}:  # what a server did not answer tells nothing of the model
            found.setdefault(int(row["prompt_index"]), row)
    return found


COMPARED = (
    "energy_per_output_token_j",
    "output_tokens_per_s",
    "ttft_mean_s",
    "tpot_mean_s",
    "e2el_mean_s",
    "energy_per_request_j",
)
"""Metrics of a comparison, the headline first. ``corrected`` says which p values are corrected together."""

TWO_RUNS = (
    "cycles of two runs were compared; where whole runs differ by 1 % by chance, one comparison in five is a false "
    "alarm. Measure both in one run (`--paired`), or see `llem-airflow history`"
)
"""The rate is that of benchmarks/error_rates.py."""


@dataclass(frozen=True, slots=True)
class How:
    """How to compare.

    Attributes:
        metric: The metric whose verdict counts; it comes first in every report.
        threshold_ratio: Smallest difference that matters.
        factor: Configuration key under study, to match experiments by all others.
        ignore: Conditions that may differ.
        paired: Cycle k of one experiment was measured next to cycle k of the other.
        without_flagged: Leave out cycles with a warning.
        answers: Whether the answers of both sides are read and compared; no verdict depends on it.

    Raises:
        ValueError: The metric cannot decide, or the threshold is not above 0.
    """

    metric: str = COMPARED[0]
    threshold_ratio: float = THRESHOLD_RATIO
    factor: str | None = None
    ignore: Collection[str] = ()
    paired: bool = False
    without_flagged: bool = False
    answers: bool = True

    def __post_init__(self) -> None:
        deciding_metric(self.metric)
        positive_threshold(self.threshold_ratio)


_USUALLY = How()


@dataclass(frozen=True)
class PairReport:
    """Reference against candidate.

    Attributes:
        baseline: ``run#experiment`` of the reference.
        candidate: ``run#experiment`` of the candidate.
        metrics: Comparison of each metric that both sides have.
        factors: What is under study and differs, keys of the configuration and fields of the fingerprint:
            ``{key: [baseline, candidate]}``.
        differences: Conditions that differ; when there are any, nothing is compared.
        answers: What the output check found; None when the requests were not, or cannot be, read.
        estimate: Whether the energies are estimates.
        excluded: Flagged cycles that were left out on request, by side.
    """

    baseline: str
    candidate: str
    metrics: dict[str, Comparison]
    factors: dict[str, Any]
    differences: dict[str, Any]
    answers: OutputEquivalence | None
    estimate: bool
    excluded: dict[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        """The verdict on the headline metric: energy per output token, else the first that there is."""
        return self.verdict_on(next(iter(self.metrics), ""))

    def verdict_on(self, metric: str) -> Verdict:
        """The verdict on one metric; without values of it there is not enough evidence."""
        if self.differences:
            return Verdict.NOT_COMPARABLE
        found = self.metrics.get(metric)
        return found.verdict if found else Verdict.NOT_ENOUGH_EVIDENCE

    @property
    def caution(self) -> str:
        """What a verdict from two runs cannot know; empty where there is no such verdict."""
        runs = {name.partition("#")[0] for name in (self.baseline, self.candidate)}
        if len(runs) == 1 or self.verdict not in {Verdict.REGRESSION, Verdict.IMPROVEMENT}:
            return ""
        return TWO_RUNS

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        told: dict[str, Any] = to_json(self)
        return {**told, "verdict": str(self.verdict), "caution": self.caution}


def compare_runs(
    baseline: StoredRun | RunRows, candidate: StoredRun | RunRows, how: How = _USUALLY
) -> list[PairReport]:
    """Compare what two runs have in common.

    Experiments are matched by their identity, and then by their id, which stays the same over the releases of a
    model; what differs is named. With ``how.factor``, a dotted key of the configuration such as ``task.model``, they
    are matched by everything but that key.

    Args:
        baseline: The run to compare against.
        candidate: The run in question.
        how: How to compare; runs are not compared in pairs.

    Raises:
        ResultReadError: A run was not aggregated.
    """
    before, after = RunRows.of(baseline), RunRows.of(candidate)
    ours, theirs = (rows.sides(without_flagged=how.without_flagged) for rows in (before, after))
    pairs = [
        (ours[one], theirs[other])
        for one, other in matched(before, after, how.factor).items()
        if one in ours and other in theirs
    ]
    usual = {name: _usual(pairs, name) for name in (how.metric, *COMPARED)}
    independent = replace(how, paired=False)
    return corrected([compare_sides(*pair, independent, usual) for pair in pairs])


def _usual(pairs: Sequence[tuple[Side, Side]], metric: str) -> Usual | None:
    """What all experiments of two runs say of how much cycles differ in a metric."""
    sides = [(one, one.values(metric), other, other.values(metric)) for one, other in pairs]
    return usual_error(
        ((list(ours.values()), list(theirs.values())) for _, ours, _, theirs in sides),
        (_hosts(*each) for each in sides),
    )


def _hosts(baseline: Side, ours: Iterable[int], candidate: Side, theirs: Iterable[int]) -> Hosts:
    """The hosts of the cycles of both sides."""
    before, after = baseline.hosts(), candidate.hosts()
    return [before[cycle] for cycle in ours], [after[cycle] for cycle in theirs]


def matched(baseline: RunRows, candidate: RunRows, factor: str | None = None) -> dict[str, str]:
    """Experiments that two runs have in common: the candidate's by the reference's."""
    if factor is not None:
        ours, theirs = baseline.by_all_but(factor), candidate.by_all_but(factor)
        return {ours[key]: theirs[key] for key in ours if key in theirs}
    return _same(baseline.hashes, candidate.hashes)


def _same(hashes: dict[str, str], others: dict[str, str]) -> dict[str, str]:
    """Experiments of the same identity, and then of the same id."""
    by_hash = {hash_: name for name, hash_ in others.items() if hash_}
    found = {name: by_hash[hash_] for name, hash_ in hashes.items() if hash_ in by_hash}
    taken = set(found.values())
    found |= {name: name for name in hashes if name not in found and name in others and name not in taken}
    return {name: found[name] for name in hashes if name in found}


def unmatched(
    baseline: StoredRun | RunRows, candidate: StoredRun | RunRows, factor: str | None = None
) -> tuple[list[str], list[str]]:
    """Experiments that only the reference has, and those that only the candidate has."""
    before, after = RunRows.of(baseline), RunRows.of(candidate)
    pairs = matched(before, after, factor)
    theirs = set(pairs.values())
    return [name for name in before.hashes if name not in pairs], [
        name for name in after.hashes if name not in theirs
    ]


def compare_sides(
    baseline: Side,
    candidate: Side,
    how: How = _USUALLY,
    usual: Mapping[str, Usual | None] | None = None,
) -> PairReport:
    """Compare two sides, when their conditions are equal.

    Args:
        baseline: The side to compare against.
        candidate: The side in question.
        how: How to compare.
        usual: What all experiments say of how much cycles differ, by metric.

    Raises:
        ValueError: In pairs, and the cycles were not measured next to each other.
    """
    if how.paired:
        _require_neighbours(baseline, candidate)
    unequal = _unequal(baseline, candidate)
    factors = {key: value for key, value in unequal.items() if key in FACTORS or key == "experiment_hash"}
    differences = {
        key: value for key, value in unequal.items() if key not in factors and key not in how.ignore
    }
    factors = _named(factors, baseline, candidate)
    wanted = () if differences else tuple(dict.fromkeys((how.metric, *COMPARED)))
    kinds = {str(row["energy_kind"]) for row in (*baseline.rows, *candidate.rows)}
    return PairReport(
        baseline=baseline.name,
        candidate=candidate.name,
        metrics=_metrics(baseline, candidate, wanted, how, usual or {}),
        factors=factors,
        differences=differences,
        answers=_answers(baseline, candidate) if how.answers else None,
        estimate="estimate" in kinds,
        excluded={"baseline": list(baseline.excluded), "candidate": list(candidate.excluded)},
    )


def _unequal(baseline: Side, candidate: Side) -> dict[str, Any]:
    """Fields of the fingerprint that are not one and the same on both sides, with the values of both."""
    ours, theirs = baseline.conditions(), candidate.conditions()
    if not (ours and theirs):
        ours, theirs = ({"cycles_with_a_result": [str(len(one.rows))]} for one in (baseline, candidate))
    elif are_several([*baseline.hosts().values()]) or are_several([*candidate.hosts().values()]):
        found = unequal_on_hosts(baseline.conditions_by_host(), candidate.conditions_by_host())
        return {key: [_readable(one), _readable(other)] for key, (one, other) in found.items()}
    return {
        key: [_readable(ours.get(key)), _readable(theirs.get(key))]
        for key in sorted({*ours, *theirs})
        if ours.get(key) != theirs.get(key) or len(ours.get(key, [])) > 1
    }


def _named(factors: dict[str, Any], baseline: Side, candidate: Side) -> dict[str, Any]:
    """The factors with the keys of the configuration that differ in the place of the experiment's hash.

    The hash stays where the plans do not tell them. What the fingerprint names already is not named twice.
    """
    if "experiment_hash" not in factors:
        return factors
    ours, theirs = flatten(baseline.config), flatten(candidate.config)
    rest = {key: value for key, value in factors.items() if key != "experiment_hash"}
    keys = [key for key in differing_keys(ours, theirs) if key.rpartition(".")[2] not in rest]
    if not keys:
        return rest or factors
    return {key: [ours.get(key), theirs.get(key)] for key in keys} | rest


def corrected(reports: Sequence[PairReport]) -> list[PairReport]:
    """The reports with their p values corrected over the experiments.

    The metric that decides, the first of each report, is a family of its own: what is looked at beside it must not cost
    it power. The others are one family together, except those that derive from energy: they say the same as each other
    in other units, so each is a family of its own and counts nowhere else.
    """
    families: dict[str, list[tuple[int, str]]] = {}
    for index, report in enumerate(reports):
        for place, name in enumerate(report.metrics):
            family = "decides" if place == 0 else name if BY_NAME[name].energy else "others"
            families.setdefault(family, []).append((index, name))
    by_report = [dict(report.metrics) for report in reports]
    for members in families.values():
        found = adjusted([reports[index].metrics[name] for index, name in members])
        for (index, name), comparison in zip(members, found, strict=True):
            by_report[index][name] = comparison
    return [replace(report, metrics=metrics) for report, metrics in zip(reports, by_report, strict=True)]


def _require_neighbours(baseline: Side, candidate: Side) -> None:
    """Cycle k of both must lie in the same pass over the experiments of one run.

    Raises:
        ValueError: They do not; pairs would be a matter of numbering.
    """
    advice = (
        "measure both in one run with `experiment_order: reverse` (A B B A), or compare them without pairs"
    )
    if baseline.run.url != candidate.run.url:
        raise ValueError(f"{baseline.name} and {candidate.name} are no pairs: two runs; {advice}")
    ours, theirs = baseline.positions(), candidate.positions()
    apart = [k for k in sorted(ours.keys() & theirs.keys()) if abs(ours[k] - theirs[k]) >= baseline.beside]
    if apart:
        raise ValueError(
            f"{baseline.name} and {candidate.name} are no pairs: cycles {', '.join(map(str, apart))} were not "
            f"measured next to each other; {advice}"
        )
    where = baseline.hosts(), candidate.hosts()
    moved = [k for k in sorted(where[0].keys() & where[1].keys()) if where[0][k] != where[1][k]]
    if moved:
        raise ValueError(
            f"{baseline.name} and {candidate.name} are no pairs: cycles {', '.join(map(str, moved))} were measured on "
            "different hosts; compare them without pairs, which compares them within each host"
        )


def _metrics(
    baseline: Side, candidate: Side, wanted: Sequence[str], how: How, usual: Mapping[str, Usual | None]
) -> dict[str, Comparison]:
    found = {}
    for name in wanted:
        ours, theirs, better = baseline.values(name), candidate.values(name), BY_NAME[name].better
        if how.paired:
            cycles = sorted(ours.keys() & theirs.keys())
            pairs = [ours[k] for k in cycles], [theirs[k] for k in cycles]
            if cycles:
                found[name] = compare_pairs(*pairs, better, threshold_ratio=how.threshold_ratio)
        elif ours and theirs:
            found[name] = compare(
                list(ours.values()),
                list(theirs.values()),
                better,
                threshold_ratio=how.threshold_ratio,
                usual=usual.get(name),
                hosts=_hosts(baseline, ours, candidate, theirs),
            )
    return found


def _answers(baseline: Side, candidate: Side) -> OutputEquivalence | None:
    try:
        return output_equivalence(_requests(baseline), _requests(candidate))
    except ResultReadError:
        return None


def _requests(one: Side) -> list[dict[str, Any]]:
    columns = ["phase", "prompt_index", "output_tokens", "output_token_ids", "status"]
    for row in one.rows[:1]:
        ref = one.run.cycle(one.experiment, int(row["cycle"]))
        if ref is not None:
            rows: list[dict[str, Any]] = ref.requests(columns, optional=("status",)).to_pylist()
            return rows
    raise ResultReadError(f"{one.run.url}: no cycle of {one.experiment}")


def _readable(values: list[str] | None) -> Any:
    if not values:
        return None
    decoded = [json.loads(value) for value in values]
    return decoded[0] if len(decoded) == 1 else decoded
