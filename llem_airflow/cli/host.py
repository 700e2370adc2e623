"""Verbs about hosts and their Docker engines: gpus, doctor, engine-check, gc."""

from __future__ import annotations

from typing import Any

import click

from llem_airflow.cli.names import CLUSTERS, HOSTS, INSTALLATION, ROOT, ROOT_VARIABLES, Number, older_than


@click.command("gc")
@older_than("something that Airflow does not know is leftover")
@INSTALLATION
@HOSTS
@CLUSTERS
@click.option("--yes", "remove", is_flag=True, help="Remove them; without it they are only listed.")
@click.option("--force", is_flag=True, help="Also remove running containers.")
@click.option(
    "--with-result",
    "named",
    multiple=True,
    metavar="NAME",
    help="Also remove this container or pod, whose result is not stored and is lost then. Can be given again.",
)
@ROOT
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
def collect_garbage(older_than_h: float, results_root: str, **options: Any) -> int:
    """List and remove leftover containers, volumes and pods.

    Leftover is what llem-airflow has made and no live task owns. Where Airflow is installed here, its database says
    which tasks are alive; otherwise the age decides (--older-than). Containers of other programs and of other Airflows
    are never touched, running ones only with --force, and one with a finished result that the results root lacks only
    by its name (--with-result): `llem-airflow results recover --engines` stores it. Without --yes nothing is removed.
    """
    from llem_airflow.results import ResultsRoot
    from llem_airflow.runners.gc import collect
    from llem_airflow.runners.stranded import unstored_in

    unstored = unstored_in(ResultsRoot(results_root))
    return collect(older_than_h * 3600, unstored=unstored, **options)


@click.command("doctor")
@HOSTS
@CLUSTERS
@click.option(
    "--gpu-resource",
    "resource",
    help="The device plugin's resource that studies on the clusters ask for. Default: any of NVIDIA's.",
)
@click.option(
    "--runtime-class",
    help="The runtime class that their DAGs name. Default: whether nvidia is there.",
)
@click.option(
    "--pull-secret",
    "pull_secrets",
    multiple=True,
    help="An image pull secret that their DAGs name. Can be given again.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def show_doctor(**options: Any) -> int:
    """Check this machine, the GPU hosts and the clusters.

    Looks at Docker, GPUs, images, disk, rights, clocks and queues; of a cluster at its API server, namespace, rights,
    devices, runtime class and image pull secrets.

    Each finding comes with what to do about it. Exit code 1 when a check fails.
    """
    from llem_airflow.runners.doctor import diagnose

    return diagnose(**options)


@click.command("engine-check")
@click.argument("engine", type=click.Choice(["vllm", "tensorrt"]))
@click.option("--image", default=None, help="Image that holds the engine. Default: the engine's usual one.")
def check_engine(engine: str, image: str | None) -> int:
    """Compare an image's engine with the API that is used here.

    The calls that llem-airflow makes were recorded for the engine's supported versions. Exit code 0 when every
    recorded call still fits, 1 when not (each difference is printed), 2 when it could not be compared.
    """
    from llem_airflow.runners.engine_check import check_engine as check

    return check(engine, image)


@click.command("gpus")
@HOSTS
@CLUSTERS
@click.option("--watch", is_flag=True, help="Look again every two seconds until Ctrl-C.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print it as JSON; with --watch one line for each look."
)
def show_gpus(**options: Any) -> int:
    """Show who holds the GPUs of a host or a cluster and who waits for them.

    Each GPU and MIG slice has its holder: an experiment's task, another container, or a process without one (seen on
    the engine's own machine only). Below are how much of the host's quota is in use and the queue of waiting tasks.
    Of a cluster each node has its resources with the pods that ask for them.
    Nothing is changed. Exit code 2 when a host's engine or a cluster does not answer.
    """
    from llem_airflow.runners.gpus_shown import show_hosts

    return show_hosts(**options)


@click.command("gpu-check")
@click.option(
    "--minutes",
    type=Number(min=0.1, max=120),
    default=5.0,
    show_default=True,
    help="How long, for all GPUs together.",
)
@click.option(
    "--results",
    "root",
    envvar=ROOT_VARIABLES,
    default="results",
    show_default=True,
    help="Results root; it keeps the profiles and their pages (JSON, text, HTML) in .gpu-profiles.",
)
@click.option(
    "--model-seconds",
    type=Number(min=0),
    default=None,
    help="How much of that time the model with random weights takes (PyTorch, transformers); 0 leaves it out. "
    "Default: a third, where that is 20 s or more.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the profiles as JSON.")
def check_gpu(minutes: float, root: str, **options: Any) -> int:
    """Characterise the power meter of each GPU of this machine.

    Measures how often the registers of power and energy are written, what a reading is the mean of, how late it is, how
    noisy, and what reading costs, under a load of matrix products (PyTorch; without it there is no load). Then a model
    with random weights, of the size that the GPU has room for, is measured as in a study: joules per token, what the
    harness costs, and nvidia-smi, Zeus and CodeCarbon on the same windows. No other work may run on the GPUs. Results
    that are measured later use the profile. Exit code 1 when a GPU refused or was lost, 2 when there is none.
    """
    from llem_airflow.gpu_check.run import gpu_check

    return gpu_check(minutes, root, **options)


VERBS = (show_gpus, check_gpu, show_doctor, check_engine, collect_garbage)
