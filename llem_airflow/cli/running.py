"""Verbs that run a study: run, ui, backfill."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llem_airflow.cli.names import STUDY_FILE
from llem_airflow.cli.studies import print_whole_plan

if TYPE_CHECKING:
    from llem_airflow.study.config.study import Isolation


@click.command("run")
@STUDY_FILE
@click.option(
    "--runner",
    type=click.Choice(["process", "container"]),
    help="Where to run; default: what the study says.",
)
@click.option(
    "--isolation",
    type=click.Choice(["container", "process", "engine"]),
    help="A container for each cycle, or one for all that load alike with a process for each (process) or a loaded "
    "engine that lives on (engine); default: what the study says.",
)
@click.option("--release", help="Model release to measure: a name from the study's `versions`.")
@click.option(
    "--experiments",
    default="",
    help="Names or globs of experiments, separated by commas or spaces. Default: all.",
)
@click.option("--cycles", type=click.IntRange(1), help="Measure only the first N cycles of each experiment.")
@click.option("--dry-run", is_flag=True, help="Check the study, look for its models, show the plan and stop.")
@click.option(
    "--resume", is_flag=True, help="Continue the newest unfinished run: measure the cycles without a result."
)
def run_once(
    study_file: Path,
    *,
    runner: str | None,
    isolation: Isolation | None,
    release: str | None,
    experiments: str,
    cycles: int | None,
    dry_run: bool,
    resume: bool,
) -> int:
    """Run a study once, without an Airflow server.

    STUDY is a study file. It becomes an Airflow DAG that is run at once on this machine, with progress and, at the end,
    a report.

    Results go to LLEM_RESULTS_ROOT (default: ./results), Airflow's database and logs to AIRFLOW_HOME
    (./build/airflow). Models are looked up in LLEM_MODELS_DIR (./build/models), then on the Hugging Face hub.

    Exit code 0 when every planned cycle has a result, 1 when not, 130 after Ctrl-C; --resume continues such a run.
    """
    from llem_airflow.study import StudyFileError, load_study
    from llem_airflow.study.plan.findings import not_runnable
    from llem_airflow.study.plan.request import Request, names_in
    from llem_airflow.study.prompts import prompt_problems

    if resume and (release or experiments or cycles):
        raise click.UsageError(
            "--resume continues a run as it was asked for: leave out --release, --experiments and --cycles"
        )
    study = load_study(study_file, isolation=isolation)
    if problems := [*not_runnable(study), *prompt_problems(study)]:
        raise StudyFileError(problems)
    request = Request(release, experiments=names_in(experiments), cycles=cycles, dry_run=dry_run)
    from llem_airflow.cli.embedded import Home
    from llem_airflow.cli.run_once import run_and_show

    return run_and_show(
        study,
        Home.here(),
        request,
        show_plan=print_whole_plan,
        runner=runner,
        isolation=isolation,
        resume=resume,
    )


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
    "--port",
    type=click.IntRange(1, 65535),
    envvar="AIRFLOW__API__PORT",
    default=8080,
    show_default=True,
    help="Port of the UI.",
)
def start_ui(dags_folder: Path, port: int) -> int:
    """Start Airflow with its UI on a folder of DAGs.

    Starts `airflow standalone` (scheduler, UI, DAG processor, triggerer) with settings that suit long GPU tasks, and
    ends with Ctrl-C. Uses the same places as `llem-airflow run`.
    """
    from llem_airflow.cli.embedded import Home
    from llem_airflow.cli.embedded import start_ui as start

    return start(Home.here(), dags_folder.resolve(), port)


@click.command("backfill")
@STUDY_FILE
@click.option("--versions", help="Names of releases, separated by commas. Default: all of the study.")
@click.option(
    "--reprocess",
    type=click.Choice(["none", "failed", "completed"]),
    default="none",
    show_default=True,
    help="Which measured releases to measure again, each in a new run beside the old one.",
)
@click.option("--unpause", is_flag=True, help="Unpause the DAG if it is paused.")
@click.option(
    "--url",
    envvar="AIRFLOW_URL",
    default="http://localhost:8080",
    show_default=True,
    help="Address of Airflow's API server.",
)
def backfill_releases(study_file: Path, url: str, versions: str | None, **options: Any) -> int:
    """Measure a study on model releases, through Airflow.

    STUDY is a study file with `versions`, whose DAG a running Airflow (--url) knows. Each release becomes one run of
    Airflow's own backfill, one run at a time; the command waits for the end. Log in by the variable AIRFLOW_TOKEN, or
    by AIRFLOW_USER and AIRFLOW_PASSWORD.
    """
    from llem_airflow.cli.airflow_api import AirflowApi
    from llem_airflow.cli.backfill import backfill
    from llem_airflow.study import load_study

    study = load_study(study_file)
    names = [name.strip() for name in (versions or "").split(",") if name.strip()]
    login = {name: os.environ.get(f"AIRFLOW_{name.upper()}") for name in ("token", "user", "password")}
    try:
        return backfill(study, names, AirflowApi(url, **login), say=click.echo, **options)
    except KeyboardInterrupt:
        click.echo(
            "The backfill that has started goes on in Airflow; later ranges of releases were not started."
        )
        return 1


VERBS = (run_once, start_ui, backfill_releases)
