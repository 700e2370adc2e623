"""Verbs about study files: plan, validate, init, schema."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from llem_airflow.cli.names import STUDY_FILE

if TYPE_CHECKING:
    from llem_airflow.study import Study


@click.command("plan")
@STUDY_FILE
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON, in a stable format.")
@click.option(
    "--order", is_flag=True, help="Also list every cycle in its order, with the pauses between them."
)
def show_plan(study_file: Path, *, as_json: bool, order: bool) -> int:
    """Show what a study would measure; nothing is started.

    STUDY is a study file. Needs no GPU, no Docker and no Airflow. The plan shows how many points the sweep declares,
    which are left out and why, the experiments, where they run, and how long all of it can take.
    """
    from llem_airflow.cli.airflow_checks import with_what_keeps_it
    from llem_airflow.runners.choice import said_by_engine, terminal_layers
    from llem_airflow.study import load_study

    study = with_what_keeps_it(load_study(study_file))
    if as_json:
        choices = said_by_engine(terminal_layers(os.environ), study.experiments)
        runners = {engine: choice.to_json() for engine, choice in choices.items()}
        click.echo(json.dumps({**study.plan.to_json(), "runners": runners}, indent=1, allow_nan=False))
        return 0
    print_whole_plan(study, order=order)
    missing = _missing_models(study)
    for text in missing:
        click.echo(text, err=True)
    return 2 if missing else 0


def print_whole_plan(study: Study, *, order: bool = False) -> None:
    """Print a plan with what is said about where each engine runs."""
    from llem_airflow.cli.airflow_checks import next_runs
    from llem_airflow.cli.plan import print_plan
    from llem_airflow.runners.choice import said_by_engine, terminal_layers
    from llem_airflow.runners.engine import seen_from_here
    from llem_airflow.text.terminal import console

    choices = said_by_engine(terminal_layers(os.environ), study.experiments)
    unknown = any(choice.runner == "auto" for choice in choices.values())
    engine_text = seen_from_here(engines=len(choices)) if unknown else ""
    print_plan(study, choices, engine_text, order=order, console=console(), next_runs=next_runs(study))


def _missing_models(study: Study) -> list[str]:
    """Models that are neither where models lie here nor on the hub; not asked where no models folder is.

    A name with an owner is the hub's, which a plan need not reach.
    """
    from llem_airflow.runners.models import is_of_the_hub, missing_model
    from llem_airflow.study.names import OWN_ENGINES

    folder = Path(os.environ.get("LLEM_MODELS_DIR") or "build/models").resolve()
    ours = [each for each in study.experiments if each.engine in OWN_ENGINES]
    names = sorted({each.model for each in ours if not is_of_the_hub(each.model)})
    found = [missing_model(name, folder, study.folder) for name in names] if folder.is_dir() else []
    return [text for text in found if text]


@click.command("validate")
@click.argument("study_files", metavar="STUDY...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the problems as JSON.")
def validate_studies(study_files: tuple[Path, ...], *, as_json: bool) -> int:
    """Check study files; each problem with its line and column.

    STUDY is a study file. Exit code 2 when one has a problem, so that it works as a pre-commit hook.
    """
    from llem_airflow.cli.airflow_checks import dag_problems
    from llem_airflow.cli.validate import check_files

    return check_files(study_files, dag_problems, as_json=as_json)


@click.command("init")
@click.argument("study_file", metavar="[FILE]", default="study.yaml", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace an existing file.")
def write_starter(study_file: Path, *, force: bool) -> int:
    """Write a commented study file to start from.

    FILE is where it goes (default: study.yaml); the study is named after it.
    """
    name = re.sub(r"[^\w.-]+", "-", study_file.stem, flags=re.ASCII).strip("-.") or "study"
    text = _STARTER.read_text("utf-8").replace("my-study", name)
    try:
        with study_file.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        click.echo(f"{study_file} exists already; name another file, or replace it with --force", err=True)
        return 2
    click.echo(f"Wrote {study_file}. Next: llem-airflow plan {study_file}")
    return 0


_STARTER = Path(__file__).parent / "starter.yaml"


@click.command("schema")
def print_schema() -> None:
    """Print the JSON Schema of study files, for editors."""
    from llem_airflow.study.config.schema import json_schema

    click.echo(json.dumps(json_schema(), indent=1))


VERBS = (write_starter, validate_studies, show_plan, print_schema)
