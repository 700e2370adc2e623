"""The verb gpus: who holds the GPUs of a host, since when, and who waits."""

from __future__ import annotations

import click


@click.command("gpus")
@click.option(
    "--host",
    "hosts",
    multiple=True,
    metavar="HOST",
    help="Docker engine of a host: a URL, a socket, or a name with or without a port; may be given several times. "
    "Default: DOCKER_HOST, else this machine's.",
)
@click.option("--watch", is_flag=True, help="Look again every two seconds until Ctrl-C.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print it as JSON; with --watch one line for each look."
)
def show_gpus(hosts: tuple[str, ...], *, watch: bool, as_json: bool) -> int:
    """Show who holds the GPUs of a host, since when, and who waits for them.

    Each GPU and MIG slice has its holder: an experiment's task, another container, or a process without one (seen on
    the engine's own machine only). Below are how much of the host's quota is in use and the queue of waiting tasks.
    Nothing is changed. Exit code 2 when a host's engine does not answer.
    """
    from llem_airflow.runners.gpus_shown import show_hosts

    return show_hosts(hosts, watch=watch, as_json=as_json)


VERBS = (show_gpus,)
