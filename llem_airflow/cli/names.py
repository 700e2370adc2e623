"""Arguments that several verbs share, and how a shell completes them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

ROOT_VARIABLES = ("LLEM_RESULTS_ROOT", "AIRFLOW__LLEM__RESULTS_ROOT")
"""Name the results root; the second one is that of Airflow's services."""


def results_root() -> str:
    """The results root that the environment names, else ``results``."""
    return next(filter(None, map(os.environ.get, ROOT_VARIABLES)), "results")


ROOT = click.option(
    "--results-root",
    envvar=ROOT_VARIABLES,
    default="results",
    show_default=True,
    help="Folder or URL of the results.",
)
STUDY_FILE = click.argument("study_file", metavar="STUDY", type=click.Path(path_type=Path))
"""The study's loader says what is wrong with a file that is not there, a folder, or one that cannot be read."""


def complete_run(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """``latest``, studies and ``study/run`` under the results root."""
    from llem_airflow.results import ResultsRoot

    try:
        root = ResultsRoot(_root(ctx))
        studies = root.studies()
        inside = incomplete.partition("/")[0]
        found = ["latest", *studies]
        if "/" in incomplete and inside in studies:
            found = [f"{inside}/{run.folder.name}" for run in root.runs(inside)]
    except Exception:  # noqa: BLE001  # a shell that completes has no place for a message
        return []
    return [CompletionItem(name) for name in found if name.startswith(incomplete)]


def complete_study(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of the studies that have results."""
    return [
        item for item in complete_run(ctx, _, incomplete) if item.value != "latest" and "/" not in item.value
    ]


def _root(ctx: click.Context) -> str:
    return ctx.params.get("results_root") or results_root()


RUN = click.argument("run", default="latest", shell_complete=complete_run)


HOSTS = click.option(
    "--host",
    "hosts",
    multiple=True,
    metavar="HOST",
    help="Id of a connection of type llem, or the address of a Docker engine: a URL, a socket, or a name with or "
    "without a port. Can be given again. Default: every such connection that Airflow knows, else DOCKER_HOST, else "
    "this machine.",
)
CLUSTERS = click.option(
    "--cluster",
    "clusters",
    multiple=True,
    metavar="CLUSTER",
    help="Id of a connection of type kubernetes, with /NAMESPACE where it is not the connection's own. Can be "
    "given again. Default: those that [llem] clusters of Airflow's configuration names, where no --host is given.",
)
INSTALLATION = click.option(
    "--installation",
    help="Look only at what this Airflow made (label llem.installation). Default: the one installed here.",
)


class Number(click.FloatRange):
    """A number within bounds; NaN, which passes every bound, is none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number that was typed."""
        found = super().convert(value, param, ctx)
        if math.isnan(found):
            self.fail(f"{value!r} is no number.", param, ctx)
        return found


def older_than(what: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The option ``--older-than``, from which age on what Airflow does not know is that."""
    return click.option(
        "--older-than",
        "older_than_h",
        type=Number(min=0),
        default=24.0,
        show_default=True,
        help=f"Age in hours from which {what}.",
    )
