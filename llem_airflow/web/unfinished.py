"""A run without a report: what is going on in it, what went wrong, or what it compared."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi.responses import HTMLResponse

from llem_airflow.results import ResultsRoot, StoredRun
from llem_airflow.text.wording import counted
from llem_airflow.web.document import heading, items, page, paragraph, table, verbatim
from llem_airflow.web.seen import SeenRun

_TITLES = {
    "queued": "This run waits to start",
    "running": "This run is at work",
    "failed": "This run failed before there was a report",
    "success": "This run measured nothing",
}
_SHOWN = 50
_FAILED = {"failed", "up_for_retry"}


def unfinished_page(seen: SeenRun, run: StoredRun | None, root: ResultsRoot) -> HTMLResponse:
    """What is going on in a run, or what ended it."""
    parts = [_said(seen, run, root)]
    for failure, named in list(_failures(seen).items())[:_SHOWN]:
        parts += [
            heading(f"{_some(named)} failed"),
            verbatim(failure) if failure else paragraph("The log says why."),
        ]
    if run is not None and (failures := run.failures()):
        parts.append(heading("Attempts that failed"))
        parts.append(
            table(
                ("experiment", "cycle", "attempt", "why"),
                [
                    (ref.experiment_id, str(ref.cycle), str(ref.attempt), ": ".join(ref.reason()))
                    for ref in failures[-_SHOWN:]
                ],
            )
        )
    parts += [heading("Tasks"), table(("state", "tasks", ""), list(_states(seen)))]
    return page(_TITLES.get(seen.state, "This run has no report"), *parts, refreshes=not seen.ended)


def _said(seen: SeenRun, run: StoredRun | None, root: ResultsRoot) -> str:
    if run is not None:
        planned = run.plan().get("runs", 0)
        attempts = len(run.failures())
        failed = f", {counted(attempts, 'attempt')} failed" if attempts else ""
        last = "" if seen.ended else " The report appears when the task aggregate has run."
        return paragraph(
            f"{len(run.cycles())} of {counted(planned, 'planned cycle')} measured{failed}.{last}"
        )
    if not seen.ended:
        return paragraph("No cycle has begun yet. The report appears when the task aggregate has run.")
    if any("cycle" in task.name and task.state == "success" for task in seen.tasks):
        return paragraph(
            f"Its cycles were measured, but their results are not under {root.url} (option results_root of section "
            "[llem]): they were moved or removed, or lie under another root."
        )
    return paragraph("No cycle was measured.")


def _failures(seen: SeenRun) -> dict[str, list[str]]:
    """Names of the failed tasks by what they failed with: one mistake can end several."""
    found: dict[str, list[str]] = {}
    for task in seen.tasks:
        if task.state in _FAILED:
            found.setdefault(task.failure, []).append(task.name)
    return found


def _some(named: list[str]) -> str:
    more = f", and {len(named) - 3} more" if len(named) > 3 else ""
    return "; ".join(named[:3]) + more


def _states(seen: SeenRun) -> Iterator[tuple[str, str, str]]:
    for state, count in seen.counts().items():
        named = [task.name for task in seen.tasks if task.state == state]
        yield state.replace("_", " "), str(count), _some(named)


def comparison_page(seen: SeenRun) -> HTMLResponse:
    """The verdicts of a run that compares."""
    title = "Comparison: " + ", ".join(str(found["verdict"]) for found in seen.comparisons)
    return page(title, *(_comparison(found) for found in seen.comparisons), refreshes=not seen.ended)


def _comparison(found: dict[str, Any]) -> str:
    """A table for each pair of runs, which are named once above it."""
    from llem_airflow.analysis.metrics import BY_NAME  # noqa: PLC0415 - likewise
    from llem_airflow.report.view import by_runs, pair_label  # noqa: PLC0415 - SciPy, for whoever looks

    metric, baselines = str(found.get("metric", "")), found.get("baselines", {})
    said = [str(text) for text in found["said"]]
    pairs = [(baselines[name], name) for name in found["outcomes"] if name in baselines]
    parts = []
    for (reference, candidate), members in by_runs(pairs).items():
        same = reference == candidate
        parts.append(heading(f"Within run {candidate}" if same else f"{candidate} against {reference}"))
        rows = []
        for names in (pairs[index] for index in members):
            label, one = pair_label(*names), found["changes"].get(names[1], {}).get(metric, {})
            n = f"{one['n_baseline']} and {one['n_candidate']}" if one else ""
            rows.append((label, str(found["outcomes"][names[1]]), _change(one), n))
            said = [text.replace(f"{names[1]} against {names[0]}: ", f"{label}: ") for text in said]
        label = BY_NAME[metric].label if metric in BY_NAME else metric
        parts.append(table(("Experiment", "Verdict", label, "n"), rows))
    alone = [f"No earlier run to compare with: {name}" for name in found.get("without_baseline", ())]
    return "".join(parts) + items([*said, *alone])


def _change(one: dict[str, Any]) -> str:
    from llem_airflow.analysis import formatting  # noqa: PLC0415 - SciPy, for whoever looks

    if one.get("difference_ratio") is None:
        return ""
    interval = formatting.change_interval(one.get("low_ratio"), one.get("high_ratio"))
    return formatting.signed(one["difference_ratio"]) + (f" ({interval})" if interval else "")
