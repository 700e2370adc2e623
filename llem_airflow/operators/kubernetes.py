"""LLEMKubernetesExperimentOperator: one cycle of one experiment, in a fresh pod of a Kubernetes cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from kubernetes.client import CoreV1Api

from llem_airflow.operators import kubernetes_arguments as arguments
from llem_airflow.operators.arguments import ArgumentError, check_limits
from llem_airflow.operators.experiment import ExperimentTask, found_experiment
from llem_airflow.operators.host import DEFAULT_CONN_ID
from llem_airflow.operators.placement import PlacementError, choose_image, hub_secrets, limits
from llem_airflow.operators.pod_trigger import PodTrigger
from llem_airflow.operators.runners import CORRECT, Chosen, layers_of
from llem_airflow.operators.settings import MODELS_MOUNT, LocalModel, settings
from llem_airflow.operators.ui import EvidenceLink
from llem_airflow.results import StoredRun
from llem_airflow.runners.choice import RunnerError
from llem_airflow.runners.cluster import client_of
from llem_airflow.runners.container_spec import cache_environment
from llem_airflow.runners.failures import AttemptFailedError, failure
from llem_airflow.runners.images import default_entrypoint
from llem_airflow.runners.kubernetes import KubernetesRunner
from llem_airflow.runners.pod_spec import CACHE, GPU_RESOURCE, PodSettings
from llem_airflow.study import Experiment, Study
from llem_airflow.study.plan.findings import meaningless_on_a_cluster

_START_LIMIT_S = 1800
_STOP_GRACE_S = 10
_OF_ENGINES = {
    "docker_host": "its engine",
    "cgroup_parent": "containers of its engine",
    "registry": "containers; name images in full",
    "tls_ca_cert": "a Docker engine; so are the other files",
    "gpu_quota": "the engine's GPUs; a namespace has ResourceQuotas",
    "shm_size": "containers; give the operator shm_size",
    "keep_failed": "containers; a pod that was kept would hold its GPU",
    "max_gpu_idle_s": "GPUs of this machine",
    "labels": "containers; give the operator labels",
}
"""Fields of the host's connection that say nothing of pods, and what they are about."""


class LLEMKubernetesExperimentOperator(ExperimentTask, KubernetesPodOperator):  # type: ignore[misc]  # execute returns a dict
    """Run one cycle of one experiment in a pod and store what it observed.

    Args:
        study: The study, or the path of its file.
        experiment: One of its experiments, or its id ``<slug>-<hash8>``; a slug that names only one is enough.
        cycle: Which repetition, from 1.
        gap_before_s: Thermal gap: wait until this long after the end of the run's previous cycle, in seconds.
        gpu_wait_s: How long the pod may be pending before the try fails (retryable), in seconds; 0 for not at all.
            Default: what the host's connection says, then 180.
        gpu_resource: The device plugin's resource of which ``gpus.count`` are asked for, such as
            ``nvidia.com/mig-1g.10gb``; templated.
        models_volume: Where the cluster has the worker's models folder: a path of the nodes, or the name of a claim in
            the namespace. Mounted read-only.
        cache_volume: Where downloaded models and compiled engines are kept, likewise; left out, they go with the pod.
        shm_size: Size of /dev/shm, as Kubernetes writes it. Default: 1 GiB and one for each GPU.
        llem_conn_id: Connection of type ``llem``: images, the hub's token and limits of time; what it says of an
            engine's containers has no effect.
        deferrable: Wait in the triggerer, where waiting takes no worker and no pool slot: for gates and thermal gaps,
            for a node, and until the attempt has begun there. Where no triggerer runs, the task comes back after
            ``gpu_wait_s`` and waits in the worker.
        **kwargs: Those of KubernetesPodOperator, but for the ones that make no sense here, which are refused by name
            (``operators/kubernetes_arguments.py`` has all of them; so has the page).

    Raises:
        ArgumentError: An argument of KubernetesPodOperator, or a key of the study, that an experiment in a pod cannot
            have.
    """

    template_fields: Sequence[str] = (
        *(
            each
            for each in KubernetesPodOperator.template_fields
            if each not in ("name", "arguments", "trigger_kwargs")
        ),
        "gpu_resource",
        "models_volume",
        "cache_volume",
    )
    operator_extra_links = (EvidenceLink(),)
    ui_color = "#e8eaf6"
    check_arguments = staticmethod(arguments.check)
    max_gpu_idle_s = None
    runner = None
    bundle: Path | None = None
    """What runs in the pod; None for the bundle of the installed packages."""

    def __init__(  # noqa: PLR0913  # the keywords are the operator's interface
        self,
        *,
        study: Study | str | Path,
        experiment: str | Experiment,
        cycle: int = 1,
        gap_before_s: float = 0.0,
        gpu_wait_s: float | None = None,
        gpu_resource: str = GPU_RESOURCE,
        models_volume: str | None = None,
        cache_volume: str | None = None,
        shm_size: str | None = None,
        llem_conn_id: str = DEFAULT_CONN_ID,
        deferrable: bool = True,
        **kwargs: Any,
    ) -> None:
        check_limits(gpu_wait_s=gpu_wait_s, max_gpu_idle_s=None)
        kwargs = arguments.given({**kwargs, "gpu_resource": gpu_resource})
        del kwargs["gpu_resource"]
        pushes = kwargs.pop("do_xcom_push", True)
        self.study, self.experiment = found_experiment(study, experiment)
        if said := meaningless_on_a_cluster(self.study, self.experiment, gpu_resource):
            raise ArgumentError("; ".join(f"{key}: {why}. Instead: {instead}" for key, why, instead in said))
        usual = {
            "startup_timeout_seconds": _START_LIMIT_S,
            "termination_grace_period": _STOP_GRACE_S,
            "image": self.experiment.image or "",
        }
        super().__init__(
            **{**usual, **{k: v for k, v in kwargs.items() if v is not None}}, do_xcom_push=False
        )
        self.do_xcom_push = pushes
        self.experiment_id = self.experiment.id
        self._take(cycle, gap_before_s, gpu_wait_s, llem_conn_id, deferrable=deferrable)
        self.gpu_resource = gpu_resource
        self.models_volume = models_volume
        self.cache_volume = cache_volume
        self.shm_size = shm_size

    @cached_property
    def client(self) -> CoreV1Api:
        """The client of the cluster that the arguments and the connection name."""
        return client_of(self.hook.core_v1_client.api_client.configuration)

    def waiter(self, **wait: Any) -> PodTrigger:
        """What waits for the pod in the triggerer, with the worker's way to the cluster."""
        return PodTrigger(
            **wait,
            conn_id=self.kubernetes_conn_id,
            in_cluster=self.in_cluster,
            cluster_context=self.cluster_context,
            config_file=self.config_file,
        )

    def choose(self, run: StoredRun, folder: Path) -> Chosen:  # noqa: ARG002  # of every runner
        """A pod, of the image that the first layer names."""
        try:
            choice = layers_of(self).choice(
                self.experiment.engine, KubernetesRunner.name, self.experiment.image
            )
            image, by = choose_image(choice, self.experiment)
        except (RunnerError, PlacementError) as error:
            raise AttemptFailedError(failure("config", hint=CORRECT), str(error), folder=folder) from error
        layers = {"runner_by": "the operator", "runner_why": "", "image_by": by}
        return Chosen(KubernetesRunner.name, image, layers)

    def make_runner(self, name: str, run: StoredRun, folder: Path) -> KubernetesRunner:  # noqa: ARG002  # of every runner
        """The runner of the attempt's pod."""
        if self.attempt is None or name != KubernetesRunner.name:
            raise PlacementError(f"found runner {name!r}; allowed: {KubernetesRunner.name}")
        return KubernetesRunner(
            self.client,
            self.attempt,
            self.pod_settings(),
            folder=folder,
            on_line=self.line,
            on_live=self.live,
            bundle=self.bundle,
        )

    def pod_settings(self) -> PodSettings:
        """Everything about the pod that is not the experiment, from the operator's arguments and the study."""
        made = self._manifest()
        engine, gpus = self.experiment.engine, self.experiment.gpus
        devices = gpus.count if gpus.count is not None else 1
        environment, volumes = self._model_access()
        said = {each["name"] for each in made["spec"]["containers"][0].get("env") or []}
        of_hub = {} if self.model_files is not None else hub_secrets(self.host, said)
        of_time = limits(self)
        return PodSettings(
            image=self.image,
            pod=made,
            namespace=made["metadata"]["namespace"],
            base=self.base_container_name,
            entrypoint=tuple(self.cmds) or default_entrypoint(engine),
            environment=environment,
            private_environment=of_hub,
            gpus=devices,
            gpu_resource=self.gpu_resource,
            volumes=volumes,
            shm_size=self.shm_size or f"{1 + devices}Gi",
            wall_clock_s=of_time["wall_clock_s"],
            silence_s=of_time["silence_s"],
            start_limit_s=float(self.startup_timeout_seconds),
            stop_grace_s=float(self.termination_grace_period),
        )

    def _manifest(self) -> dict[str, Any]:
        """The pod that the arguments describe, as KubernetesPodOperator builds it."""
        pushes, self.do_xcom_push = self.do_xcom_push, False  # it means a sidecar there
        try:
            made = self.build_pod_request_obj(dry_run=True)
        finally:
            self.do_xcom_push = pushes
        found: dict[str, Any] = self.client.api_client.sanitize_for_serialization(made)
        return found

    def look_at_host(self) -> None:
        """Take over what the host's connection says, as far as it says something of pods."""
        super().look_at_host()
        unused = [f"{name} (of {what})" for name, what in _OF_ENGINES.items() if getattr(self.host, name)]
        if unused:
            self.log.warning("Connection %s: no effect on a pod: %s", self.llem_conn_id, "; ".join(unused))

    def leave_host(self) -> None:
        """Close the connections to the API server."""
        if "client" in self.__dict__:
            self.client.api_client.rest_client.pool_manager.clear()

    def _model_access(self) -> tuple[dict[str, str], tuple[tuple[Mapping[str, Any], Mapping[str, Any]], ...]]:
        """Variables and volumes that bring the weights into the pod, and keep what was downloaded or compiled."""
        cache = _volume("llem-cache", self.cache_volume), {"name": "llem-cache", "mountPath": str(CACHE)}
        environment = {
            **cache_environment(CACHE / "engines" / self.experiment.engine),
            "HF_HOME": str(CACHE / "hub"),
        }
        if self.model_files is None:
            return environment, (cache,)
        return {**environment, "HF_HUB_OFFLINE": "1"}, (cache, self._models(self.model_files))

    def _models(self, model: LocalModel) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        folder = settings().models_dir
        if self.models_volume is None or folder is None or not model.worker_path.is_relative_to(folder):
            raise PlacementError(
                f"model {self.experiment.model} lies at {model.worker_path} on the worker: put it into the models "
                f"folder ({folder}), and say with the operator's models_volume where the cluster has that folder: a "
                "path of its nodes, or a claim"
            )
        mount = {"name": "llem-models", "mountPath": str(MODELS_MOUNT), "readOnly": True}
        return _volume("llem-models", self.models_volume, read_only=True), mount


def _volume(name: str, where: str | None, *, read_only: bool = False) -> dict[str, Any]:
    """A path of the nodes (it has a slash), a claim, or a folder that goes with the pod.

    A claim says itself that it is only read: a ``ReadOnlyMany`` volume asks for that, and no node changes its owner.
    """
    if where is None:
        return {"name": name, "emptyDir": {}}
    if "/" in where:
        return {"name": name, "hostPath": {"path": where, "type": "Directory"}}
    claim = {"claimName": where, **({"readOnly": True} if read_only else {})}
    return {"name": name, "persistentVolumeClaim": claim}
