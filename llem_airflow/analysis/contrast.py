"""Experiments of one run against the first of them, and the sentence that answers the study's question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llem_airflow.analysis import formatting
from llem_airflow.analysis.cycle import Cycle
from llem_airflow.analysis.hosts import kinds_of, n_text, on_hosts
from llem_airflow.analysis.metrics import BY_NAME
from llem_airflow.analysis.plan import single_factor_levels
from llem_airflow.analysis.statistics import SHOWN_FROM_N, describe
from llem_airflow.analysis.verdict import ALPHA, THRESHOLD_RATIO, compare, compare_pairs
from llem_airflow.protocol.typed_json import UNLESS_DEFAULT
from llem_airflow.text.wording import counted

LOWER, HIGHER, SAME, UNDECIDED = "lower", "higher", "no difference", "not enough evidence"


@dataclass(frozen=True)
class Measured:
    """One experiment of a run with the cycles that were measured.

    Attributes:
        id: ``<slug>-<hash8>``.
        label: Name for people.
        factors: What sets it apart from the others.
        rows: Its cycles with a result.
    """

    id: str
    label: str
    factors: Mapping[str, Any]
    rows: tuple[Cycle, ...]

    @property
    def hosts(self) -> dict[int, str]:
        """Host by cycle."""
        return {row.cycle: row.host for row in self.rows if row.cycle is not None}

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of hardware that measured it."""
        return kinds_of(row.fingerprint for row in self.rows)

    def values(self, metric: str) -> dict[int, float]:
        """Positive values of the metric by cycle; a ratio of others is not defined."""
        known = {row.cycle: row.measures.get(metric) for row in self.rows}
        return {cycle: v for cycle, v in known.items() if cycle is not None and v is not None and v > 0}


@dataclass(frozen=True, slots=True)
class Contrast:
    """A candidate against the reference of its run, for one metric. Ratios are candidate / reference - 1.

    Attributes:
        metric: Name in ``metrics.METRICS``.
        reference: Id of the first experiment of the run.
        candidate: Id of the other.
        method: ``paired`` (within the passes of the run order), ``welch``, or ``blocked`` (within hosts).
        n_reference: Cycles of the reference; pairs where it is paired.
        n_candidate: Cycles of the candidate.
        difference_ratio: Ratio of the means - 1.
        low_ratio: Lower end of the 95 % interval, which holds for all contrasts of the run together; None where a
            side has one cycle.
        high_ratio: Upper end.
        p: Two-sided p of the t test.
        p_adjusted: p times the number of contrasts (Bonferroni), 1 at most.
        verdict: ``lower`` or ``higher`` where the interval excludes 0, ``no difference`` where it lies within the
            threshold, else ``not enough evidence``.
        hosts: Hosts that measured both.
    """

    metric: str
    reference: str
    candidate: str
    method: str
    n_reference: int
    n_candidate: int
    difference_ratio: float
    low_ratio: float | None
    high_ratio: float | None
    p: float | None
    p_adjusted: float | None
    verdict: str
    hosts: int = field(default=1, metadata=UNLESS_DEFAULT)


def contrasts(experiments: Sequence[Measured], metric: str, beside: int) -> tuple[Contrast, ...]:
    """Each experiment against the first one.

    Args:
        experiments: Those that have a value, in the order of the plan.
        metric: Name of a metric that is positive.
        beside: Experiments that the run planned: the length of one pass of its order.
    """
    family = len(experiments) - 1
    return tuple(_contrast(experiments[0], one, metric, beside, family) for one in experiments[1:])


def _contrast(reference: Measured, candidate: Measured, metric: str, beside: int, family: int) -> Contrast:
    """By ``verdict.compare_pairs`` within the passes of the run order, else by ``verdict.compare`` (Welch's)."""
    a, b = reference.values(metric), candidate.values(metric)
    pairs = [cycle for cycle in a if cycle in b] if _in_passes(reference, candidate, beside) else []
    where = reference.hosts, candidate.hosts
    if any(where[0][cycle] != where[1][cycle] for cycle in pairs):
        pairs = []
    better, alpha = BY_NAME[metric].better, ALPHA / family
    if len(pairs) >= 2:
        hosts = len({where[0][cycle] for cycle in pairs})
        found = compare_pairs([a[k] for k in pairs], [b[k] for k in pairs], better, alpha=alpha)
    else:
        of_both = [where[0][cycle] for cycle in a], [where[1][cycle] for cycle in b]
        found = compare([*a.values()], [*b.values()], better, alpha=alpha, hosts=of_both)
        hosts = found.hosts
    return Contrast(
        metric=metric,
        reference=reference.id,
        candidate=candidate.id,
        method=found.method,
        n_reference=found.n_baseline,
        n_candidate=found.n_candidate,
        difference_ratio=found.difference_ratio or 0.0,  # values are above 0, so there always is one
        low_ratio=found.low_ratio,
        high_ratio=found.high_ratio,
        p=found.p,
        p_adjusted=None if found.p is None else min(1.0, found.p * family),
        verdict=_verdict(found.low_ratio, found.high_ratio),
        hosts=hosts,
    )


def _in_passes(one: Measured, other: Measured, beside: int) -> bool:
    """Whether cycle k of both lies in pass k over the experiments, so that slow drift hits both alike."""
    return all(
        row.cycle is not None and row.position is not None and row.position // beside == row.cycle - 1
        for row in (*one.rows, *other.rows)
    )


def _verdict(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return UNDECIDED
    if max(abs(low), abs(high)) < THRESHOLD_RATIO:
        return SAME
    if high < 0:
        return LOWER
    return HIGHER if low > 0 else UNDECIDED


ENERGY, SPEED = "energy_per_output_token_j", "output_tokens_per_s"
HALF, DOUBLE = -0.5, 1.0
"""Where both lie in an interval, its ends tell nothing more."""
NAMED = 3
"""So many experiments are named in an aside; of more, the number is told."""


@dataclass(frozen=True)
class Answer:
    """What a run says to its study's question.

    Attributes:
        sentence: For people.
        contrasts: Each experiment against the reference.
    """

    sentence: str
    contrasts: tuple[Contrast, ...] = ()


def answer(experiments: Sequence[Measured], planned: int, valid: int) -> Answer:
    """The best experiment against the reference, or the headline number where there is one experiment.

    The reference is the first experiment of the study that has a value; the best is the one with the least energy
    per output token (most tokens per second where there is no energy). Only energies of one kind and boundary meet.

    Args:
        experiments: In the order of the plan.
        planned: Planned cycles.
        valid: Those with a valid result.
    """
    measured = [one for one in experiments if one.rows]
    if not measured:
        return Answer("Nothing was measured: no cycle of this run has a result.")
    metric = ENERGY if any(one.values(ENERGY) for one in measured) else SPEED
    known = [one for one in measured if one.values(metric)]
    if not known:
        return Answer("Nothing can be told: no cycle generated a token.")
    metered = [one for one in known if metric == SPEED or _meter(one) == _meter(known[0])]
    kinds = {*known[0].kinds}
    same_kind = [one for one in metered if len(kinds.union(one.kinds)) < 2 or one is known[0]]
    alike = [one for one in same_kind if _share_hosts(one, known[0])]
    found = contrasts(alike, metric, len(experiments)) if len(alike) > 1 else ()
    by_id = {one.id: one for one in alike}
    said = _best(found, by_id, len(alike)) if found else _headline(known[0], metric, len(experiments))
    asides = [
        *([_why_no_energy(measured)] if metric == SPEED else []),
        *_withheld(measured, metric),
        *_named("not measured", [one for one in experiments if not one.rows]),
        *_named("without a value", [one for one in measured if not one.values(metric)]),
        *_named(
            "not compared, as another meter or boundary was read", [o for o in known if o not in metered]
        ),
        *_named(
            "not compared, as another kind of hardware was used", [o for o in metered if o not in same_kind]
        ),
        *_named("not compared, as no host measured both", [o for o in same_kind if o not in alike]),
        *(
            [
                f"{planned - valid} of {counted(planned, 'planned cycle')} {'is' if planned == 1 else 'are'} not valid"
            ]
            if valid < planned
            else []
        ),
    ]
    return Answer("; ".join([said, *asides]) + ".", found)


def _share_hosts(one: Measured, other: Measured) -> bool:
    """Whether a host measured both: what differs between hosts cannot be told from what differs between experiments."""
    return not {*one.hosts.values()}.isdisjoint(other.hosts.values())


def _best(found: Sequence[Contrast], by_id: dict[str, Measured], count: int) -> str:
    metric = BY_NAME[found[0].metric]
    lower = metric.better == "lower"
    best = sorted(found, key=lambda one: one.difference_ratio, reverse=not lower)[0]
    reference, candidate = by_id[best.reference], by_id[best.candidate]
    old, new = single_factor_levels(reference.factors, candidate.factors) or (
        reference.label,
        candidate.label,
    )
    if count > 2:
        new += f" (the {'lowest' if lower else 'highest'} of the other {count - 1})"
        old += " (the study's first)"
    kind = "estimated " if _is_estimate(reference) and metric.energy else ""
    what = f"{kind}{metric.label[0].lower()}{metric.label[1:]}"
    said = (
        f"{new} against {old}: {what} {formatting.change(best.difference_ratio)}{_evidence(best, len(found))}"
    )
    return said + _on_other_gpus(reference, candidate)


def _evidence(one: Contrast, family: int) -> str:
    n = f"{one.n_reference}"
    if one.n_candidate != one.n_reference:
        n = f"{one.n_reference} and {one.n_candidate}"
    little = f", not enough evidence at n = {n}"
    low, high, undecided = one.low_ratio, one.high_ratio, one.verdict == UNDECIDED
    if low is None or high is None or (undecided and min(one.n_reference, one.n_candidate) < SHOWN_FROM_N):
        return little
    if undecided and low <= HALF and high >= DOUBLE:
        return f"{little} (half and double are both possible)"
    corrected = f", corrected for {counted(family, 'comparison')}" if family > 1 else ""
    interval = f"95 % interval {formatting.change(low)} to {formatting.change(high)}{corrected}"
    if undecided:
        return f"{little} ({interval})"
    same = f", no difference of {formatting.percent(THRESHOLD_RATIO)} or more" if one.verdict == SAME else ""
    return f"{same} ({interval}), n = {n} cycle{'s' * (n != '1')}{on_hosts(one.hosts)}"


def _headline(one: Measured, metric: str, count: int) -> str:
    """The number itself, where there is nothing to compare it with."""
    values, hosts = one.values(metric), one.hosts
    found = describe(values.values(), hosts=[hosts[cycle] for cycle in values])
    if found is None:
        raise ValueError(f"{one.id} has no value of {metric}")
    first, about = one.rows[0], BY_NAME[metric]
    unit, factor = formatting.scale(about, found.mean)
    kind = "estimated " if _is_estimate(one) and about.energy else ""
    where = f"{first.model} on {first.engine}" if count == 1 else one.label
    interval = (
        f"95 % interval {formatting.interval(found, factor)}" if found.shown_interval else "no interval"
    )
    return (
        f"{where}: {kind}{about.label[0].lower()}{about.label[1:]} {formatting.number(found.mean * factor)} {unit} "
        f"({interval}), n = {n_text(found.n, found.hosts)}"
    )


def _meter(one: Measured) -> tuple[set[str], set[str | None]]:
    """What its joules are: their kinds and boundaries."""
    rows = [row for row in one.rows if row.measures.get(ENERGY) is not None]
    return {row.energy_kind for row in rows}, {row.energy_boundary for row in rows}


def _is_estimate(one: Measured) -> bool:
    return "estimate" in _meter(one)[0]


def _why_no_energy(measured: Sequence[Measured]) -> str:
    kinds = {row.energy_kind for one in measured for row in one.rows}
    return (
        "there is no energy: no meter was read"
        if kinds == {"none"}
        else "there is no energy: none could be reported"
    )


def _withheld(measured: Sequence[Measured], metric: str) -> list[str]:
    """How many cycles have a result and no energy, where others have one."""
    rows = [row for one in measured for row in one.rows]
    without = sum(row.measures.get(metric) is None for row in rows)
    return (
        [f"energy is not reported for {without} of {counted(len(rows), 'cycle')}"]
        if without and metric == ENERGY
        else []
    )


def _named(what: str, those: Sequence[Measured]) -> list[str]:
    if not those:
        return []
    names = ", ".join(one.label for one in those[:NAMED])
    more = f" and {len(those) - NAMED} more" if len(those) > NAMED else ""
    return [f"{what}: {names}{more}"]


def _on_other_gpus(reference: Measured, candidate: Measured) -> str:
    ours, theirs = ({gpu for row in one.rows for gpu in row.gpus} for one in (reference, candidate))
    return "" if ours == theirs else "; they were measured on different devices"
