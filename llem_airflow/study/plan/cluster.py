"""What a study may not ask of a Kubernetes cluster, which chooses nodes and devices itself."""

from __future__ import annotations

from collections.abc import Iterator

from llem_airflow.study.plan.model import Experiment, Study

KUBERNETES = "kubernetes"
"""The runner's name."""
_WHOLE = "nvidia.com/gpu"


def on_a_cluster(study: Study) -> bool:
    """Whether the study's cycles are pods."""
    return any(experiment.runner == KUBERNETES for experiment in study.experiments)


def meaningless_on_a_cluster(
    study: Study, experiment: Experiment, gpu_resource: str | None = None
) -> list[tuple[str, str, str]]:
    """Keys that say nothing to a cluster: each with why, and what to do instead.

    Args:
        study: The study.
        experiment: One of its experiments.
        gpu_resource: The device plugin's resource, where it is known; it says whether devices are slices.
    """
    return [*_gpus(experiment, gpu_resource), *_of_the_study(study)]


def _gpus(experiment: Experiment, gpu_resource: str | None) -> Iterator[tuple[str, str, str]]:
    gpus, sliced = experiment.gpus, "/mig-" in (gpu_resource or "")
    if gpus.ids:
        yield (
            "gpus.ids",
            "the cluster's device plugin chooses the devices",
            "leave it out, or use node_selector",
        )
    if gpus.memory_gb is not None:
        labels = "node_selector with nvidia.com/gpu.product, which GPU feature discovery sets"
        yield "gpus.memory_gb", "the scheduler knows no device's memory", labels
    if gpus.exclusive == "host":
        yield (
            "gpus.exclusive: host",
            "no pod can keep others off its node",
            "ask for all GPUs of a node, or taint one",
        )
    if gpu_resource is None:
        return
    if gpus.kind == "mig" and not sliced:
        yield "gpus.kind: mig", f"{gpu_resource} is no slice", "gpu_resource='nvidia.com/mig-<profile>'"
    if gpus.kind == "full" and sliced:
        yield "gpus.kind: full", f"{gpu_resource} is a slice", f"gpu_resource={_WHOLE!r}"


def _of_the_study(study: Study) -> Iterator[tuple[str, str, str]]:
    if study.keys.power.sampling == "host":
        yield (
            "power.sampling: host",
            "no worker sits on the pod's node",
            "leave it out: the pod's own meter counts",
        )
    if study.execution.in_sessions:
        yield "study_execution.isolation", "a pod has one cycle", "`container`, or another runner"
    if study.execution.gpu_indices is not None:
        yield "study_execution.gpu_indices", "the device plugin chooses the devices", "leave it out"
    if study.airflow.hosts:
        yield "airflow.hosts", "the cluster chooses nodes", "leave it out, or use node_selector"
    if len({experiment.runner == KUBERNETES for experiment in study.experiments}) > 1:
        yield (
            "runners",
            "some engines are to run on the cluster and others not",
            "put those into a study of their own",
        )
