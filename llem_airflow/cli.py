"""The command ``llem-airflow``: each verb is a few lines over a room."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
@click.option(
    "--port", type=click.IntRange(1, 65535), envvar="AIRFLOW__API__PORT", default=8080, show_default=True
)
def start_ui(dags_folder: Path, port: int) -> None:
    """Start Airflow's scheduler and UI on this folder's DAGs and results."""
    from llem_airflow.embedded import EmbeddedRunError, Home
    from llem_airflow.embedded import start_ui as start

    try:
        sys.exit(start(Home.here(), dags_folder.resolve(), port))
    except EmbeddedRunError as error:
        raise click.ClickException(str(error)) from error


def _load(path: Path) -> Study:
    """The study of a file; its mistakes go to standard error and end the command with 2."""
    from llem_airflow.study import StudyFileError, load_study

    try:
        return load_study(path)
    except StudyFileError as error:
        click.echo(str(error), err=True)
        sys.exit(2)


_ROOT = click.option("--results-root", envvar="LLEM_RESULTS_ROOT", default="results", show_default=True)


@main.command("report")
@click.argument("run", default="latest")
@_ROOT
@click.option("--open", "open_browser", is_flag=True, help="Open the page in the browser.")
@click.option("--again", is_flag=True, help="Aggregate again first.")
@click.option(
    "--format", "form", type=click.Choice(["table", "markdown", "json"]), default="table", show_default=True
)
def show_report(run: str, results_root: str, **options: Any) -> None:
    """Print the table of a RUN and the path of its report.

    RUN is the folder of a run, STUDY/RUN, STUDY (its newest run) or latest.
    """
    from llem_airflow.analysis import console

    sys.exit(console.guarded(lambda: console.report_run(run, results_root, **options)))


@main.command("compare")
@click.argument("baseline")
@click.argument("candidates", metavar="CANDIDATE...", nargs=-1, required=True)
@_ROOT
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
) -> None:
    """Compare each CANDIDATE with BASELINE: runs, or experiments as RUN#EXPERIMENT.

    A run is STUDY/RUN, a folder, STUDY (its newest), STUDY@RELEASE (the newest of a model release), as a candidate
    STUDY@* (every release), as the baseline `previous` (the run before each candidate). Only equal conditions (GPU,
    driver, prompts, meter) are compared; what differs is listed.
    """
    from llem_airflow.analysis import console
    from llem_airflow.analysis.compare_named import How

    def verb() -> int:
        return console.compare(
            baseline,
            candidates,
            results_root,
            How(**options),
            as_json=as_json,
            fail_on_regression=fail_on_regression,
        )

    sys.exit(console.guarded(verb))


@main.command("history")
@click.argument("study")
@_ROOT
@click.option("--metric", default="energy_per_output_token_j", show_default=True)
def show_history(study: str, results_root: str, metric: str) -> None:
    """How a metric of a STUDY's experiments went over its runs, and where it changed."""
    from llem_airflow.analysis import console

    sys.exit(console.guarded(lambda: console.show_history(study, results_root, metric)))


@main.group("results")
def results_group() -> None:
    """Look after stored results."""


@results_group.command("list")
@_ROOT
def list_results(results_root: str) -> None:
    """List the runs under the root."""
    from llem_airflow.analysis import console

    sys.exit(console.guarded(lambda: console.list_runs(results_root)))


@results_group.command("show")
@click.argument("run", default="latest")
@_ROOT
@click.option(
    "--table",
    "view",
    type=click.Choice(["experiments", "cycles", "reliability"]),
    default="experiments",
    show_default=True,
)
def show_results(run: str, results_root: str, view: str) -> None:
    """Print a RUN: its experiments, every cycle with its status, or the reliability of hosts and engines."""
    from llem_airflow.analysis import console

    sys.exit(console.guarded(lambda: console.show(run, results_root, view)))


@results_group.command("import")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@_ROOT
@click.option("--study", help="Name of the study; default: the folder's name.")
def import_results(folder: Path, results_root: str, study: str | None) -> None:
    """Make a run of a results FOLDER of llenergymeasure; what it cannot tell stays absent."""
    from llem_airflow.analysis import console

    sys.exit(console.guarded(lambda: console.import_peer(folder, results_root, study)))


@results_group.command("check")
@click.argument("run", default="latest")
@_ROOT
def check_results(run: str, results_root: str) -> None:
    """Check the stored evidence of a RUN: files open, hashes and counts agree, joules come out again."""
    from llem_airflow.analysis import console

    sys.exit(console.guarded(lambda: console.check(run, results_root)))


@results_group.command("export")
@click.argument("run", default="latest")
@_ROOT
@click.option(
    "--table",
    type=click.Choice(["cycles", "experiments", "power", "reliability"]),
    default="cycles",
    show_default=True,
)
@click.option(
    "--format", "form", type=click.Choice(["csv", "json", "parquet"]), default="csv", show_default=True
)
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Default: standard output."
)
def export_results(run: str, results_root: str, table: str, form: str, output: Path | None) -> None:
    """Write a table of a RUN: one row a cycle, an experiment, a sample of power, or a host and engine."""
    from llem_airflow.analysis import console

    sys.exit(console.guarded(lambda: console.export(run, results_root, table, form, output)))


@results_group.command("prune")
@_ROOT
@click.option("--study", help="Only this study.")
@click.option("--keep-runs", type=int, help="Newest runs of each study that stay.")
@click.option("--keep-days", type=float, help="Younger runs stay.")
@click.option("--yes", is_flag=True, help="Remove them. Without it, only the list is printed.")
def prune_results(results_root: str, **options: Any) -> None:
    """List the runs that no rule keeps, and remove them with --yes."""
    from llem_airflow.analysis import console

    sys.exit(console.guarded(lambda: console.prune(results_root, **options)))


@main.command("plan")
@click.argument("study_file", metavar="STUDY", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON, in a stable format.")
@click.option("--order", is_flag=True, help="Show every run in its order, with the pauses.")
def show_plan(study_file: Path, as_json: bool, order: bool) -> None:
    """Show what a STUDY would run: no GPU, no Docker and no Airflow is needed."""
    study = _load(study_file)
    if as_json:
        import json

        click.echo(json.dumps(study.plan.to_json(), indent=1, allow_nan=False))
        return
    from rich.console import Console

    from llem_airflow.study.terminal import print_plan

    print_plan(study, order=order, console=Console())


@main.command("validate")
@click.argument("study_files", metavar="STUDY...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the mistakes as JSON.")
def validate_studies(study_files: tuple[Path, ...], as_json: bool) -> None:
    """Check study files, every mistake with its line; exit code 2 when there is one. For pre-commit."""
    from llem_airflow.study.check import check_files

    sys.exit(check_files(study_files, as_json=as_json))


@main.command("init")
@click.argument("study_file", metavar="[FILE]", default="study.yaml", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace a file that is there.")
def write_starter(study_file: Path, force: bool) -> None:
    """Write a commented study to start from."""
    from llem_airflow.study.starter import write_starter_file

    try:
        write_starter_file(study_file, replace=force)
    except OSError as error:
        click.echo(f"{study_file}: {error.strerror or error}; name another file, or use --force", err=True)
        sys.exit(2)
    click.echo(f"Wrote {study_file}. Next: llem-airflow plan {study_file}")


@main.command("backfill")
@click.argument("study_file", metavar="STUDY", type=click.Path(exists=True, dir_okay=False, path_type=Path))
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
def backfill_releases(study_file: Path, url: str, versions: str | None, **options: Any) -> None:
    """Measure a STUDY on model releases by Airflow's own backfill, one run at a time, and wait for the end.

    The variable AIRFLOW_TOKEN, or AIRFLOW_USER and AIRFLOW_PASSWORD, say who asks.
    """
    from llem_airflow.timetables.terminal import backfill_and_show

    sys.exit(backfill_and_show(_load(study_file), url, versions, **options))


@main.command("schema")
def print_schema() -> None:
    """Print the JSON Schema of study files, for editors."""
    import json

    from llem_airflow.study.schema import json_schema

    click.echo(json.dumps(json_schema(), indent=1))


@main.command("gc")
@click.option(
    "--older-than", "older_than_h", default=24.0, show_default=True, help="Age in hours from which on."
)
@click.option("--installation", default=None, help="Only what this Airflow made (label llem.installation).")
@click.option("--yes", is_flag=True, help="Remove them. Without it, only the list is printed.")
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
def collect_garbage(older_than_h: float, installation: str | None, *, yes: bool, as_json: bool) -> None:
    """List containers and volumes of ours that nobody owns any more, and remove them with --yes.

    Nothing is touched that llem-airflow has not made.
    """
    from llem_airflow.container.terminal import collect

    sys.exit(collect(older_than_h * 3600, installation, remove=yes, as_json=as_json))


@main.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def show_doctor(*, as_json: bool) -> None:
    """Check engine, GPUs, images, disk, memory, rights and credentials; exit code 1 when something fails."""
    from llem_airflow.container.terminal import diagnose

    sys.exit(diagnose(as_json=as_json))


@main.command("engine-check")
@click.argument("engine", type=click.Choice(["vllm", "tensorrt"]))
@click.option("--image", default=None, help="Image that holds the engine; default: the engine's usual one.")
def check_engine(engine: str, image: str | None) -> None:
    """Compare the engine in an image with the API that this release was written against.

    Exit code 0 when every recorded call still fits, 1 when not (each difference is printed), 2 when it could
    not be compared.
    """
    from llem_airflow.container.engine_check import check_engine as check

    sys.exit(check(engine, image))
