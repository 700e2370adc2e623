"""Values of cycles that several hosts measured: each host is a block, and nothing is pooled over hosts.

A host shifts all that it measures (its room, its board, its power supply), by more than its cycles differ. So spread
is taken within hosts, a mean gives each host the same weight however many cycles it measured, and two sides are
compared on each host before that is averaged. It speaks of the hosts that measured, not of those that might.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import special

T = TypeVar("T")
Cells = Sequence[Sequence[float]]
"""Values by host."""


def by_host(pairs: Iterable[tuple[str, T]]) -> dict[str, list[T]]:
    """What belongs to each host, in the order in which the hosts come."""
    found: dict[str, list[T]] = {}
    for host, one in pairs:
        found.setdefault(host, []).append(one)
    return found


def are_several(hosts: Sequence[str]) -> bool:
    """Whether more than one host measured."""
    return len(set(hosts)) > 1


@dataclass(frozen=True, slots=True)
class HostMean:
    """Mean of the hosts' means, and how well it is known.

    Attributes:
        mean: Each host weighs the same.
        sd: Standard deviation of the cycles within hosts. Where each host has one cycle, that of the hosts.
        error: Standard error of the mean.
        df: Degrees of freedom of ``sd``.
    """

    mean: float
    sd: float
    error: float
    df: int


def host_mean(cells: Cells) -> HostMean:
    """The mean over hosts as blocks, with the spread of cycles within them.

    Formula: mean = sum of the hosts' means / H. s^2 = sum over hosts of sum (x - mean of the host)^2 / (N - H), the
    residual of the one-way layout with the host as a fixed effect; standard error s sqrt(sum 1/n_h) / H with N - H
    degrees of freedom (Montgomery, Design and Analysis of Experiments, ch. 3: a contrast of fixed treatment means).
    Where N = H there is no spread within hosts: then that between hosts takes its place, with H - 1.

    Args:
        cells: Values of each of two hosts or more.
    """
    means = [float(np.mean(cell)) for cell in cells]
    n, hosts = sum(map(len, cells)), len(cells)
    if n == hosts:
        sd = float(np.std(means, ddof=1))
        return HostMean(fmean(means), sd, sd / math.sqrt(hosts), hosts - 1)
    squares = math.fsum((x - mean) ** 2 for cell, mean in zip(cells, means, strict=True) for x in cell)
    sd = math.sqrt(squares / (n - hosts))
    return HostMean(
        fmean(means), sd, sd * math.sqrt(math.fsum(1 / len(cell) for cell in cells)) / hosts, n - hosts
    )


@dataclass(frozen=True, slots=True)
class HostEffect:
    """The difference of two sides within hosts.

    Attributes:
        size: Of the candidate over the reference: a difference of logarithms, or of values in units of ``unit``.
        variance: Its squared standard error; 0 without any spread.
        df: Degrees of freedom of that.
        sizes: The effect on each host.
        differs_p: p of the F test that it is the same on each host; None without spread within hosts.
    """

    size: float
    variance: float
    df: float
    sizes: tuple[float, ...]
    differs_p: float | None


def host_effect(baseline: Cells, candidate: Cells, *, unit: float | None = None) -> HostEffect:
    """The effect of the candidate in the two-way layout of experiment and host, without interaction.

    Formula: d_h = ln(mean candidate / mean reference) on host h; size = sum w_h d_h / sum w_h, w_h = n m / (n + m) of
    the n and m cycles there (the least-squares estimate); s^2 = (the squares within both sides on each host, each side
    divided by its mean there, + sum w_h (d_h - size)^2) / (N - H - 1); squared standard error s^2 / sum w_h, with
    N - H - 1 degrees of freedom. This is the analysis of a randomised block design with unequal numbers in the cells
    (Montgomery, ch. 4; Searle, Linear Models for Unbalanced Data, ch. 4). An effect that differs between hosts is in
    s^2, and widens the interval. With one cycle a cell it is the t test of pairs within hosts.

    Args:
        baseline: Values of the reference on each of two hosts or more.
        candidate: Those of the candidate on the same hosts, in the same order.
        unit: Compare differences of values in this unit, not logarithms: for values that can be 0 or below.
    """
    weights, sizes, squares, cycles = [], [], 0.0, 0
    with np.errstate(all="ignore"):  # what becomes infinite here is told by the caller
        for one, other in zip(baseline, candidate, strict=True):
            a, b = np.asarray(one, dtype=float), np.asarray(other, dtype=float)
            before, after = float(a.mean()), float(b.mean())
            weights.append(len(a) * len(b) / (len(a) + len(b)))
            sizes.append(math.log(after) - math.log(before) if unit is None else (after - before) / unit)
            squares += _squares(a / (before if unit is None else unit))
            squares += _squares(b / (after if unit is None else unit))
            cycles += len(a) + len(b)
    total = math.fsum(weights)
    size = math.fsum(w * d for w, d in zip(weights, sizes, strict=True)) / total
    apart, within = 0.0, cycles - 2 * len(weights)
    if not math.isclose(max(sizes), min(sizes), rel_tol=1e-12, abs_tol=1e-15):  # logarithms are rounded
        apart = math.fsum(w * (d - size) ** 2 for w, d in zip(weights, sizes, strict=True))
    differs_p = None
    if within and 0.0 < squares < math.inf:
        between = len(weights) - 1
        differs_p = float(special.fdtrc(between, within, apart / between / (squares / within)))
    df = cycles - len(weights) - 1
    return HostEffect(size, (squares + apart) / df / total, float(df), tuple(sizes), differs_p)


def _squares(values: NDArray[np.float64]) -> float:
    """Sum of squares about the mean; exactly 0 for values that are all the same."""
    return float(((values - values.mean()) ** 2).sum()) if values.min() != values.max() else 0.0
