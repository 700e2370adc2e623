"""Verbs about stored results: report, compare, history, and those of ``results``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from llem_airflow.cli.names import ROOT, RUN, complete_run, complete_study


@click.command("report")
@RUN
@ROOT
@click.option("--open", "open_browser", is_flag=True, help="Open the page in the browser.")
@click.option("--again", is_flag=True, help="Aggregate again first.")
@click.option(
    "--format", "form", type=click.Choice(["table", "markdown", "json"]), default="table", show_default=True
)
def show_report(run: str, results_root: str, **options: Any) -> int:
    """Print the table of a RUN and the path of its report.

    RUN is the folder of a run, STUDY/RUN, STUDY (its newest run) or latest.
    """
    from llem_airflow.report import console

    return console.report_run(run, results_root, **options)


@click.command("compare")
@click.argument("baseline", shell_complete=complete_run)
@click.argument("candidates", metavar="CANDIDATE...", nargs=-1, required=True, shell_complete=complete_run)
@ROOT
@click.option(
    "--metric", default="energy_per_output_token_j", show_default=True, help="The one that decides."
)
@click.option(
    "--threshold", "threshold_ratio", default=0.02, show_default=True, help="Smallest ratio that matters."
)
@click.option("--factor", help="Match experiments by all of their configuration but this key (task.model).")
@click.option("--ignore", multiple=True, help="A condition that may differ (gpus); can be given again.")
@click.option("--paired", is_flag=True, help="Cycle k of one was measured next to cycle k of the other.")
@click.option("--without-flagged", is_flag=True, help="Leave out cycles with a warning.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--fail-on-regression", is_flag=True, help="Exit with 1 when there is a regression.")
def compare_results(
    baseline: str,
    candidates: tuple[str, ...],
    results_root: str,
    *,
    as_json: bool,
    fail_on_regression: bool,
    **options: Any,
) -> int:
    """Compare each CANDIDATE with BASELINE: runs, or experiments as RUN#EXPERIMENT.

    A run is STUDY/RUN, a folder, STUDY (its newest), STUDY@RELEASE (the newest of a model release), as a candidate
    STUDY@* (every release), as the baseline `previous` (the run before each candidate). Only equal conditions (GPU,
    driver, prompts, meter) are compared; what differs is listed.
    """
    from llem_airflow.analysis.compare_named import How
    from llem_airflow.report import console

    how = How(**options)
    return console.compare(
        baseline, candidates, results_root, how, as_json=as_json, fail_on_regression=fail_on_regression
    )


@click.command("history")
@click.argument("study", shell_complete=complete_study)
@ROOT
@click.option("--metric", default="energy_per_output_token_j", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print every value as JSON.")
def show_history(study: str, results_root: str, metric: str, *, as_json: bool) -> int:
    """How a metric of a STUDY's experiments went over its runs, one row a run, and where it changed."""
    from llem_airflow.report import console

    return console.show_history(study, results_root, metric, as_json=as_json)


@click.group("results")
def results_group() -> None:
    """Look after stored results."""


@results_group.command("list")
@ROOT
def list_results(results_root: str) -> int:
    """List the runs under the root."""
    from llem_airflow.report import console

    return console.list_runs(results_root)


@results_group.command("show")
@RUN
@ROOT
@click.option(
    "--table",
    "view",
    type=click.Choice(["experiments", "cycles", "reliability"]),
    default="experiments",
    show_default=True,
)
def show_results(run: str, results_root: str, view: str) -> int:
    """Print a RUN: its experiments, every cycle with its status, or the reliability of hosts and engines."""
    from llem_airflow.report import console

    return console.show(run, results_root, view)


@results_group.command("import")
@click.argument("folder", type=click.Path(path_type=Path))
@ROOT
@click.option("--study", help="Name of the study; default: the folder's name.")
def import_results(folder: Path, results_root: str, study: str | None) -> int:
    """Make a run of a results FOLDER of llenergymeasure; what it cannot tell stays absent."""
    from llem_airflow.report import console

    return console.import_peer(folder, results_root, study)


@results_group.command("check")
@RUN
@ROOT
def check_results(run: str, results_root: str) -> int:
    """Check the stored evidence of a RUN: files open, hashes and counts agree, joules come out again."""
    from llem_airflow.report import console

    return console.check(run, results_root)


@results_group.command("export")
@RUN
@ROOT
@click.option(
    "--table",
    type=click.Choice(["cycles", "experiments", "power", "reliability"]),
    default="cycles",
    show_default=True,
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["csv", "json", "jsonl", "parquet"]),
    default="csv",
    show_default=True,
)
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Default: standard output."
)
def export_results(run: str, results_root: str, table: str, form: str, output: Path | None) -> int:
    """Write a table of a RUN: one row a cycle, an experiment, a sample of power, or a host and engine."""
    import sys

    from llem_airflow.frames.export import export_table
    from llem_airflow.results import ResultsRoot
    from llem_airflow.results.locate import locate_run
    from llem_airflow.text import terminal
    from llem_airflow.text.wording import counted

    found = locate_run(run, ResultsRoot(results_root))
    if output is None:
        export_table(found, table, form, sys.stdout.buffer)
        return 0
    with output.open("wb") as file:
        rows = export_table(found, table, form, file)
    terminal.show(terminal.console(), terminal.Whole(f"{output}: {counted(rows, 'row')}"))
    return 0


@results_group.command("prune")
@ROOT
@click.option("--study", help="Only this study.")
@click.option("--keep-runs", type=int, help="Newest runs of each study that stay.")
@click.option("--keep-days", type=float, help="Younger runs stay.")
@click.option("--yes", is_flag=True, help="Remove them. Without it, only the list is printed.")
def prune_results(results_root: str, **options: Any) -> int:
    """List the runs that no rule keeps, and remove them with --yes."""
    from llem_airflow.report import console

    return console.prune(results_root, **options)


VERBS = (show_report, compare_results, show_history, results_group)
