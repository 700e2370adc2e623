"""What a run's report says, as text files: ``python -m tests.report.golden`` writes golden/ anew; read the diff."""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from rich.console import Console, RenderableType

from llem_airflow.analysis.aggregate import aggregate_run
from llem_airflow.analysis.compare import How
from llem_airflow.analysis.compare_named import against_previous, compare_named
from llem_airflow.analysis.history import histories
from llem_airflow.analysis.tables import cycle_rows
from llem_airflow.report.markdown import report_markdown
from llem_airflow.report.terminal import (
    render_comparisons,
    render_cycles,
    render_reliability,
    render_summary,
    render_trends,
)
from llem_airflow.results import ResultsRoot, StoredRun
from tests.report.runs import RUNS

GOLDEN = Path(__file__).parent / "golden"
METRIC = "energy_per_output_token_j"


def made(name: str, folder: Path) -> dict[str, str]:
    """Each text of a recorded run by its file name."""
    root = ResultsRoot(folder / "results")
    runs = RUNS[name](root, folder)
    summaries = [aggregate_run(run) for run in runs]
    run, summary = runs[-1], summaries[-1]
    views = (render_summary(summary), render_cycles(cycle_rows(run)), render_reliability(summary))
    found = {
        "terminal.txt": "".join(map(_terminal, views)),
        "report.md": report_markdown(summary, against_previous(run)),
    }
    if len(runs) > 1:
        found |= _over_runs(root, runs)
    if name == "sweep":
        found |= {f"{table}.schema": _schema(run, table) for table in ("cycles", "experiments", "power")}
    return {key: text.replace(root.url, "ROOT").rstrip() + "\n" for key, text in found.items()}


def _over_runs(root: ResultsRoot, runs: list[StoredRun]) -> dict[str, str]:
    study = runs[0].study
    trends = {str(key): one for key, one in histories(root, study, METRIC).items()}
    first, other = f"{study}@tiny@2601", f"{study}@tiny@2602"
    pairs = {
        "releases": compare_named(first, [other], root, How()),
        "nights": compare_named("previous", [runs[3].url], root, How()),
        "experiments": compare_named(
            f"{runs[0].url}#tiny-batch-0-aaaaaaaa", [f"{runs[0].url}#tiny-batch-1-bbbbbbbb"], root, How()
        ),
    }
    return {
        "history.txt": _terminal(render_trends(trends, METRIC)),
        "compare.txt": "".join(
            f"== {name}\n{_terminal(render_comparisons(found.reports))}" for name, found in pairs.items()
        ),
    }


def _terminal(what: RenderableType) -> str:
    console = Console(width=110, file=io.StringIO(), record=True)
    console.print(what)
    return "\n".join(line.rstrip() for line in console.export_text().splitlines()) + "\n"


def _schema(run: StoredRun, table: str) -> str:
    with run.folder.open(f"{table}.parquet") as file:
        schema: Any = pq.read_schema(file)
    return str(schema.to_string(show_schema_metadata=False))


def main(folder: Path = GOLDEN) -> None:
    """Write every text."""
    for name in RUNS:
        with tempfile.TemporaryDirectory() as scratch:
            texts = made(name, Path(scratch))
        (folder / name).mkdir(parents=True, exist_ok=True)
        for key, text in texts.items():
            (folder / name / key).write_text(text)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
