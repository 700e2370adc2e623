"""What the command line's verbs about results do: print, and return the exit code."""

from __future__ import annotations

import json
import sys
import time
import webbrowser
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import RenderableType
from rich.text import Text

from llem_airflow.analysis import formatting
from llem_airflow.analysis.aggregate import aggregate_run
from llem_airflow.analysis.compare import How
from llem_airflow.analysis.compare_named import Compared, against_previous, compare_named
from llem_airflow.analysis.history import histories
from llem_airflow.analysis.integrity import check_run
from llem_airflow.analysis.metrics import BY_NAME
from llem_airflow.analysis.summary import load_summary
from llem_airflow.analysis.tables import cycle_rows
from llem_airflow.analysis.verdict import Verdict
from llem_airflow.report.markdown import report_markdown
from llem_airflow.report.page import report_html
from llem_airflow.report.terminal import (
    history_json,
    render_comparisons,
    render_cycles,
    render_reliability,
    render_summary,
    render_trends,
)
from llem_airflow.results import ResultReadError, ResultsRoot, StoredRun, layout
from llem_airflow.results.cleanup import removable, remove, remove_orphans
from llem_airflow.results.llenergymeasure import import_folder
from llem_airflow.results.store import locate_run, run_name, some_runs
from llem_airflow.text import terminal
from llem_airflow.text.terminal import Rows
from llem_airflow.text.wording import counted


def report_run(
    run: str, results_root: str, *, open_browser: bool = False, again: bool = False, form: str = "table"
) -> int:
    """Print the table of a run and where its report lies; aggregate it if that was not done."""
    found = locate_run(run, ResultsRoot(results_root))
    stored = None if again else load_summary(found)
    summary = stored or aggregate_run(found, page=report_html)
    if form != "table":
        previous = against_previous(found)
        said = {**summary.to_json(), "since_previous": previous.to_json() if previous else None}
        text = (
            json.dumps(said, indent=1, allow_nan=False)
            if form == "json"
            else report_markdown(summary, previous)
        )
        sys.stdout.write(text + "\n")
        return 0
    where = f"{found.url}/{layout.REPORT}"
    _print(render_summary(summary), "")
    if summary.valid < summary.planned:
        _print(
            Text(f"Unfinished: {summary.valid} of {counted(summary.planned, 'planned cycle')} valid.", "red")
        )
    _line(f"Report: {where}")
    if open_browser:
        webbrowser.open(found.path.joinpath(layout.REPORT).as_uri() if found.path else where)
    return 0


def show(run: str, results_root: str, view: str) -> int:
    """Print a stored run: its experiments, its cycles, or how reliable its hosts and engines were."""
    found = locate_run(run, ResultsRoot(results_root))
    summary = load_summary(found) or aggregate_run(found, page=report_html)
    if view == "cycles":
        _print(render_cycles(cycle_rows(found)))
    elif view == "reliability":
        _print(render_reliability(summary))
    else:
        _print(render_summary(summary))
    return 0


def import_peer(folder: Path, results_root: str, study: str | None) -> int:
    """Make a run of a results folder of llenergymeasure and print it; 1 when a bundle could not be read."""
    run, problems = import_folder(folder, ResultsRoot(results_root), study)
    aggregate_run(run, page=report_html)
    code = show(run.url, results_root, "experiments")
    for problem in problems:
        _line(f"not imported: {problem}")
    return 1 if problems else code


def compare(
    baseline: str,
    candidates: Sequence[str],
    results_root: str,
    how: How,
    *,
    as_json: bool = False,
    fail_on_regression: bool = False,
) -> int:
    """Print a comparison; 1 when it finds a regression and the caller asked for that."""
    found = compare_named(baseline, candidates, ResultsRoot(results_root), how)
    if as_json:
        sys.stdout.write(
            json.dumps([report.to_json() for report in found.reports], indent=1, allow_nan=False) + "\n"
        )
    else:
        _print_comparison(found)
    worse = any(report.verdict is Verdict.REGRESSION for report in found.reports)
    return 1 if worse and fail_on_regression else 0


def show_history(study: str, results_root: str, metric: str, *, as_json: bool = False) -> int:
    """Print how a metric of a study's experiments went over its runs."""
    if metric not in BY_NAME:
        raise ValueError(f"{metric!r} is no metric; there are: {', '.join(BY_NAME)}")
    if BY_NAME[metric].better == "-":
        judged = ", ".join(one.name for one in BY_NAME.values() if one.better != "-")
        raise ValueError(
            f"{metric}: more of it is neither better nor worse, so no history can judge it; use {judged}"
        )
    root = ResultsRoot(results_root)
    some_runs(root, study)
    trends = {str(name): one for name, one in histories(root, study, metric).items()}
    if not trends:
        raise ResultReadError(f"{root.url}: no aggregated run of {study!r} has a value of {metric}")
    if as_json:
        sys.stdout.write(json.dumps(history_json(trends, metric, study), indent=1, allow_nan=False) + "\n")
        return 0
    _print(render_trends(trends, metric))
    return 0


def list_runs(results_root: str, *, study: str | None = None, limit: int = 0, skip: int = 0) -> int:
    """Print runs under a root, the newest first; only those that are printed are read.

    Args:
        results_root: The root.
        study: Only this study's.
        limit: How many at most; 0 for all.
        skip: How many newer ones are left out.
    """
    found = some_runs(ResultsRoot(results_root), study)[::-1]
    shown = found[skip : skip + limit if limit else None]
    rows = [(run_name(run), formatting.when(run.started_epoch_ns() or None), *_state(run)) for run in shown]
    if rows:
        _print(Rows(("Run", "Started", "Valid", "Energy", "State"), rows, whole=True))
    if len(shown) < len(found):
        _line(_which(len(shown), len(found), skip))
    return 0


def _which(shown: int, there: int, skip: int) -> str:
    """Which runs of how many stand above, and how one sees others."""
    if not shown:
        return f"There are no older runs than the {there} that --skip {skip} leaves out"
    older = f"; older ones: --skip {skip + shown}" if skip + shown < there else ""
    return f"Runs {skip + 1} to {skip + shown} of {there}{older}"


def _state(run: StoredRun) -> tuple[str, str, str]:
    """How many cycles are valid, the kind of energy, and how far it is; a damaged run hides no other."""
    try:
        summary = load_summary(run)
    except (ValueError, OSError) as error:
        return formatting.ABSENT, formatting.ABSENT, f"damaged: {error}"
    if summary is None:
        return formatting.ABSENT, formatting.ABSENT, "not aggregated"
    return f"{summary.valid}/{summary.planned}", summary.energy_kind, "done"


def check(run: str, results_root: str) -> int:
    """Print what is wrong with the stored evidence of a run; 1 when something is."""
    found = locate_run(run, ResultsRoot(results_root))
    cycles = len(found.cycles(repeats=True))
    if not cycles:
        raise ResultReadError(f"{found.url}: no cycle has a result: there is nothing to check")
    problems = check_run(found)
    for problem in problems:
        _line(f"{problem.where}: {problem.what}. Next step: {problem.next_step}.")
    count = counted(len(problems), "problem") if problems else "no problems"
    _line(f"{found.url}: {counted(cycles, 'cycle')}, {count}")
    return 1 if problems else 0


def prune(
    results_root: str, *, study: str | None, keep_runs: int | None, keep_days: float | None, yes: bool
) -> int:
    """Print which runs may go, and remove them only when told so."""
    root = ResultsRoot(results_root)
    some_runs(root, study)
    found = removable(
        root, now_epoch_ns=time.time_ns(), keep_runs=keep_runs, keep_days=keep_days, study=study
    )
    for item in found:
        _line(f"{item.run.url}  {item.size_bytes / 1e6:.1f} MB  {item.reason}")
    total = sum(item.size_bytes for item in found) / 1e6
    if yes:
        remove(found)
        now = time.time_ns()
        for name in [study] if study else root.studies():
            for path in remove_orphans(root.folder.child(layout.folder_name(name)), now):
                _line(f"{path}: left by a killed process over an hour ago, removed")
    done = "removed" if yes else "would be removed; add --yes to do it"
    _line(f"{counted(len(found), 'run')}, {total:.1f} MB {done}")
    return 0


def _print(*parts: RenderableType) -> None:
    terminal.show(terminal.console(), *parts)


def _line(text: str) -> None:
    """A line that copies whole, however long."""
    _print(terminal.Whole(text))


def _print_comparison(found: Compared) -> None:
    for note in found.notes:
        _print(terminal.Folding(note))
    for name in found.without_baseline:
        _line(f"{name}: no earlier run of this study and release to compare with")
    if not found.reports and not found.without_baseline:
        _print(
            "These runs have no experiment in common. Name one of each as RUN#EXPERIMENT, or the key that differs "
            "with --factor."
        )
    if found.reports:
        _print(render_comparisons(found.reports))
    if len(found.reports) > 1:
        verdicts = Counter(str(report.verdict) for report in found.reports)
        _print(
            f"{counted(len(found.reports), 'pair')}: "
            + ", ".join(f"{n} {what}" for what, n in verdicts.most_common())
        )
    for title, missing in (("reference", found.only_baseline), ("candidate", found.only_candidate)):
        for name in missing:
            _line(f"only in the {title} run: {name}")
