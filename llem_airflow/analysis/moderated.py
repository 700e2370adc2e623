"""How much cycles differ, from all experiments of a comparison: moderated variances."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

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
