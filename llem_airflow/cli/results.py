"""Verbs about stored results: report, compare, history, and those of ``results``."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import click
from click.core import ParameterSource

from llem_airflow.cli.names import (
    CLUSTERS,
    HOSTS,
    INSTALLATION,
    ROOT,
    RUN,
    complete_run,
    complete_study,
    older_than,
)


@click.command("report")
@RUN
@ROOT
@click.option("--open", "open_browser", is_flag=True, help="Open the report's page in the browser.")
@click.option("--again", is_flag=True, help="Compute the summary again first.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "markdown", "json"]),
    default="table",
    show_default=True,
    help="How to print it.",
)
def show_report(run: str, results_root: str, **options: Any) -> int:
    """Show the results of a run and where its report lies.

    RUN is STUDY/RUN, STUDY (its newest run), `latest` (the default: the newest of all) or the folder of a run.
    """
    from llem_airflow.report import console

    return console.report_run(run, results_root, **options)


@click.command("compare")
@click.argument("baseline", shell_complete=complete_run)
@click.argument("candidates", metavar="CANDIDATE...", nargs=-1, required=True, shell_complete=complete_run)
@ROOT
@click.option(
    "--metric", default="energy_per_output_token_j", show_default=True, help="The metric that decides."
)
@click.option(
    "--threshold",
    "threshold_ratio",
    default=0.02,
    show_default=True,
    help="Smallest relative difference that matters.",
)
@click.option(
    "--factor", help="Key under study, such as task.model: experiments are matched by all other keys."
)
@click.option("--ignore", multiple=True, help="Condition that may differ, such as gpus. Can be given again.")
@click.option("--paired", is_flag=True, help="Cycle k of both was measured side by side: compare pairs.")
@click.option("--without-flagged", is_flag=True, help="Leave out cycles with a warning.")
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON.")
@click.option("--fail-on-regression", is_flag=True, help="Exit with code 1 when there is a regression.")
def compare_results(
    baseline: str,
    candidates: tuple[str, ...],
    results_root: str,
    *,
    as_json: bool,
    fail_on_regression: bool,
    **how: Any,
) -> int:
    """Compare runs or experiments with a baseline.

    BASELINE and CANDIDATE are runs, or single experiments as RUN#EXPERIMENT. A run is STUDY/RUN, a folder, STUDY (its
    newest run) or STUDY@RELEASE (its newest run of a model release). STUDY@* as CANDIDATE is every release; `previous`
    as BASELINE is the run before each candidate. Only what was measured under equal conditions (GPU, driver, prompts,
    meter) is compared; different conditions are listed.
    """
    from llem_airflow.analysis.compare import How
    from llem_airflow.report import console

    shown = {"as_json": as_json, "fail_on_regression": fail_on_regression}
    return console.compare(baseline, candidates, results_root, How(**how), **shown)


@click.command("history")
@click.argument("study", shell_complete=complete_study)
@ROOT
@click.option(
    "--metric", default="energy_per_output_token_j", show_default=True, help="The metric to follow."
)
@click.option("--json", "as_json", is_flag=True, help="Print every value as JSON.")
def show_history(study: str, results_root: str, metric: str, *, as_json: bool) -> int:
    """Show how a metric went from run to run.

    For each experiment of STUDY (a name, not a file): one row for each run, and where the metric changed.
    """
    from llem_airflow.report import console

    return console.show_history(study, results_root, metric, as_json=as_json)


@click.group("results")
def results_group() -> None:
    """List, check, export, import and delete stored results."""


@results_group.command("list")
@ROOT
@click.option("--study", help="List only this study's.", shell_complete=complete_study)
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    default=50,
    show_default=True,
    help="How many runs at most; 0 for all.",
)
@click.option(
    "--skip",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="How many of the newest runs to leave out.",
)
def list_results(results_root: str, **options: Any) -> int:
    """List the runs under the results root, the newest first.

    Only the runs that are listed are read, however many there are.
    """
    from llem_airflow.report import console

    return console.list_runs(results_root, **options)


@results_group.command("show")
@RUN
@ROOT
@click.option(
    "--table",
    "view",
    type=click.Choice(["experiments", "cycles", "reliability"]),
    default="experiments",
    show_default=True,
    help="What to show: a row for each experiment, for each cycle, or for each host and engine.",
)
def show_results(run: str, results_root: str, view: str) -> int:
    """Show one run: experiments, cycles or reliability.

    RUN is STUDY/RUN, STUDY (its newest run), `latest` (the default) or the folder of a run.
    """
    from llem_airflow.report import console

    return console.show(run, results_root, view)


@results_group.command("import")
@click.argument("folder", type=click.Path(path_type=Path))
@ROOT
@click.option("--study", help="Name of the study. Default: the folder's name.")
def import_results(folder: Path, results_root: str, study: str | None) -> int:
    """Import a results folder of llenergymeasure as a run.

    FOLDER is copied, never changed. Values that llenergymeasure does not store stay empty.
    """
    from llem_airflow.report import console

    return console.import_peer(folder, results_root, study)


@results_group.command("check")
@RUN
@ROOT
def check_results(run: str, results_root: str) -> int:
    """Check the stored files of a run against each other.

    Files can be read, hashes and counts agree, and the energy computed again is the stored one. RUN as for `show`.
    """
    from llem_airflow.report import console

    return console.check(run, results_root)


@results_group.command("export")
@RUN
@ROOT
@click.option(
    "--table",
    type=click.Choice(["cycles", "experiments", "power", "rates", "reliability", "searches"]),
    default="cycles",
    show_default=True,
    help="What to write: a row for each cycle, experiment, power sample, rate of a server, host and engine, or search.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["csv", "json", "jsonl", "parquet"]),
    default="csv",
    show_default=True,
    help="File format.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write. Default: standard output.",
)
def export_results(run: str, results_root: str, table: str, form: str, output: Path | None) -> int:
    """Write a table of a run as CSV, JSON or Parquet.

    RUN as for `show`.
    """
    import sys

    from llem_airflow.frames.tables import export_table
    from llem_airflow.results import ResultsRoot
    from llem_airflow.results.store import locate_run
    from llem_airflow.text.terminal import say
    from llem_airflow.text.wording import counted

    found = locate_run(run, ResultsRoot(results_root))
    if output is None:
        export_table(found, table, form, sys.stdout.buffer)
        return 0
    with _replaced(output) as file:
        rows = export_table(found, table, form, file)
    say(f"{output}: {counted(rows, 'row')}")
    return 0


@contextmanager
def _replaced(output: Path) -> Iterator[IO[bytes]]:
    """A file that takes its place when it is whole; what was there stays until then. A device or pipe is written to."""
    if output.exists() and not output.is_file():
        with output.open("wb") as file:
            yield file
        return
    whole = output.resolve()  # a link stays one
    with output.open(
        "ab"
    ):  # whether it can be written is told before the work, and by the system's own words
        empty = not whole.stat().st_size
    aside = whole.with_name(f".{whole.name[:200]}.{os.getpid()}")
    try:
        with aside.open("wb") as file:
            yield file
        shutil.copymode(whole, aside)
        aside.replace(whole)
    except BaseException:
        aside.unlink(missing_ok=True)
        if empty:
            whole.unlink(missing_ok=True)
        raise


@results_group.command("push")
@RUN
@ROOT
@click.option(
    "--to",
    type=click.Choice(["influx", "prometheus", "postgres"]),
    required=True,
    help="Kind of database: InfluxDB's line protocol, Prometheus' remote write, PostgreSQL (also with Timescale).",
)
@click.option(
    "--url",
    envvar="LLEM_PUSH_URL",
    help="Where it is, with user and password: http://HOST:8086/DATABASE, http://HOST:8428/api/v1/write, "
    "postgresql://HOST/DATABASE. LLEM_PUSH_URL keeps a password out of the list of processes.",
)
@click.option("--no-power", is_flag=True, help="Leave the samples out: write only the numbers of each cycle.")
@click.option(
    "--dashboard",
    is_flag=True,
    help="Print a Grafana dashboard for this kind of database, and write nothing.",
)
def push_results(
    run: str, results_root: str, to: str, url: str | None, *, no_power: bool, dashboard: bool
) -> int:
    """Write a run's power series and numbers to a time-series database.

    RUN as for `show`. The same run again changes nothing: no point counts twice.
    """
    import sys

    from llem_airflow import push
    from llem_airflow.results import ResultsRoot
    from llem_airflow.results.store import locate_run
    from llem_airflow.text.terminal import console, say
    from llem_airflow.text.wording import counted

    if dashboard:
        sys.stdout.write(push.dashboard(to))
        return 0
    if not url:
        raise click.UsageError("where is the database? --url or LLEM_PUSH_URL names it (see --help)")
    found = locate_run(run, ResultsRoot(results_root))
    with console(stderr=True).status("writing") as status:
        points = push.push_run(
            found,
            to,
            url,
            power=not no_power,
            wrote=lambda n: status.update(f"{counted(n, 'point')} written"),
        )
    say(f"{found.study}/{found.run_id}: {counted(points, 'point')} in {to}")
    return 0


@results_group.command("recover")
@click.option("--to", metavar="URL", help="Store under this results root, not under the one they belong to.")
@click.option(
    "--folder",
    envvar=["AIRFLOW__LLEM__UNSTORED", "LLEM_UNSTORED"],
    type=click.Path(path_type=Path),
    help="Where they lie: `[llem] unstored` of the worker. Default: llem-unstored in AIRFLOW_HOME.",
)
@click.option(
    "--engines",
    is_flag=True,
    help="Look into the containers on the GPU hosts' engines, and the pods on the clusters, instead.",
)
@HOSTS
@CLUSTERS
@ROOT
@older_than("a container that Airflow does not know is nobody's")
@INSTALLATION
@click.option("--dry-run", is_flag=True, help="Only list what is there.")
def recover_results(
    to: str | None,
    folder: Path | None,
    *,
    engines: bool,
    hosts: tuple[str, ...],
    clusters: tuple[str, ...],
    dry_run: bool,
    **options: Any,
) -> int:
    """Store the results that were measured and could not be stored.

    A result whose store was full, away, throttled or without credentials stays on the worker that measured it. Run this
    there, as the user of the worker.

    With --engines, --host or --cluster, the finished results in containers and pods whose task has ended for good
    before it could collect them; Airflow's database says which tasks those are. --results-root or --to says where they
    go. A pod has its result for an hour after its attempt's end.

    Each is stored once, however often this runs, and then removed where it was.
    """
    if engines or hosts or clusters:
        from llem_airflow.runners.stranded import recover

        return recover(
            hosts,
            clusters,
            to or options["results_root"],
            options["installation"],
            older_than_s=options["older_than_h"] * 3600,
            store=not dry_run,
        )
    return _recover_here(to, folder, dry_run=dry_run)


def _recover_here(to: str | None, folder: Path | None, *, dry_run: bool) -> int:
    from llem_airflow.results import ResultReadError, ResultsRoot
    from llem_airflow.results.folder import why_store_fails
    from llem_airflow.results.unstored import FOLDER, kept_results, places
    from llem_airflow.text.terminal import say
    from llem_airflow.text.wording import counted

    home = folder or Path(os.environ.get("AIRFLOW_HOME", "~/airflow")).expanduser() / FOLDER
    named = click.get_current_context().get_parameter_source("folder") is ParameterSource.COMMANDLINE
    if named or home.exists():  # a worker makes its folder when the first result has to wait
        os.scandir(home).close()
    waiting = kept_results(home)
    if not waiting:
        say(f"Nothing waits to be stored here ({', '.join(map(str, places(home)))}).")
        return 0
    stored = failed = 0
    for one in waiting:
        if dry_run:
            say(f"{one.name}: lies in {one.folder}, belongs to {one.root}; {one.reason}")
            continue
        try:
            url = one.store(ResultsRoot(to or one.root))
        except (ResultReadError, ImportError) as error:
            failed += 1
            say(f"{one.name}: stays in {one.folder}: {error}", "red")
        except Exception as error:  # noqa: BLE001  # an object store has errors of its own, and the others can be stored
            failed += 1
            say(f"{one.name}: stays in {one.folder}: {why_store_fails(error, to or one.root)}", "red")
        else:
            stored += url is not None
            say(f"{one.name}: {f'stored in {url}' if url else 'another process is storing it'}")
    if dry_run:
        say(f"{counted(len(waiting), 'result')} would be stored.")
        return 0
    say(f"{counted(stored, 'result')} stored, {failed} left.")
    return 1 if failed else 0


@results_group.command("prune")
@ROOT
@click.option("--study", help="Look only at this study.")
@click.option("--keep-runs", type=int, help="How many of the newest runs of each study to keep.")
@click.option("--keep-days", type=float, help="Keep runs that are younger.")
@click.option("--yes", is_flag=True, help="Delete them; without it they are only listed.")
def prune_results(results_root: str, **options: Any) -> int:
    """List old runs, and delete them with --yes.

    A run is kept when --keep-runs or --keep-days says so.
    """
    from llem_airflow.report import console

    return console.prune(results_root, **options)


VERBS = (show_report, compare_results, show_history, results_group)
