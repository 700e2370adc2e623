"""What the command line's verbs about results do: print, and return the exit code."""

from __future__ import annotations

import sys
import webbrowser

from rich.console import Console

from llem_airflow.analysis.aggregate import aggregate_run
from llem_airflow.analysis.summary import Summary
from llem_airflow.analysis.table import render_summary
from llem_airflow.protocol.strict import ProtocolError
from llem_airflow.results import ResultReadError, ResultsRoot, StoredRun, names
from llem_airflow.results.folder import ResultsWriteError
from llem_airflow.results.locate import NoSuchRunError, locate_run


def report_run(run: str, results_root: str, *, open_browser: bool = False) -> int:
    """Print the table of a run and where its report lies; a run that was not aggregated yet is aggregated."""
    try:
        found = locate_run(run, ResultsRoot(results_root))
        summary = load_summary(found) or aggregate_run(found)
    except (NoSuchRunError, ResultReadError, ResultsWriteError, ProtocolError) as error:
        return _refused(error)
    console = Console()
    console.print(render_summary(summary))
    where = f"{found.url}/{names.REPORT}"
    console.print(f"\nReport: {where}", soft_wrap=True, highlight=False)
    if open_browser:
        webbrowser.open(found.path.joinpath(names.REPORT).as_uri() if found.path else where)
    return 0


def load_summary(run: StoredRun) -> Summary | None:
    """The stored summary of a run, or None before it was aggregated."""
    data = run.summary()
    return Summary.from_json(data, f"{run.url}/{names.SUMMARY}") if data else None


def _refused(error: Exception) -> int:
    print(error.args[0] if isinstance(error, LookupError) else error, file=sys.stderr)  # noqa: T201 - the command's message
    return 2
