"""The command ``llem-airflow``: each verb is a few lines over a room."""

from __future__ import annotations

import click

from llem_airflow import __version__
from llem_airflow.cli import gpus, host, results, running, studies
from llem_airflow.cli.edge import EXIT_CODES, Edge


@click.group(cls=Edge, context_settings={"help_option_names": ["-h", "--help"]}, epilog=EXIT_CODES)
@click.version_option(__version__, prog_name="llem-airflow")
def main() -> None:
    """Energy benchmarks of LLM inference as Airflow DAGs."""


for _verb in (*studies.VERBS, *running.VERBS, *results.VERBS, *host.VERBS, *gpus.VERBS):
    main.add_command(_verb)
