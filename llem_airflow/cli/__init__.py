"""The command ``llem-airflow``.

A verb is a function in the file of its section (studies, running, results, host): it names the arguments, says in its
docstring what ``--help`` shows, imports what it needs when it is called, and returns its exit code. What it raises
becomes a message in ``edge``.
"""

from __future__ import annotations

import click

from llem_airflow import __version__
from llem_airflow.cli import host, results, running, studies
from llem_airflow.cli.edge import EXIT_CODES, Edge


@click.group(cls=Edge, context_settings={"help_option_names": ["-h", "--help"]}, epilog=EXIT_CODES)
@click.version_option(__version__, prog_name="llem-airflow")
def main() -> None:
    """Energy benchmarks of LLM inference as Airflow DAGs.

    A study is a YAML file: which models and settings to measure, and how often. Start with `llem-airflow init`,
    then `llem-airflow run study.yaml`.
    """


main.add_section("Study files", studies.VERBS)
main.add_section("Runs", running.VERBS)
main.add_section("Results", results.VERBS)
main.add_section("Hosts", host.VERBS)
