"""The command ``llem-airflow``: each verb is a few lines over a room."""

from __future__ import annotations

import click

from llem_airflow import __version__


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="llem-airflow")
def main() -> None:
    """Energy benchmarks of LLM inference as Airflow DAGs."""
