"""What a cycle or a run came to, in a few numbers: for the task's log, the asset event, the notifier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llem_airflow.results import CycleRef, ResultsRoot, StoredRun
from llem_airflow.study import Study
from llem_airflow.text.wording import counted

if TYPE_CHECKING:
    from llem_airflow.analysis.compare import PairReport
    from llem_airflow.analysis.compare_named import Compared
    from llem_airflow.analysis.cycle import Cycle
    from llem_airflow.analysis.history import Trend
    from llem_airflow.analysis.summary import Summary

HEADLINES = ("energy_per_output_token_j", "output_tokens_per_s", "ttft_mean_s")
_SHOWN = 50
"""Experiments whose numbers go into an event; Airflow keeps events in its database, and results lie in the store."""


def cycle_row(ref: CycleRef) -> Cycle:
    """What a stored cycle says."""
    # NumPy and Arrow only now, after the measurement.
    from llem_airflow.analysis.cycle import read_cycle  # noqa: PLC0415

    row, _ = read_cycle(ref, position=None, failed_attempts=0)
    return row


def line_of(row: Cycle) -> str:
    """The line of a cycle: ``Energy 12.3 J (counter, board, not characterised), 384 output tokens, 32 mJ/token``."""
    if row.status == "damaged":
        return f"The stored result cannot be read: {row.reason}"
    said = [_energy(row), counted(round(row.measures.get("output_tokens") or 0), "output token")]
    per_token_j = row.measures.get("energy_per_output_token_j")
    if per_token_j is not None:
        said.append(_per_token(per_token_j))
    return ", ".join(said)


def _energy(row: Cycle) -> str:
    joules = row.measures.get("energy_j")
    if joules is None:
        return f"No energy ({row.reason or 'the study asks for no meter'})"
    uncertainty = f" ± {_number(row.energy_uncertainty_j)}" if row.energy_uncertainty_j else ""
    # An estimate has no other source than its meter; what is measured need not say so.
    kind = None if row.energy_kind == "measured" else row.energy_kind
    sources = [kind, row.energy_source, row.energy_boundary, row.characterised]
    if row.energy_kind == "estimate":
        sources = [kind, row.fingerprint.get("meter")]
    return f"Energy {_number(joules)}{uncertainty} J ({', '.join(str(each) for each in sources if each)})"


def _per_token(joules: float) -> str:
    return f"{_number(joules)} J/token" if joules >= 0.1 else f"{_number(joules * 1000)} mJ/token"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def key_numbers(summary: Summary) -> dict[str, Any]:
    """Mean, 95 % interval and number of cycles of the headline metrics, by experiment."""
    found: dict[str, Any] = {}
    for experiment in summary.experiments[:_SHOWN]:
        numbers: dict[str, Any] = {}
        for name in HEADLINES:
            metric = experiment.metric(name)
            if metric is not None:
                interval = metric.all.interval
                numbers[name] = {
                    "mean": metric.all.mean,
                    "low": interval.low if interval else None,
                    "high": interval.high if interval else None,
                    "n": metric.all.n,
                }
        found[experiment.id] = numbers
    return {
        "study": summary.study,
        "planned": summary.planned,
        "valid": summary.valid,
        "energy_kind": summary.energy_kind,
        "experiments": found,
    }


def baseline_run(study: Study, run: StoredRun, root: ResultsRoot) -> StoredRun | None:
    """The aggregated run that this one is compared with, or None when there is none yet.

    With ``regression.baseline: previous`` the newest one before this run of the same release, else the newest run of
    the release that is named.
    """
    from llem_airflow.analysis.compare_named import PREVIOUS, previous_run, run_of_release  # noqa: PLC0415 - a study without `regression` needs none of it

    wanted = study.airflow.compared
    if wanted is None:
        return None
    if wanted.baseline == PREVIOUS:
        return previous_run(run)
    found = run_of_release(study.name, wanted.baseline, root)
    return None if found is None or found.url == run.url else found


def compared(study: Study, baseline: StoredRun, run: StoredRun) -> Compared:
    """Each experiment of the run against the same experiment of the baseline, whatever release each measured."""
    from llem_airflow.analysis.compare import How, compare_runs  # noqa: PLC0415 - likewise
    from llem_airflow.analysis.compare_named import Compared  # noqa: PLC0415 - SciPy, which no other task needs

    wanted = study.airflow.compared
    how = How(metric=wanted.metric, threshold_ratio=wanted.threshold_ratio) if wanted else How()
    return Compared(tuple(compare_runs(baseline, run, how)))


def said(found: Compared, metric: str, *verdicts: str) -> list[str]:
    """A sentence for each experiment, or for those with one of the verdicts, the gravest first."""
    from llem_airflow.analysis.verdict import GRAVEST_FIRST  # noqa: PLC0415 - SciPy, loaded by what made `found`

    reports = sorted(found.reports, key=lambda report: GRAVEST_FIRST.index(report.verdict_on(metric)))
    return [
        _sentence(each, metric) for each in reports if not verdicts or each.verdict_on(metric) in verdicts
    ]


def cautions(found: Compared) -> list[str]:
    """What the verdicts cannot know, a sentence each."""
    return sorted({f"Caution: {report.caution}." for report in found.reports if report.caution})


def nightly(study: Study, run: StoredRun) -> dict[str, Trend]:
    """The nightly verdict: the history of each experiment that the run measured, by its id."""
    from llem_airflow.analysis.history import history_until  # noqa: PLC0415 - SciPy, which no other task needs

    wanted = study.airflow.compared
    return history_until(run, wanted.metric, wanted.threshold_ratio) if wanted else {}


def worse(trends: Mapping[str, Trend], run: StoredRun, metric: str) -> list[str]:
    """A sentence for each experiment whose newest run tells a regression."""
    return [
        f"{run.study}/{run.folder.name}#{name}: {metric}: {one.state}; now {one.points[-1].mean:.4g}, "
        f"{counted(len(one.points), 'run')}"
        for name, one in trends.items()
        if str(one.verdict) == "regression"
    ]


def changes(found: Compared) -> dict[str, Any]:
    """How much each metric changed, by candidate; for an XCom, so in plain values and bounded in size."""
    return {
        "baselines": {report.candidate: report.baseline for report in found.reports[:_SHOWN]},
        "changes": {
            report.candidate: {
                name: {
                    "verdict": str(one.verdict),
                    "difference_ratio": one.difference_ratio,
                    "low_ratio": one.low_ratio,
                    "high_ratio": one.high_ratio,
                    "p_adjusted": one.p_adjusted,
                    "n_baseline": one.n_baseline,
                    "n_candidate": one.n_candidate,
                }
                for name, one in report.metrics.items()
            }
            for report in found.reports[:_SHOWN]
        },
        "without_baseline": list(found.without_baseline),
        "only_baseline": list(found.only_baseline),
        "only_candidate": list(found.only_candidate),
    }


def _sentence(report: PairReport, metric: str) -> str:
    from llem_airflow.analysis import formatting  # noqa: PLC0415 - SciPy, loaded by what made the report
    from llem_airflow.analysis.hosts import on_hosts  # noqa: PLC0415 - likewise

    what = f"{report.candidate} against {report.baseline}: {report.verdict_on(metric)}"
    if report.differences:
        listed = "; ".join(f"{key}: {a} against {b}" for key, (a, b) in report.differences.items())
        return f"{what}: conditions differ: {listed}"
    one = report.metrics.get(metric)
    if one is None:
        return f"{what}: no values of {metric} on both sides"
    interval = formatting.change_interval(one.low_ratio, one.high_ratio)
    bounds = f" ({interval})" if interval else ""
    why = f"; {one.reason}" if one.reason else ""
    change = formatting.ABSENT if one.difference_ratio is None else f"{one.difference_ratio:+.1%}"
    means = [formatting.number(mean, 4) for mean in (one.mean_baseline, one.mean_candidate)]
    answers = (
        f"; answers: {report.answers.reason}"
        if report.answers and report.answers.finding == "suspicious"
        else ""
    )
    return (
        f"{what}: {metric} {change}{bounds}, {' -> '.join(means)}, "
        f"n = {one.n_baseline} and {counted(one.n_candidate, 'cycle')}{on_hosts(one.hosts)}{why}{answers}"
    )
