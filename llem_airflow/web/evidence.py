"""The evidence of one cycle: its numbers and doubts, its failed attempts, and where the files lie."""

from __future__ import annotations

import html
from collections.abc import Iterator
from urllib.parse import urlencode

from fastapi.responses import HTMLResponse

from llem_airflow.operators.energy import line_of
from llem_airflow.results import CycleRef, StoredRun
from llem_airflow.results.folder import Folder
from llem_airflow.results.layout import LOG
from llem_airflow.results.records import FailureRef
from llem_airflow.text.wording import counted
from llem_airflow.web.document import heading, items, page, paragraph, table, verbatim

_TAIL_LINES = 40


def cycle_page(run: StoredRun, experiment: str, cycle: int) -> HTMLResponse:
    """What a cycle of a run left."""
    refs = [ref for ref in run.cycles(repeats=True) if (ref.experiment_id, ref.cycle) == (experiment, cycle)]
    failures = [ref for ref in run.failures() if (ref.experiment_id, ref.cycle) == (experiment, cycle)]
    parts = [part for ref in reversed(refs) for part in _measured(ref)]
    parts += [part for ref in reversed(failures) for part in _failed(ref)]
    skipped = run.skipped(needed=True) | run.skipped(needed=False)
    reasons = [skipped[experiment, cycle]] if (experiment, cycle) in skipped else []
    parts += [paragraph(f"Not measured: {reason}") for reason in reasons]
    if not parts:
        parts = [
            paragraph(
                "No attempt has left a result or an error: none has ended yet, or it ended together with its worker; "
                "then the log of the task says more."
            )
        ]
    query = urlencode({"dag_id": run.meta().get("dag_id", ""), "run_id": run.run_id})
    report = f"<p><a href='run?{html.escape(query)}'>Report of the run</a></p>"
    return page(f"{experiment}, cycle {cycle}", *parts, report)


def _measured(ref: CycleRef) -> Iterator[str]:
    from llem_airflow.analysis.cycle import read_cycle  # noqa: PLC0415 - NumPy, for whoever looks

    row, _ = read_cycle(ref, position=None, failed_attempts=0)
    yield heading(f"Result {ref.repeat + 1}" if ref.repeat else "Result")
    yield paragraph(line_of(row))
    yield items(f"{flag.severity}: {flag.code}: {flag.message} {flag.next_step}" for flag in row.flags)
    yield _files(ref.folder)


def _failed(ref: FailureRef) -> Iterator[str]:
    from llem_airflow.analysis.formatting import sentence  # noqa: PLC0415 - as above

    category, message = ref.reason()
    yield heading(f"Attempt {ref.attempt} failed: {category}")
    yield paragraph(sentence(message))
    if advice := ref.advice():
        yield paragraph(f"What to do: {advice}")
    if ref.folder.exists(LOG):
        lines = ref.folder.read(LOG).decode("utf-8", "replace").splitlines()
        yield verbatim("\n".join(lines[-_TAIL_LINES:]))
    yield _files(ref.folder)


def _files(folder: Folder) -> str:
    rows = [(name, counted(folder.size(name), "byte")) for name in sorted(folder.files())]
    return paragraph(f"Files in {folder.url}:") + table(("file", "size"), rows)
