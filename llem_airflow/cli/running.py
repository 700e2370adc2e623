"""Verbs that run a study: run, ui, backfill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from llem_airflow.cli.names import STUDY_FILE
from llem_airflow.cli.studies import print_whole_plan


@click.command("run")
@STUDY_FILE
@click.option("--runner", type=click.Choice(["process", "container"]), help="Instead of what the study says.")
@click.option("--release", help="Which of the study's `versions` to measure.")
@click.option(
    "--experiments", default="", help="Names or globs, separated by commas or spaces; default: all."
)
@click.option("--cycles", type=click.IntRange(1), help="The first so many cycles of each experiment.")
@click.option("--dry-run", is_flag=True, help="Check, look for the models, show the plan and stop.")
@click.option(
    "--resume", is_flag=True, help="Go on with the newest unfinished run: measure what has no result."
)
def run_once(
    study_file: Path,
    *,
    runner: str | None,
    release: str | None,
    experiments: str,
    cycles: int | None,
    dry_run: bool,
    resume: bool,
) -> int:
    """Run a study once through an embedded Airflow: no server to set up.

    Results go to LLEM_RESULTS_ROOT (default: ./results), Airflow's own things to AIRFLOW_HOME (./build/airflow).
    Models are looked up in LLEM_MODELS_DIR (./build/models), then on the hub.

    Exit code 0 when every planned cycle has a result, 1 when not, 130 after Ctrl-C; --resume goes on from there.
    """
    from llem_airflow.study import StudyFileError, load_study
    from llem_airflow.study.plan.findings import not_runnable
    from llem_airflow.study.plan.request import Request, names_in
    from llem_airflow.study.prompts import prompt_problems

    if resume and (release or experiments or cycles):
        raise click.UsageError("--resume goes on with what that run was asked for: leave out what to measure")
    study = load_study(study_file)
    if mistakes := [*not_runnable(study), *prompt_problems(study)]:
        raise StudyFileError(mistakes)
    request = Request(release, experiments=names_in(experiments), cycles=cycles, dry_run=dry_run)
    from llem_airflow.cli.embedded import Home
    from llem_airflow.cli.run_once import run_and_show

    return run_and_show(study, Home.here(), request, show_plan=print_whole_plan, runner=runner, resume=resume)


@click.command("ui")
@click.option(
    "--dags",
    "dags_folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path("dags"),
    show_default=True,
    help="Folder of DAG files.",
)
@click.option(
    "--port", type=click.IntRange(1, 65535), envvar="AIRFLOW__API__PORT", default=8080, show_default=True
)
def start_ui(dags_folder: Path, port: int) -> int:
    """Start Airflow's scheduler and UI on this folder's DAGs and results."""
    from llem_airflow.cli.embedded import Home
    from llem_airflow.cli.embedded import start_ui as start

    return start(Home.here(), dags_folder.resolve(), port)


@click.command("backfill")
@STUDY_FILE
@click.option("--versions", help="Names of releases, with commas between; default: all of the study.")
@click.option(
    "--reprocess",
    type=click.Choice(["none", "failed", "completed"]),
    default="none",
    show_default=True,
    help="Which releases are measured again, in a new run beside the old one.",
)
@click.option("--unpause", is_flag=True, help="Unpause the DAG.")
@click.option("--url", envvar="AIRFLOW_URL", default="http://localhost:8080", show_default=True)
def backfill_releases(study_file: Path, url: str, versions: str | None, **options: Any) -> int:
    """Measure a STUDY on model releases by Airflow's own backfill, one run at a time, and wait for the end.

    The variable AIRFLOW_TOKEN, or AIRFLOW_USER and AIRFLOW_PASSWORD, say who asks.
    """
    from llem_airflow.cli.backfill import backfill_and_show
    from llem_airflow.study import load_study

    return backfill_and_show(load_study(study_file), url, versions, **options)


VERBS = (run_once, start_ui, backfill_releases)
