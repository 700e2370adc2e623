"""Which run is compared with which: named runs and releases, the previous run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llem_airflow.analysis.compare import (
    COMPARED,
    How,
    PairReport,
    compare_runs,
    compare_sides,
    corrected,
    unmatched,
)
from llem_airflow.analysis.history import Trend, history_until
from llem_airflow.analysis.tables import RunRows
from llem_airflow.analysis.verdict import Verdict
from llem_airflow.results import ResultReadError, ResultsRoot, StoredRun, layout
from llem_airflow.results.store import NoSuchRunError, locate_run, runs_in
from llem_airflow.text.wording import counted

PREVIOUS = "previous"
EVERY_RELEASE = "*"


def previous_run(run: StoredRun) -> StoredRun | None:
    """The newest aggregated run of the same study and model release that began before this one."""
    release, began = run.facts().get("version"), run.started_epoch_ns()
    for other in reversed(runs_in(run.folder.above())):
        earlier = other.started_epoch_ns() < began and other.folder.path != run.folder.path
        if earlier and other.is_aggregated() and other.facts().get("version") == release:
            return other
    return None


def run_of_release(study: str, release: str, root: ResultsRoot) -> StoredRun | None:
    """The newest aggregated run of a model release."""
    return runs_of_releases(study, root).get(release)


def runs_of_releases(study: str, root: ResultsRoot) -> dict[str, StoredRun]:
    """The newest aggregated run of each model release of a study, the oldest of them first."""
    found: dict[str, StoredRun] = {}
    for run in root.aggregated(study):
        release = run.facts().get("version")
        if isinstance(release, str):
            found.pop(release, None)
            found[release] = run
    return found


def named_runs(text: str, root: ResultsRoot) -> list[StoredRun]:
    """The runs that a text names: one, or all of ``study@*``.

    Args:
        text: What ``locate_run`` knows, ``study@release`` (its newest aggregated run), or ``study@*``.
        root: Where to look.

    Raises:
        NoSuchRunError: There is none; the message says what there is.
    """
    study, at, release = text.partition("@")  # releases may be called Qwen/Qwen3-8B@2507
    if not at or layout.folder_name(study) not in root.studies():
        return [locate_run(text, root)]
    there = runs_of_releases(study, root)
    if release == EVERY_RELEASE and there:
        return list(there.values())
    if release in there:
        return [there[release]]
    known = ", ".join(there) or "none"
    raise NoSuchRunError(
        f"no aggregated run of the release {release!r} of study {study!r} under {root.url}; releases: {known}"
    )


@dataclass(frozen=True)
class Compared:
    """What came out of a comparison.

    Attributes:
        reports: Each pair of experiments; their p values are corrected together.
        without_baseline: Candidates for which there is no earlier run yet.
        only_baseline: ``run#experiment`` that no candidate has.
        only_candidate: ``run#experiment`` that its reference run does not have.
        same: Runs, or ``run#experiment``, that were compared with themselves.
    """

    reports: tuple[PairReport, ...]
    without_baseline: tuple[str, ...] = ()
    only_baseline: tuple[str, ...] = ()
    only_candidate: tuple[str, ...] = ()
    same: tuple[str, ...] = ()

    @property
    def notes(self) -> list[str]:
        """What was compared with itself, a sentence each."""
        advice = "`previous` is the run before; RUN#EXPERIMENT names one of two experiments of a run"
        return [f"{name}: both sides are the same run, so nothing can differ; {advice}" for name in self.same]


def compare_named(
    baseline: str, candidates: Sequence[str], root: ResultsRoot, how: How, own: StoredRun | None = None
) -> Compared:
    """Compare candidates with their reference run.

    Args:
        baseline: A run, ``study@release``, or ``previous`` for the run before each candidate; ``#experiment`` behind
            it names one experiment.
        candidates: Runs, ``study@release``, ``study@*``; likewise.
        root: Where to look.
        how: How to compare.
        own: The run that an empty name means.

    Raises:
        NoSuchRunError: A name names no run.
        ResultReadError: A run was not aggregated, or has no such experiment.
        ValueError: The names do not fit together.
    """
    base, _, base_experiment = baseline.partition("#")
    reports: list[PairReport] = []
    alone: list[str] = []
    same: list[str] = []
    only: tuple[list[str], list[str]] = ([], [])
    named = None if base == PREVIOUS else RunRows.of(_one(base, root, own))
    for text in candidates:
        name, _, experiment = text.partition("#")
        if bool(experiment) != bool(base_experiment):
            raise ValueError(f"{baseline!r} and {text!r}: name an experiment on both sides, or on neither")
        several = name.endswith("@*")
        runs = _runs(name, root, own)
        for run in runs:
            earlier = named or previous_run(run)
            if earlier is None:
                alone.append(run.url)
                continue
            ours = RunRows.of(earlier)
            theirs = ours if ours.run.url == run.url else RunRows.of(run)
            if several and theirs is ours:
                continue
            if theirs is ours and experiment == base_experiment:
                same.append(f"{run.url}#{experiment}" if experiment else run.url)
            if experiment:
                before = ours.side(base_experiment, without_flagged=how.without_flagged)
                after = theirs.side(experiment, without_flagged=how.without_flagged)
                reports.append(compare_sides(before, after, how))
            else:
                reports += compare_runs(ours, theirs, how)
                _note_unmatched(only, ours, theirs, how)
    gone = tuple(dict.fromkeys(only[0]))
    return Compared(tuple(corrected(reports)), tuple(alone), gone, tuple(only[1]), tuple(same))


def compare_each(baseline: StoredRun, candidates: Sequence[StoredRun], how: How) -> Compared:
    """The same for runs that are known: every experiment that the reference has in common with each candidate.

    Raises:
        ResultReadError: A run was not aggregated.
    """
    ours = RunRows.of(baseline)
    reports: list[PairReport] = []
    only: tuple[list[str], list[str]] = ([], [])
    same = []
    for run in candidates:
        theirs = ours if run.url == baseline.url else RunRows.of(run)
        if theirs is ours:
            same.append(run.url)
        reports += compare_runs(ours, theirs, how)
        _note_unmatched(only, ours, theirs, how)
    return Compared(tuple(corrected(reports)), (), tuple(only[0]), tuple(only[1]), tuple(same))


def _runs(name: str, root: ResultsRoot, own: StoredRun | None) -> list[StoredRun]:
    if name:
        return named_runs(name, root)
    if own is None:
        raise ValueError("a name without a run means the run of this DAG run, and there is none here")
    return [own]


def _one(name: str, root: ResultsRoot, own: StoredRun | None) -> StoredRun:
    found = _runs(name, root, own)
    if len(found) != 1:
        raise ValueError(f"{name!r} names {counted(len(found), 'run')}; name one reference run")
    return found[0]


def _note_unmatched(only: tuple[list[str], list[str]], earlier: RunRows, run: RunRows, how: How) -> None:
    ours, theirs = unmatched(earlier, run, how.factor)
    only[0].extend(f"{earlier.run.url}#{name}" for name in ours)
    only[1].extend(f"{run.run.url}#{name}" for name in theirs)


@dataclass(frozen=True)
class PreviousRun:
    """The previous run, and what changed against it.

    Attributes:
        run_id: Id of the run before.
        started_epoch_ns: When it began.
        reports: Each experiment that both have.
        new: Experiments that the run before does not have.
        gone: Experiments that only the run before has.
        problem: Why nothing could be compared, or empty.
        history: The history of each experiment of this run by its id; its verdict is the one that counts.
    """

    run_id: str
    started_epoch_ns: int
    reports: tuple[PairReport, ...] = ()
    new: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    problem: str = ""
    history: Mapping[str, Trend] = field(default_factory=dict)

    def verdict_of(self, report: PairReport) -> Verdict:
        """Of the history, which knows how much whole runs differ; conditions that differ are told before it."""
        found = self.history.get(report.candidate.rpartition("#")[2])
        return report.verdict if found is None or report.differences else found.verdict

    def told(self) -> dict[str, Any]:
        """What previous.json keeps: by experiment its verdict, and of each metric the change and its 95 % interval."""
        return {
            "schema_version": 1,
            "run_id": self.run_id,
            "started_epoch_ns": self.started_epoch_ns,
            "problem": self.problem,
            "new": list(self.new),
            "gone": list(self.gone),
            "experiments": {
                report.candidate.rpartition("#")[2]: {
                    "verdict": str(self.verdict_of(report)),
                    "changes": {
                        name: [_finite(one.difference_ratio), _finite(one.low_ratio), _finite(one.high_ratio)]
                        for name, one in report.metrics.items()
                    },
                }
                for report in self.reports
            },
        }

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "run_id": self.run_id,
            "started_epoch_ns": self.started_epoch_ns,
            "problem": self.problem,
            "comparisons": [report.to_json() for report in self.reports],
            "new": list(self.new),
            "gone": list(self.gone),
            "history": {
                name: {
                    "verdict": str(one.verdict),
                    "state": one.state,
                    "runs": len(one.points),
                    "changes": [
                        {"run": each.run_id, "ratio": each.ratio, "p": each.p} for each in one.changes
                    ],
                    "note": one.note,
                }
                for name, one in self.history.items()
            },
        }


def _finite(ratio: float | None) -> float | None:
    return ratio if ratio is not None and math.isfinite(ratio) else None


def against_previous(run: StoredRun) -> PreviousRun | None:
    """An aggregated run against the newest aggregated one before it of the same study and release, if there is one."""
    before = previous_run(run)
    if before is None:
        return None
    try:
        ours, theirs = RunRows.of(before), RunRows.of(run)
        reports = compare_runs(ours, theirs)
        gone, new = unmatched(ours, theirs)
    except (ResultReadError, ValueError) as error:
        return PreviousRun(before.run_id, before.started_epoch_ns(), problem=str(error))
    history: dict[str, Trend] = {}
    for metric in COMPARED[:2]:  # the second where there is no energy
        history = history or history_until(run, metric)
    return PreviousRun(
        before.run_id, before.started_epoch_ns(), tuple(reports), tuple(new), tuple(gone), history=history
    )
