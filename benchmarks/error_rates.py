"""How often the statistics are right, by simulation: t and BCa intervals, verdicts and change points.

    python benchmarks/error_rates.py [--repeats 1000]

Cycles are normal with the stated coefficient of variation. Standard error of a rate at 1,000 repeats: 0.016 or less.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from llem_airflow.analysis.compare import COMPARED, compare_runs
from llem_airflow.analysis.history import Point, change_points
from llem_airflow.analysis.statistics import BOOTSTRAP_FROM_N, bca_interval, t_interval
from llem_airflow.analysis.tables import RunRows
from llem_airflow.analysis.verdict import Verdict, compare, compare_pairs
from llem_airflow.results import ResultsRoot

BCA_AT_CV = 0.05
ALARMS = (Verdict.REGRESSION, Verdict.IMPROVEMENT)


Draw = Callable[[np.random.Generator, float, int], np.ndarray]


def _with_outliers(rng: np.random.Generator, cv: float, n: int) -> np.ndarray:
    sd = cv / (1 + 0.1 * 0.9 * 16) ** 0.5
    return np.asarray(1 - 0.4 * sd + sd * rng.normal(0, 1, n) + 4 * sd * (rng.random(n) < 0.1))


DISTRIBUTIONS: dict[str, Draw] = {
    "normal": lambda rng, cv, n: rng.normal(1, cv, n),
    "lognormal": lambda rng, cv, n: rng.lognormal(-np.log1p(cv**2) / 2, np.log1p(cv**2) ** 0.5, n),
    "gamma": lambda rng, cv, n: rng.gamma(cv**-2, cv**2, n),
    "Student's t, 3 degrees": lambda rng, cv, n: 1 + cv * rng.standard_t(3, n) / 3**0.5,
    "normal, one in ten 4 sd high": _with_outliers,
}
"""Values of a mean of 1; those below 0 are drawn again."""


def drawn(rng: np.random.Generator, draw: Draw, cv: float, n: int) -> np.ndarray:
    values = draw(rng, cv, n)
    while (below := values <= 0).any():
        values[below] = draw(rng, cv, int(below.sum()))
    return values


def coverage(rng: np.random.Generator, draw: Draw, cv: float, n: int, repeats: int) -> dict[str, float]:
    """Shares of samples whose interval holds the mean, and of those whose plain t interval ends below 0."""
    mean = float(drawn(rng, draw, cv, 1_000_000).mean()) if cv > 0.2 else 1.0
    hits = dict.fromkeys(("log t", "t", "t below 0", "BCa"), 0)
    for _ in range(repeats):
        values = drawn(rng, draw, cv, n).tolist()
        log, plain = t_interval(values), t_interval(values, signed=True)
        if log is None or plain is None:
            raise RuntimeError(f"no interval of {values}")
        hits["log t"] += log.low <= mean <= log.high
        hits["t"] += plain.low <= mean <= plain.high
        hits["t below 0"] += plain.low < 0
        if n >= BOOTSTRAP_FROM_N and cv == BCA_AT_CV and (bca := bca_interval(values)):
            hits["BCa"] += bca.low <= mean <= bca.high
    return {name: count / repeats for name, count in hits.items()}


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


def shipped(
    rng: np.random.Generator,
    experiments: int,
    changed: int,
    repeats: int,
    *,
    n: int,
    cv: float,
    change: float,
    apart: float = 0.0,
) -> tuple[float, float, float]:
    """Two runs of many experiments through ``compare_runs``, as `compare` and the alarm call it.

    Every experiment has the five independent metrics of a comparison and energy per request, which says the same as
    energy per token. Energy of ``changed`` experiments became worse. ``apart`` is the standard deviation of the
    logarithm of the experiments' CV.

    Returns:
        Share of false ones among the alarms (the rate that Benjamini-Hochberg holds), share of runs with a false
        alarm, and share of true changes that were found.
    """
    false_share, any_false, hits = [], [], []
    truth = np.arange(experiments) < changed
    with tempfile.TemporaryDirectory() as folder:
        runs = [ResultsRoot(folder).run("s", name) for name in ("a", "b")]
        for _ in range(repeats):
            cvs = cv * np.exp(rng.normal(0, apart, experiments))
            before = _rows(rng, np.ones(experiments), n, cvs)
            after = _rows(rng, 1 + change * truth, n, cvs)
            found = compare_runs(RunRows(runs[0], before), RunRows(runs[1], after))
            alarm = np.array([one.verdict in ALARMS for one in found])
            false_share.append((alarm & ~truth).sum() / max(alarm.sum(), 1))
            any_false.append((alarm & ~truth).any())
            hits.append(alarm[truth].mean() if changed else 0.0)
    return float(np.mean(false_share)), float(np.mean(any_false)), float(np.mean(hits))


def _rows(
    rng: np.random.Generator, levels: np.ndarray, n: int, cvs: np.ndarray
) -> tuple[dict[str, Any], ...]:
    facts = {"status": "valid", "fingerprint": "{}", "energy_kind": "measured", "doubtful": False}
    rows = []
    for index, (level, cv) in enumerate(zip(levels, cvs, strict=True)):
        for cycle in range(1, n + 1):
            values = dict(zip(COMPARED[:5], 100 * rng.normal(1, cv, 5), strict=True))
            values[COMPARED[0]] *= level
            values["energy_per_request_j"] = 100 * values[COMPARED[0]]
            name = f"e{index}"
            rows.append(facts | values | {"experiment": name, "hash": name, "cycle": cycle, "position": None})
    return tuple(rows)


def two_runs(rng: np.random.Generator, step: float, repeats: int) -> dict[Verdict, float]:
    """Verdict on two runs, the second of which moved: whole runs differ by 1 %, cycles within a run by 1 %."""
    counted = dict.fromkeys(Verdict, 0)
    for _ in range(repeats):
        levels = rng.normal(100, 1), rng.normal(100 * (1 + step), 1)
        before, after = (rng.normal(level, 1, 5).tolist() for level in levels)
        counted[compare(before, after, "lower").verdict] += 1
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
    print(
        "Coverage of the 95 % interval (log t), by n, and how often the plain t interval ends below 0 at n = 3"
    )
    sizes = (2, 3, 5, 10, 20)
    print("| values | CV | " + " | ".join(f"n = {n}" for n in sizes) + " | lowest of plain t | t below 0 |")
    print("|---" * (len(sizes) + 4) + "|")
    bca = []
    for name, draw in DISTRIBUTIONS.items():
        for cv in (0.01, 0.05, 0.1, 0.2, 0.5):
            found = {n: coverage(rng, draw, cv, n, repeats) for n in sizes}
            cells = [f"{one['log t']:.3f}" for one in found.values()]
            lowest, below = min(one["t"] for one in found.values()), found[3]["t below 0"]
            print(
                f"| {name} | {cv:.0%} | " + " | ".join(cells) + f" | {lowest:.3f} | {below:.0%} |", flush=True
            )
            bca += [f"{name} {found[20]['BCa']:.3f}"] if cv == BCA_AT_CV else []
    print(f"BCa at n = 20, CV {BCA_AT_CV:.0%}: " + ", ".join(bca))


def print_shipped(rng: np.random.Generator, repeats: int) -> None:
    print(
        "\nTwo runs as `compare` judges them: false alarms and power, by experiments and how many of them changed"
    )
    print(
        "| experiments | CV apart | changed | n | CV | change | false among alarms | runs with a false alarm | found |"
    )
    print("|---" * 9 + "|")
    for experiments, apart, all_changed in (
        (1, 0.0, (0, 1)),
        (8, 0.0, (0, 1, 8)),
        (8, 0.6, (0, 1)),
        (40, 0.0, (0, 1, 4, 12, 40)),
        (40, 0.6, (0, 1)),
    ):
        for n, cv, change in ((3, 0.01, 0.05), (5, 0.02, 0.06)):
            for changed in all_changed:
                times = max(int(repeats * {1: 1, 8: 0.4, 40: 0.1}[experiments]), 10)
                shares = shipped(rng, experiments, changed, times, n=n, cv=cv, change=change, apart=apart)
                cells = [f"{share:.3f}" for share in shares[:2]] + [f"{shares[2]:.3f}" if changed else "-"]
                print(
                    f"| {experiments} | {apart:.1f} | {changed} | {n} | {cv:.0%} | {change:.0%} | "
                    + " | ".join(cells)
                    + " |",
                    flush=True,
                )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--intervals", action="store_true", help="only the intervals")
    parser.add_argument("--comparisons", action="store_true", help="only the verdicts on two runs")
    asked = parser.parse_args()
    repeats, rng = asked.repeats, np.random.default_rng(1)
    if asked.intervals:
        print_coverage(rng, repeats)
    elif asked.comparisons:
        print_pairs(rng, repeats)
        print_shipped(rng, repeats)
    else:
        print_coverage(rng, repeats)
        print_pairs(rng, repeats)
        print_shipped(rng, repeats)
        print_histories(rng, repeats)


def print_pairs(rng: np.random.Generator, repeats: int) -> None:
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


def print_histories(rng: np.random.Generator, repeats: int) -> None:
    print("\nTwo runs, where whole runs differ by 1 % by chance, 5 cycles each with CV 1 %")
    print("| true step | r | i | unchanged | not enough evidence |\n|---|---|---|---|---|")
    for step in (0.0, 0.05):
        _row(two_runs(rng, step, repeats), f"{step:.0%}")
    print("\nChange points: share of histories with one, by the number of runs after the step (20 before it)")
    print("| CV of runs | step | 2 | 3 | 5 | 8 | 12 |\n|---|---|---|---|---|---|---|")
    for cv, step in ((0.01, 0.0), (0.01, 0.02), (0.01, 0.03), (0.01, 0.05), (0.02, 0.05)):
        rates = [found_changes(rng, after, cv, step, max(repeats // 5, 20)) for after in (2, 3, 5, 8, 12)]
        print(f"| {cv:.0%} | {step:.0%} | " + " | ".join(f"{rate:.2f}" for rate in rates) + " |")


if __name__ == "__main__":
    main()
