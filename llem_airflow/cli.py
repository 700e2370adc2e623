"""The command ``llem-airflow``: each verb is a few lines over a room."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from llem_airflow import __version__

if TYPE_CHECKING:
    from llem_airflow.study import Study


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="llem-airflow")
def main() -> None:
    """Energy benchmarks of LLM inference as Airflow DAGs."""


@main.command("run")
@click.argument("study_file", metavar="STUDY", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--runner", type=click.Choice(["process", "container"]), help="Instead of what the study says.")
def run_once(study_file: Path, runner: str | None) -> None:
    """Run a study once through an embedded Airflow: no server to set up.

    Results go to LLEM_RESULTS_ROOT (default: ./results), Airflow's own things to AIRFLOW_HOME (./build/airflow).
    Models are looked up in LLEM_MODELS_DIR (./build/models), then on the hub.
    """
    from llem_airflow.embedded import EmbeddedRunError, Home, run_and_show

    study = _load(study_file)
    try:
        sys.exit(run_and_show(study, Home.here(), runner))
    except EmbeddedRunError as error:
        raise click.ClickException(str(error)) from error


@main.command("ui")
@click.option(
    "--dags",
    "dags_folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path("dags"),
    show_default=True,
    help="Folder of DAG files.",
)
def start_ui(dags_folder: Path) -> None:
    """Start Airflow's scheduler and UI on this folder's DAGs and results."""
    from llem_airflow.embedded import Home
    from llem_airflow.embedded import start_ui as start

    sys.exit(start(Home.here(), dags_folder.resolve()))


def _load(path: Path) -> Study:
    """The study of a file; its mistakes go to standard error and end the command with 2."""
    from llem_airflow.study import StudyFileError, load_study

    try:
        return load_study(path)
    except StudyFileError as error:
        click.echo(str(error), err=True)
        sys.exit(2)


@main.command("report")
@click.argument("run", default="latest")
@click.option("--results-root", envvar="LLEM_RESULTS_ROOT", default="results", show_default=True)
@click.option("--open", "open_browser", is_flag=True, help="Open the page in the browser.")
def show_report(run: str, results_root: str, open_browser: bool) -> None:
    """Print the table of a RUN and the path of its report.

    RUN is the folder of a run, STUDY/RUN, STUDY (its newest run) or latest.
    """
    from llem_airflow.analysis.console import report_run

    sys.exit(report_run(run, results_root, open_browser=open_browser))
