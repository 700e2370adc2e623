"""How often the statistics are right, by simulation: t and BCa intervals, verdicts and change points.

    python benchmarks/error_rates.py [--repeats 1000]

Cycles are normal with the stated coefficient of variation. Standard error of a rate at 1,000 repeats: 0.016 or less.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from llem_airflow.analysis.history import Point, change_points, trend
from llem_airflow.analysis.statistics import BOOTSTRAP_FROM_N, Interval, bca_interval, t_interval
from llem_airflow.analysis.verdict import Verdict, adjusted, compare, compare_pairs

ALARMS = (Verdict.REGRESSION, Verdict.IMPROVEMENT)


def coverage(
    interval: Callable[[list[float]], Interval | None], rng: np.random.Generator, n: int, repeats: int
) -> float:
    hits = 0
    for _ in range(repeats):
        found = interval(rng.normal(100, 1, n).tolist())
        hits += found is not None and found.low <= 100 <= found.high
    return hits / repeats


def verdicts(
    rng: np.random.Generator, n: int, cv: float, change: float, repeats: int, drift: float | None = None
) -> dict[Verdict, float]:
    """Shares of the verdicts on one pair; with a drift per run, of A B B A A B ... compared in pairs."""
    counted = dict.fromkeys(Verdict, 0)
    for _ in range(repeats):
        baseline = rng.normal(100, 100 * cv, n)
        candidate = rng.normal(100 * (1 + change), 100 * cv * (1 + change), n)
        if drift is None:
            found = compare(baseline.tolist(), candidate.tolist(), "lower")
        else:
            first = np.arange(n) % 2  # A B, then B A, then A B ...
            position = 2 * np.arange(n)
            found = compare_pairs(
                (baseline * (1 + drift * (position + first))).tolist(),
                (candidate * (1 + drift * (position + 1 - first))).tolist(),
                "lower",
            )
        counted[found.verdict] += 1
    return {verdict: count / repeats for verdict, count in counted.items()}


def family(
    rng: np.random.Generator, changed: int, repeats: int, experiments: int = 40, n: int = 5, cv: float = 0.02
) -> tuple[float, float, float, float]:
    """A run of many experiments, of which some became 6 % worse.

    Returns:
        Share of false ones among the alarms (the rate that Benjamini-Hochberg holds), share of runs with a false
        alarm, the same without the correction, and share of true changes that were found.
    """
    false_share, any_false, any_raw, hits = [], [], [], []
    for _ in range(repeats):
        truth = np.arange(experiments) < changed
        pairs = [
            compare(
                rng.normal(100, 100 * cv, n).tolist(),
                rng.normal(106 if moved else 100, 100 * cv, n).tolist(),
                "lower",
            )
            for moved in truth
        ]
        alarm = np.array([one.verdict in ALARMS for one in adjusted(pairs)])
        raw = np.array([one.verdict in ALARMS for one in pairs])
        false_share.append((alarm & ~truth).sum() / max(alarm.sum(), 1))
        any_false.append((alarm & ~truth).any())
        any_raw.append((raw & ~truth).any())
        hits.append((alarm & truth).sum() / max(changed, 1))
    return tuple(float(np.mean(each)) for each in (false_share, any_false, any_raw, hits))  # type: ignore[return-value]


def newest_run(rng: np.random.Generator, runs: int, step: float, repeats: int) -> dict[Verdict, float]:
    """Verdict of a history whose newest run moved: runs differ by 1 %, cycles within a run by 1 %."""
    counted = dict.fromkeys(Verdict, 0)
    for _ in range(repeats):
        levels = [*rng.normal(100, 1, runs - 1), rng.normal(100 * (1 + step), 1)]
        points = [Point(str(k), k, tuple(rng.normal(level, 1, 5).tolist())) for k, level in enumerate(levels)]
        counted[trend(points, "lower").verdict] += 1
    return {verdict: count / repeats for verdict, count in counted.items()}


def found_changes(rng: np.random.Generator, after: int, cv: float, step: float, repeats: int) -> float:
    hits = 0
    for _ in range(repeats):
        means = [*rng.normal(100, 100 * cv, 20), *rng.normal(100 * (1 + step), 100 * cv, after)]
        hits += bool(
            change_points([Point(str(k), k, (float(mean),)) for k, mean in enumerate(means)], "lower")
        )
    return hits / repeats


def drifted(rng: np.random.Generator, n: int, cv: float, change: float, repeats: int) -> dict[Verdict, float]:
    """What Welch's test says of the same drifting pairs."""
    counted = dict.fromkeys(Verdict, 0)
    for _ in range(repeats):
        first, position = np.arange(n) % 2, 2 * np.arange(n)
        baseline = rng.normal(100, 100 * cv, n) * (1 + 0.01 * (position + first))
        candidate = rng.normal(100, 100 * cv, n) * (1 + change) * (1 + 0.01 * (position + 1 - first))
        counted[compare(baseline.tolist(), candidate.tolist(), "lower").verdict] += 1
    return {verdict: count / repeats for verdict, count in counted.items()}


def _row(found: dict[Verdict, float], what: str) -> None:
    order = (Verdict.REGRESSION, Verdict.IMPROVEMENT, Verdict.UNCHANGED, Verdict.NOT_ENOUGH_EVIDENCE)
    print(f"| {what} | " + " | ".join(f"{found[verdict]:.3f}" for verdict in order) + " |")


def print_coverage(rng: np.random.Generator, repeats: int) -> None:
    print("Coverage of the 95 % intervals")
    for n in (3, 5, 10, 20, 30):
        bca = f", BCa {coverage(bca_interval, rng, n, repeats):.3f}" if n >= BOOTSTRAP_FROM_N else ""
        print(f"  n = {n:>2}: t {coverage(t_interval, rng, n, repeats):.3f}{bca}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--intervals", action="store_true", help="only the intervals")
    repeats = parser.parse_args().repeats
    rng = np.random.default_rng(1)
    print_coverage(rng, repeats)
    if parser.parse_args().intervals:
        return
    print("\nVerdict on one pair of experiments (shares; `r` is a regression, `i` an improvement)")
    print("| n | CV | true change | r | i | unchanged | not enough evidence |\n|---|---|---|---|---|---|---|")
    for n, cv in ((3, 0.01), (5, 0.005), (5, 0.01), (5, 0.02), (10, 0.01), (10, 0.02)):
        for change in (0.0, 0.02, 0.05):
            _row(verdicts(rng, n, cv, change, repeats), f"{n} | {cv:.1%} | {change:.0%}")
    print("\nThe same with a drift of 1 % from run to run, A B B A, CV 1 %: in pairs, and as if independent")
    print(
        "| n | true change | test | r | i | unchanged | not enough evidence |\n|---|---|---|---|---|---|---|"
    )
    for n in (4, 6, 10):
        for change in (0.0, 0.05):
            _row(verdicts(rng, n, 0.01, change, repeats, drift=0.01), f"{n} | {change:.0%} | pairs")
            _row(drifted(rng, n, 0.01, change, repeats), f"{n} | {change:.0%} | Welch")
    print("\nA run of 40 experiments, n = 5, CV 2 %, some of them 6 % worse")
    print(
        "| worse | false among alarms | runs with a false alarm | without correction | found |\n|---|---|---|---|---|"
    )
    for changed in (0, 1, 4, 12):
        shares = family(rng, changed, max(repeats // 5, 10))
        print(f"| {changed} | " + " | ".join(f"{share:.3f}" for share in shares) + " |")
    print("\nNewest run of a history; runs differ by 1 % among themselves, 5 cycles each with CV 1 %")
    print("| runs | true step | r | i | unchanged | not enough evidence |\n|---|---|---|---|---|---|")
    for runs in (2, 3, 5, 10, 20):
        for step in (0.0, 0.05):
            _row(newest_run(rng, runs, step, repeats), f"{runs} | {step:.0%}")
    print("\nChange points: share of histories with one, by the number of runs after the step (20 before it)")
    print("| CV of runs | step | 2 | 3 | 5 | 8 | 12 |\n|---|---|---|---|---|---|---|")
    for cv, step in ((0.01, 0.0), (0.01, 0.02), (0.01, 0.03), (0.01, 0.05), (0.02, 0.05)):
        rates = [found_changes(rng, after, cv, step, max(repeats // 5, 20)) for after in (2, 3, 5, 8, 12)]
        print(f"| {cv:.0%} | {step:.0%} | " + " | ".join(f"{rate:.2f}" for rate in rates) + " |")


if __name__ == "__main__":
    main()
