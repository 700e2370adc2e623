"""Two sets of cycles, one metric: is the second worse, better, the same, or is there not enough evidence?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import chain, repeat

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from llem_airflow.analysis.blocked import HostEffect, are_several, by_host, host_effect
from llem_airflow.analysis.metrics import positive_threshold
from llem_airflow.analysis.statistics import mean_of
from llem_airflow.protocol.typed_json import UNLESS_DEFAULT
from llem_airflow.text.wording import counted

_FROM = 4
"""Experiments from which on they tell each other their spread: two or three would make false alarms of a noisy one."""

_APART, _APART_WEIGHT = 1.0, 16
"""Variance between experiments of the logarithm of the variance, as long as few tell it, and what that weighs, in
experiments; with more of them than that it weighs as much as they do. Of three cycles a side, experiments cannot tell
how far they differ, and to take them for alike would make false alarms of the noisy ones."""


@dataclass(frozen=True, slots=True)
class Usual:
    """What the experiments say together: the squared standard error of a comparison, and its degrees of freedom.

    Each comparison takes it beside its own (Smyth 2004, limma; for Welch's test Demissie et al. 2008): with three
    cycles a side, its own has two to four degrees of freedom, and the critical value is far out. The more the
    experiments differ, the less it weighs.
    """

    variance: float
    df: float
    most_df: float

    @classmethod
    def of(cls, errors: Sequence[tuple[float, float]]) -> Usual | None:
        """From the squared standard error and the degrees of freedom of each; None from fewer than four.

        Formula: moments of the logarithms e = ln v - psi(df/2) + ln(df/2); their variance beyond trigamma(df/2) is
        that between experiments.
        """
        if len(errors) < _FROM:
            return None
        v, df = np.array(errors).T
        e = np.log(v) - special.psi(df / 2) + np.log(df / 2)
        between = float(e.var(ddof=1)) - float(special.polygamma(1, df / 2).mean())
        weight = max(_APART_WEIGHT, len(v) - 1)
        apart = max((weight * _APART + (len(v) - 1) * between) / (weight + len(v) - 1), 1e-3)
        common = 2 / apart
        centre = float(e.mean() + special.psi(common / 2)) - math.log(common / 2)
        return cls(math.exp(centre), common, float(df.sum()))

    def beside(self, variance: float, df: float) -> tuple[float, float]:
        """A comparison's own squared standard error and degrees of freedom together with these."""
        both = self.df + df
        return (self.df * self.variance + df * variance) / both, min(both, self.most_df)


THRESHOLD_RATIO = 0.02
"""Smallest difference that matters in practice: below it, sensors and neighbours differ as much."""

ALPHA = 0.05
POWER = 0.80
_LARGEST_LOG = 700.0
"""Natural logarithm of the largest ratio that is told: a float holds no more than exp(709)."""


class Verdict(StrEnum):
    """What a comparison says."""

    REGRESSION = "regression"
    IMPROVEMENT = "improvement"
    UNCHANGED = "unchanged"
    NOT_ENOUGH_EVIDENCE = "not enough evidence"
    NOT_COMPARABLE = "not comparable"


GRAVEST_FIRST = (
    Verdict.REGRESSION,
    Verdict.NOT_COMPARABLE,
    Verdict.NOT_ENOUGH_EVIDENCE,
    Verdict.IMPROVEMENT,
    Verdict.UNCHANGED,
)
"""The order in which people want to read verdicts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Reference against candidate for one metric. Ratios are relative to the reference's mean.

    Attributes:
        n_baseline: Cycles of the reference with a value.
        n_candidate: Cycles of the candidate with a value.
        mean_baseline: Mean of the reference; None without a value.
        mean_candidate: Mean of the candidate; None without a value.
        difference_ratio: candidate / baseline - 1; None where the reference is 0 or has no value.
        low_ratio: Lower end of its 95 % interval, above -1 for values that cannot be negative; None when a side has
            one cycle.
        high_ratio: Upper end.
        p: Two-sided p of the t test (Welch's, or of pairs).
        p_adjusted: p after Benjamini-Hochberg over the family of comparisons.
        equivalence_p: p of the two one-sided tests for a difference within the threshold.
        mann_whitney_p: Second opinion without normality; cannot fall below 0.1 at n = 3.
        hedges_g: Standardised difference, corrected for small n.
        detectable_ratio: Smallest increase that would have been found with 80 % power.
        method: ``welch``, ``blocked`` (within hosts), either with ``moderated`` before it (with what the other
            experiments say of the spread), or ``paired``.
        better: ``lower`` or ``higher`` is better.
        verdict: What it comes to.
        threshold_ratio: Smallest difference that matters; the margin of the equivalence test, too.
        reason: Why there is no test, and what was left out; empty where there is nothing to say.
        hosts: Hosts that measured both sides. Where they are several, the sides were compared on each.
    """

    n_baseline: int
    n_candidate: int
    mean_baseline: float | None
    mean_candidate: float | None
    difference_ratio: float | None
    low_ratio: float | None = None
    high_ratio: float | None = None
    p: float | None = None
    p_adjusted: float | None = None
    equivalence_p: float | None = None
    mann_whitney_p: float | None = None
    hedges_g: float | None = None
    detectable_ratio: float | None = None
    method: str
    better: str
    verdict: Verdict = Verdict.NOT_ENOUGH_EVIDENCE
    threshold_ratio: float = THRESHOLD_RATIO
    reason: str = ""
    hosts: int = field(default=1, metadata=UNLESS_DEFAULT)


def _satterthwaite(share: float, n: int, m: int) -> float:
    """Degrees of freedom of a squared standard error of which the first side's mean makes a share."""
    return 1.0 / (share**2 / (n - 1) + (1.0 - share) ** 2 / (m - 1))


Hosts = tuple[Sequence[str], Sequence[str]]
"""The host of each value of the reference, and of the candidate."""


@dataclass(frozen=True, slots=True)
class _Effect:
    """Two sides on the scale on which they are compared.

    Quantities that cannot be negative are compared by the logarithm of the ratio of their means, so that no interval
    tells a change below -100 %. Its standard error is that of the delta method (the log response ratio of Hedges,
    Gurevitch and Curtis 1999): each side is divided by its own mean. Values below 0 are compared by their difference,
    both sides divided by the reference's mean.

    Attributes:
        size: ln(mean candidate / mean baseline), or the difference / |mean baseline|.
        baseline: Values of the reference, divided.
        candidate: Values of the candidate, divided.
        is_log: Whether ``size`` is a logarithm.
        least_ratio: Smallest change that there can be: -1 for values that cannot be negative.
    """

    size: float
    baseline: NDArray[np.float64]
    candidate: NDArray[np.float64]
    is_log: bool
    least_ratio: float

    @classmethod
    def of(cls, a: Sequence[float], b: Sequence[float]) -> _Effect:
        mean_a, mean_b = mean_of(a), mean_of(b)
        least_ratio = -1.0 if min(*a, *b) >= 0.0 else -math.inf
        is_log = least_ratio == -1.0 and mean_b > 0.0
        with np.errstate(all="ignore"):  # what becomes infinite here is told by the caller
            one, other = np.asarray(a) / abs(mean_a), np.asarray(b) / (mean_b if is_log else abs(mean_a))
            size = math.log(mean_b) - math.log(mean_a) if is_log else float(other.mean() - one.mean())
        return cls(size, one, other, is_log, least_ratio)

    def error(self) -> tuple[float, float]:
        """Squared standard error of ``size`` and its degrees of freedom; 0 without spread.

        Degrees of freedom are those of Welch-Satterthwaite, but never more than two sides of equal variance have: a
        side of two cycles beside one of ten often shows too little spread by chance, and then both go wrong together
        (10 % of false alarms, where 5 % are stated). For sides of equal size it is no bound.
        """
        n, m = len(self.baseline), len(self.candidate)
        with np.errstate(all="ignore"):
            va, vb = _variance(self.baseline) / n, _variance(self.candidate) / m
        if va + vb == 0.0:
            return 0.0, 0.0
        found, equal = (_satterthwaite(share, n, m) for share in (va / (va + vb), m / (n + m)))
        return va + vb, min(found, equal)

    def ratio(self, size: float) -> float:
        """A size as a change of the reference."""
        ratio = math.expm1(min(size, _LARGEST_LOG)) if self.is_log else size
        return max(ratio, self.least_ratio)

    def margins(self, threshold_ratio: float) -> tuple[float, float]:
        """The threshold below and above, on this scale."""
        if not self.is_log:
            return -threshold_ratio, threshold_ratio
        below = math.log1p(-threshold_ratio) if threshold_ratio < 1.0 else -math.inf
        return below, math.log1p(threshold_ratio)


def compare(
    baseline: Sequence[float | None],
    candidate: Sequence[float | None],
    better: str,
    *,
    threshold_ratio: float = THRESHOLD_RATIO,
    alpha: float = ALPHA,
    usual: Usual | None = None,
    hosts: Hosts | None = None,
) -> Comparison:
    """Welch's comparison of two independent sets of cycles; of several hosts, the comparison within them.

    Formula: size of ``_Effect``, with standard error sqrt(s1^2/n1 + s2^2/n2) and Welch-Satterthwaite degrees of
    freedom, bounded by those of equal variances; equivalence by two one-sided tests at the threshold, which is a share
    of the reference's mean. None, NaN and infinite values are not known, and left out.

    ``alpha`` is the risk of the interval; a smaller one than 5 % makes several intervals hold together. ``usual`` is
    what the other experiments of the two runs say of how much cycles differ. With ``hosts``, where more than one
    measured, the effect and its standard error are those of ``blocked.host_effect``.

    Raises:
        ValueError: ``better`` or ``threshold_ratio`` is not one that there is.
    """
    if hosts is not None and are_several([*hosts[0], *hosts[1]]):
        sides = _Sides.of(baseline, candidate, hosts)
        return _compared_within(sides, better, threshold_ratio, alpha, usual)
    a, b = _known(baseline), _known(candidate)
    bare = _bare(a, b, "welch", better, threshold_ratio, len(baseline) + len(candidate) - len(a) - len(b))
    if bare.difference_ratio is None or min(len(a), len(b)) < 2:
        return bare
    if min(a) == max(a) and min(b) == max(b):
        return _decided(_without_spread(bare))
    effect = _Effect.of(a, b)
    variance, df = effect.error()
    if variance == 0.0:
        return _decided(_without_spread(bare))
    if usual is not None:
        bare = replace(bare, method="moderated welch")
        variance, df = usual.beside(variance, df)
    found = _tested(bare, effect, math.sqrt(variance), df, alpha)
    if found.p is None:
        return found
    mann_whitney = float(stats.mannwhitneyu(a, b, alternative="two-sided").pvalue)
    return _decided(replace(found, mann_whitney_p=mann_whitney, hedges_g=hedges_g(a, b)))


def compare_pairs(
    baseline: Sequence[float | None],
    candidate: Sequence[float | None],
    better: str,
    *,
    threshold_ratio: float = THRESHOLD_RATIO,
    alpha: float = ALPHA,
) -> Comparison:
    """Comparison of cycles that were measured next to each other (A B B A on one GPU in one run).

    Slow drift hits both members of a pair and cancels, so this is the strongest verdict. Formula: t test of
    the differences candidate - baseline on the scale of ``_Effect``, pair by pair. A pair with a value that is not
    known is left out.

    ``alpha`` is the risk of the interval; a smaller one than 5 % makes several intervals hold together.

    Raises:
        ValueError: As ``compare``, and when the sides have not as many cycles.
    """
    if len(baseline) != len(candidate):
        raise ValueError(
            f"pairs need as many cycles on both sides, found {len(baseline)} and {len(candidate)}"
        )
    pairs = [pair for pair in zip(baseline, candidate, strict=True) if len(_known(pair)) == 2]
    a, b = _known([one for one, _ in pairs]), _known([other for _, other in pairs])
    bare = _bare(a, b, "paired", better, threshold_ratio, 2 * (len(baseline) - len(pairs)))
    if bare.difference_ratio is None or len(a) < 2:
        return bare
    if min(a) == max(a) and min(b) == max(b):
        return _decided(_without_spread(bare))
    effect = _Effect.of(a, b)
    with np.errstate(all="ignore"):
        variance = _variance(effect.candidate - effect.baseline) / len(a)
    if variance == 0.0:
        return _decided(_without_spread(bare))
    found = _tested(bare, effect, math.sqrt(variance), len(a) - 1.0, alpha)
    return _decided(replace(found, hedges_g=hedges_g(a, b))) if found.p is not None else found


@dataclass(frozen=True, slots=True)
class _Sides:
    """Values of two sides by host, on the hosts that measured both.

    Attributes:
        baseline: Values of the reference, by host.
        candidate: Values of the candidate, by host.
        unknown: Values that are not known.
        alone: Hosts of which only one side has values: they tell nothing of the difference.
    """

    baseline: dict[str, list[float]]
    candidate: dict[str, list[float]]
    unknown: int
    alone: tuple[str, ...]

    @classmethod
    def of(cls, a: Sequence[float | None], b: Sequence[float | None], hosts: Hosts) -> _Sides:
        one, other = (
            by_host(
                (host, known) for value, host in zip(side, names, strict=True) for known in _known([value])
            )
            for side, names in zip((a, b), hosts, strict=True)
        )
        both = [host for host in one if host in other]
        return cls(
            {host: one[host] for host in both},
            {host: other[host] for host in both},
            len(a) + len(b) - sum(map(len, (*one.values(), *other.values()))),
            tuple(host for host in {**one, **other} if host not in both),
        )

    @property
    def values(self) -> tuple[list[float], list[float]]:
        """All values of each side."""
        return [*chain(*self.baseline.values())], [*chain(*self.candidate.values())]

    def effect(self) -> tuple[HostEffect, _Effect] | None:
        """The effect within hosts, and what turns it into a ratio; None where there is no share of the reference."""
        a, b = [*self.baseline.values()], [*self.candidate.values()]
        least = min(min(cell) for cell in (*a, *b))
        is_log = least >= 0.0 and all(any(cell) for cell in (*a, *b))
        unit = abs(mean_of([mean_of(cell) for cell in a]))
        if not is_log and unit == 0.0:
            return None
        found = host_effect(a, b, unit=None if is_log else unit)
        none = np.empty(0)
        return found, _Effect(found.size, none, none, is_log, -1.0 if least >= 0.0 else -math.inf)


def _compared_within(
    sides: _Sides, better: str, threshold_ratio: float, alpha: float, usual: Usual | None
) -> Comparison:
    """The comparison on the hosts that measured both sides."""
    a, b = [*sides.baseline.values()], [*sides.candidate.values()]
    if len(a) < 2:
        found = compare(*sides.values, better, threshold_ratio=threshold_ratio, alpha=alpha, usual=usual)
        return _with_reason(found, _left_out(sides))
    bare = _bare(*sides.values, "blocked", better, threshold_ratio, sides.unknown)
    within = sides.effect()
    if within is None:
        return _with_reason(bare, _left_out(sides))
    block, effect = within
    bare = replace(
        bare,
        mean_baseline=mean_of([mean_of(cell) for cell in a]),
        mean_candidate=mean_of([mean_of(cell) for cell in b]),
        difference_ratio=effect.ratio(effect.size) if math.isfinite(effect.size) else None,
        hosts=len(a),
    )
    if bare.difference_ratio is None:
        return _with_reason(bare, "the means are too far apart for a ratio")
    bare = _with_reason(
        bare, "; ".join(filter(None, (_apart(block, effect, [*sides.baseline]), _left_out(sides))))
    )
    if block.variance == 0.0:
        return _decided(_without_spread(bare))
    variance, df = block.variance, block.df
    if usual is not None:
        bare = replace(bare, method="moderated blocked")
        variance, df = usual.beside(variance, df)
    found = _tested(bare, effect, math.sqrt(variance), df, alpha)
    return found if found.p is None else _decided(found)


def _left_out(sides: _Sides) -> str:
    if not sides.alone:
        return ""
    return f"left out as only one side was measured there: {', '.join(sides.alone)}"


def _apart(block: HostEffect, effect: _Effect, hosts: Sequence[str]) -> str:
    """That the change is not the same on each host, where that is no chance."""
    if block.differs_p is None or block.differs_p >= ALPHA:
        return ""
    changes = [f"{host} {effect.ratio(size):+.1%}" for host, size in zip(hosts, block.sizes, strict=True)]
    return f"the change differs between hosts (p {block.differs_p:.2g}): {', '.join(changes)}"


def usual_error(
    sides: Iterable[tuple[Sequence[float | None], Sequence[float | None]]],
    hosts: Iterable[Hosts | None] = repeat(None),
) -> Usual | None:
    """What the experiments of two runs say together of how much cycles differ; None where too few tell it.

    Args:
        sides: Values of the reference and of the candidate, by experiment.
        hosts: The hosts of those, as for ``compare``.
    """
    errors = [_error_of(a, b, where) for (a, b), where in zip(sides, hosts, strict=False)]
    known = [each for each in errors if each is not None]
    return Usual.of([(error, df) for error, df in known if error > 0.0 and math.isfinite(error)])


def _error_of(
    baseline: Sequence[float | None], candidate: Sequence[float | None], hosts: Hosts | None
) -> tuple[float, float] | None:
    """Squared standard error of a comparison and its degrees of freedom; None where there is no test."""
    if hosts is not None and are_several([*hosts[0], *hosts[1]]):
        sides = _Sides.of(baseline, candidate, hosts)
        if len(sides.baseline) > 1:
            within = sides.effect()
            return (within[0].variance, within[0].df) if within else None
        baseline, candidate = sides.values
    a, b = _known(baseline), _known(candidate)
    if min(len(a), len(b)) < 2 or _difference(mean_of(a), mean_of(b), nothing=False)[0] is None:
        return None
    return _Effect.of(a, b).error()


def adjusted(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons of one family with p corrected by Benjamini-Hochberg, and verdicts to match."""
    tested = [(index, one.p) for index, one in enumerate(comparisons) if one.p is not None]
    corrected = list(comparisons)
    if tested:
        values = stats.false_discovery_control([p for _, p in tested], method="bh")
        for (index, _), value in zip(tested, values, strict=True):
            corrected[index] = _decided(replace(comparisons[index], p_adjusted=float(value)))
    return corrected


def hedges_g(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Hedges' g of b over a; None without spread.

    Formula: (mean b - mean a) / pooled sd x (1 - 3 / (4 (n1 + n2) - 9)).
    """
    n1, n2 = len(a), len(b)
    largest = max(map(abs, (*a, *b))) or 1.0  # g has no unit, and squares of large values overflow
    one, other = np.asarray(a) / largest, np.asarray(b) / largest
    pooled = ((n1 - 1) * _variance(one) + (n2 - 1) * _variance(other)) / (n1 + n2 - 2)
    if pooled == 0.0:
        return None
    return float(other.mean() - one.mean()) / math.sqrt(pooled) * (1 - 3 / (4 * (n1 + n2) - 9))


def detectable_difference(se: float, df: float, alpha: float = ALPHA, power: float = POWER) -> float:
    """Smallest true difference that a two-sided t test finds with the given power, in the unit of ``se``."""
    return float(special.nctdtrinc(df, 1 - power, special.stdtrit(df, 1 - alpha / 2))) * se


def _known(values: Sequence[float | None]) -> list[float]:
    return [float(value) for value in values if value is not None and math.isfinite(value)]


def _variance(values: NDArray[np.float64]) -> float:
    """Variance with n - 1; exactly 0 for values that are all the same."""
    return float(values.var(ddof=1)) if values.min() != values.max() else 0.0


def _bare(
    a: Sequence[float], b: Sequence[float], method: str, better: str, threshold_ratio: float, left_out: int
) -> Comparison:
    """The comparison before any test, with the reason why there can be none."""
    if better not in {"lower", "higher"}:
        raise ValueError(f"better {better!r}: nothing is worse or better here; allowed: lower, higher")
    mean_a, mean_b = (mean_of(side) if side else None for side in (a, b))
    ratio, reason = _difference(mean_a, mean_b, nothing=not any((*a, *b)))
    if not reason and min(len(a), len(b)) < 2:
        reason = "one cycle tells no spread; measure two or more on each side"
    if left_out:
        values = f"{counted(left_out, 'value')} {'is' if left_out == 1 else 'are'}"
        reason = "; ".join(filter(None, (reason, f"{values} not known and left out")))
    return Comparison(
        n_baseline=len(a),
        n_candidate=len(b),
        mean_baseline=mean_a,
        mean_candidate=mean_b,
        difference_ratio=ratio,
        method=method,
        better=better,
        threshold_ratio=positive_threshold(threshold_ratio),
        reason=reason,
    )


def _difference(mean_a: float | None, mean_b: float | None, *, nothing: bool) -> tuple[float | None, str]:
    """Change of the reference's mean as its share, or None and why there is no such share.

    Args:
        mean_a: Mean of the reference.
        mean_b: Mean of the candidate.
        nothing: Every value is 0.
    """
    if mean_a is None or mean_b is None:
        return None, f"the {'reference' if mean_a is None else 'candidate'} has no value"
    if nothing:
        return 0.0, ""
    if mean_a == 0.0:
        return None, "the reference is 0, and a change from it is no share of it"
    ratio = mean_b / mean_a - 1.0 if mean_a > 0.0 else 1.0 - mean_b / mean_a
    if not math.isfinite(ratio):
        return None, "the means are too far apart for a ratio"
    return ratio, ""


def _tested(bare: Comparison, effect: _Effect, se: float, df: float, alpha: float) -> Comparison:
    if not (math.isfinite(se) and math.isfinite(effect.size)):
        return _with_reason(bare, "the values are too far apart for a test")
    half = float(special.stdtrit(df, 1 - alpha / 2)) * se
    p = 2 * float(special.stdtr(df, -abs(effect.size) / se))
    below, above = effect.margins(bare.threshold_ratio)
    equivalence = max(
        float(special.stdtr(df, (below - effect.size) / se)),
        float(special.stdtr(df, (effect.size - above) / se)),
    )
    return replace(
        bare,
        low_ratio=effect.ratio(effect.size - half),
        high_ratio=effect.ratio(effect.size + half),
        p=p,
        p_adjusted=p,
        equivalence_p=equivalence,
        detectable_ratio=effect.ratio(detectable_difference(se, df)),
    )


def _without_spread(bare: Comparison) -> Comparison:
    """No cycle differs from another of its side: the difference is exactly what it is."""
    ratio = bare.difference_ratio or 0.0
    p = 1.0 if ratio == 0.0 else 0.0
    return _with_reason(
        replace(
            bare,
            low_ratio=ratio,
            high_ratio=ratio,
            p=p,
            p_adjusted=p,
            equivalence_p=0.0 if abs(ratio) < bare.threshold_ratio else 1.0,
            detectable_ratio=0.0,
        ),
        "no spread on either side: exact",
    )


def _with_reason(found: Comparison, reason: str) -> Comparison:
    return replace(found, reason="; ".join(filter(None, (reason, found.reason))))


def _decided(found: Comparison) -> Comparison:
    p, ratio = found.p_adjusted, found.difference_ratio
    if p is not None and p < ALPHA and ratio is not None and abs(ratio) >= found.threshold_ratio:
        worse = (ratio > 0) == (found.better == "lower")
        return replace(found, verdict=Verdict.REGRESSION if worse else Verdict.IMPROVEMENT)
    if found.equivalence_p is not None and found.equivalence_p < ALPHA:
        return replace(found, verdict=Verdict.UNCHANGED)
    return replace(found, verdict=Verdict.NOT_ENOUGH_EVIDENCE)
