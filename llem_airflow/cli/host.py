"""Verbs about this machine and its Docker engine: gc, doctor, engine-check."""

from __future__ import annotations

import click


@click.command("gc")
@click.option(
    "--older-than",
    "older_than_h",
    type=click.FloatRange(min=0),
    default=24.0,
    show_default=True,
    help="Age in hours from which on what Airflow cannot tell of is left over.",
)
@click.option(
    "--installation",
    default=None,
    help="Only what this Airflow made (label llem.installation); default: the one installed here.",
)
@click.option("--yes", is_flag=True, help="Remove them. Without it, only the list is printed.")
@click.option("--force", is_flag=True, help="Also containers that run.")
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
def collect_garbage(
    older_than_h: float, installation: str | None, *, yes: bool, force: bool, as_json: bool
) -> int:
    """List containers and volumes of ours that nobody owns any more, and remove them with --yes.

    Airflow's database says whose task is alive, where Airflow is installed here; else their age decides. Nothing is
    touched that llem-airflow has not made, that another Airflow has made, or, without --force, that runs.
    """
    from llem_airflow.runners.terminal import collect

    return collect(older_than_h * 3600, installation, remove=yes, as_json=as_json, force=force)


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def show_doctor(*, as_json: bool) -> int:
    """Check engine, GPUs, images, disk, memory, rights and credentials; exit code 1 when something fails."""
    from llem_airflow.runners.terminal import diagnose

    return diagnose(as_json=as_json)


@click.command("engine-check")
@click.argument("engine", type=click.Choice(["vllm", "tensorrt"]))
@click.option("--image", default=None, help="Image that holds the engine; default: the engine's usual one.")
def check_engine(engine: str, image: str | None) -> int:
    """Compare the engine in an image with the API that this release was written against.

    Exit code 0 when every recorded call still fits, 1 when not (each difference is printed), 2 when it could
    not be compared.
    """
    from llem_airflow.runners.engine_check import check_engine as check

    return check(engine, image)


VERBS = (collect_garbage, show_doctor, check_engine)
