"""The operator of pods: its arguments, its page, one cycle from the study to the stored result."""

from __future__ import annotations

import inspect
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.providers.cncf.kubernetes.secret import Secret
from airflow.sdk import DAG
from kubernetes.client import CoreV1Api
from kubernetes.client import models as k8s

from llem_airflow.factory import study_dag
from llem_airflow.operators import LLEMExperimentOperator, LLEMKubernetesExperimentOperator
from llem_airflow.operators.arguments import ArgumentError, Honoured, Refused
from llem_airflow.operators.kubernetes_arguments import ARGUMENTS, table
from llem_airflow.operators.retries import AttemptFinalError
from llem_airflow.results import ResultsRoot
from llem_airflow.runners import cluster_gc
from llem_airflow.runners.attempt import Attempt
from llem_airflow.runners.base import Busy, Wait
from llem_airflow.runners.cluster_doctor import RIGHTS
from llem_airflow.runners.failures import AttemptFailedError
from llem_airflow.runners.pod_spec import pod
from llem_airflow.study.plan.findings import not_runnable
from tests.kubernetes.cluster import StandInCluster
from tests.kubernetes.fixtures import RunnerOf
from tests.kubernetes.schema import VERSIONS, wrong_in
from tests.kubernetes.tasks import quick, study
from tests.operators.test_experiment import context
from tests.runners.programs import HASH, SPEC, attempt

PAGE = (Path(__file__).parents[2] / "llem_airflow/operators/KUBERNETES.md").read_text()
NODE = k8s.V1ObjectFieldSelector(field_path="spec.nodeName")
ASKED = {"limits": {"memory": "8Gi"}, "requests": {"memory": "8Gi", "cpu": "2"}}
CREATED: dict[str, tuple[Any, str, Any]] = {
    # argument: value, where the pod has it, what it says there
    "namespace": ("benchmarks", "metadata.namespace", None),
    "image": ("other:2", "spec.containers.0.image", "other:2"),
    "cmds": (["nice", "python3"], "spec.containers.0.command", ["nice", "python3"]),
    "volume_mounts": (
        [k8s.V1VolumeMount(name="data", mount_path="/data")],
        "spec.containers.0.volumeMounts.0.mountPath",
        "/data",
    ),
    "volumes": ([k8s.V1Volume(name="data", empty_dir={})], "spec.volumes.0.name", "data"),
    "env_vars": ({"A": "{{ 1 + 1 }}", "HOME": "/data"}, "env.A", {"name": "A", "value": "2"}),
    "env_from": (
        [k8s.V1EnvFromSource(config_map_ref=k8s.V1ConfigMapEnvSource(name="site"))],
        "spec.containers.0.envFrom.0.configMapRef.name",
        "site",
    ),
    "secrets": (
        [Secret("env", "TOKEN", "hub", "token")],
        "env.TOKEN",
        {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}},
    ),
    "labels": ({"team": "night"}, "metadata.labels.team", "night"),
    "image_pull_policy": ("Always", "spec.containers.1.imagePullPolicy", "Always"),
    "annotations": ({"who": "ada"}, "metadata.annotations.who", "ada"),
    "container_resources": (
        k8s.V1ResourceRequirements(**ASKED),
        "spec.containers.0.resources",
        {"limits": {"memory": "8Gi", "nvidia.com/gpu": "1"}, "requests": ASKED["requests"]},
    ),
    "affinity": ({"nodeAffinity": {}}, "spec.affinity", {"nodeAffinity": {}}),
    "runtime_class_name": ("nvidia", "spec.runtimeClassName", "nvidia"),
    "node_selector": ({"nvidia.com/gpu.product": "H100"}, "spec.nodeSelector", {"nvidia.com/gpu.product": "H100"}),
    "image_pull_secrets": ([k8s.V1LocalObjectReference(name="login")], "spec.imagePullSecrets.0.name", "login"),
    "service_account_name": ("llem", "spec.serviceAccountName", "llem"),
    "automount_service_account_token": (True, "spec.automountServiceAccountToken", True),
    "hostnetwork": (True, "spec.hostNetwork", True),
    "host_aliases": ([k8s.V1HostAlias(ip="10.0.0.7", hostnames=["hub.lab"])], "spec.hostAliases.0.ip", "10.0.0.7"),
    "tolerations": (
        [k8s.V1Toleration(key="nvidia.com/gpu", operator="Exists")],
        "spec.tolerations.0.key",
        "nvidia.com/gpu",
    ),
    "security_context": ({"runAsUser": 0}, "spec.securityContext", {"runAsUser": 0}),
    "container_security_context": (
        {"privileged": False},
        "spec.initContainers.0.securityContext",
        {"privileged": False},
    ),
    "dnspolicy": ("None", "spec.dnsPolicy", "None"),
    "dns_config": (k8s.V1PodDNSConfig(nameservers=["10.0.0.53"]), "spec.dnsConfig.nameservers", ["10.0.0.53"]),
    "hostname": ("bench", "spec.hostname", "bench"),
    "subdomain": ("lab", "spec.subdomain", "lab"),
    "schedulername": ("kueue", "spec.schedulerName", "kueue"),
    "full_pod_spec": (
        k8s.V1Pod(spec=k8s.V1PodSpec(containers=[k8s.V1Container(name="base")], node_name="n7")),
        "spec.nodeName",
        "n7",
    ),
    "init_containers": ([k8s.V1Container(name="first", image="i")], "spec.initContainers.1.name", "first"),
    "pod_template_dict": ({"spec": {"containers": [{"name": "base"}], "nodeName": "n8"}}, "spec.nodeName", "n8"),
    "priority_class_name": ("low", "spec.priorityClassName", "low"),
    "pod_runtime_info_envs": (
        [k8s.V1EnvVar(name="N", value_from=k8s.V1EnvVarSource(field_ref=NODE))],
        "env.N",
        {"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
    ),
    "termination_grace_period": (3, "spec.terminationGracePeriodSeconds", 3),
    "configmaps": (["site"], "spec.containers.0.envFrom.0.configMapRef.name", "site"),
    "termination_message_policy": (
        "FallbackToLogsOnError",
        "spec.containers.0.terminationMessagePolicy",
        "FallbackToLogsOnError",
    ),
    "active_deadline_seconds": (900, "spec.activeDeadlineSeconds", 900),
    "base_container_name": ("engine", "spec.containers.0.name", "engine"),
}  # fmt: skip
TESTED_ELSEWHERE = {
    # How the API server is reached, and what the worker does: nothing of the pod.
    "kubernetes_conn_id", "in_cluster", "cluster_context", "config_file", "startup_timeout_seconds", "do_xcom_push",
    "deferrable", "pod_template_file",
}  # fmt: skip
REFUSED = {name: "x" for name, entry in ARGUMENTS.items() if isinstance(entry, Refused)}


@pytest.fixture
def operator(config_file: Callable[[str], str]) -> Callable[..., LLEMKubernetesExperimentOperator]:
    def make(more: str = "", **kwargs: Any) -> LLEMKubernetesExperimentOperator:
        asked = study(more)
        where = {"config_file": config_file("http://127.0.0.1:9"), **kwargs}
        return LLEMKubernetesExperimentOperator(
            task_id="t", study=asked, experiment=asked.experiments[0], **where
        )

    return make


def made(task: LLEMKubernetesExperimentOperator) -> dict[str, Any]:
    """The pod that a task makes; what the API's published description says against it is said."""
    task.render_template_fields({})
    manifest = pod(attempt(), HASH, task.pod_settings(), 1)
    assert wrong_in(manifest) == []
    return manifest


def at(manifest: dict[str, Any], path: str) -> Any:
    found: Any = manifest
    if path.startswith("env."):
        return next(each for each in manifest["spec"]["containers"][0]["env"] if each["name"] == path[4:])
    for name in re.split(r"\.(?!com/)", path):
        found = found[int(name)] if name.isdecimal() else found.get(name)
    return found


def test_the_table_has_every_argument_and_no_other() -> None:
    names = set(inspect.signature(KubernetesPodOperator.__init__).parameters) - {"self", "kwargs"}
    assert set(ARGUMENTS) == names
    honoured = {name for name, entry in ARGUMENTS.items() if isinstance(entry, Honoured)}
    assert honoured == {*CREATED, *TESTED_ELSEWHERE}


def test_the_page_has_the_table_as_the_code_has_it() -> None:
    assert table() in PAGE, "python -m llem_airflow.operators.kubernetes_arguments prints it"


@pytest.mark.parametrize("name", CREATED)
def test_an_argument_reaches_the_pod(
    name: str, operator: Callable[..., LLEMKubernetesExperimentOperator]
) -> None:
    value, path, expected = CREATED[name]
    assert at(made(operator(**{name: value})), path) == expected


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_argument_is_named_with_the_reason_and_the_alternative(
    name: str, operator: Callable[..., LLEMKubernetesExperimentOperator]
) -> None:
    entry = ARGUMENTS[name]
    assert isinstance(entry, Refused)
    for refuse in (operator, LLEMKubernetesExperimentOperator.partial):
        with pytest.raises(ArgumentError) as caught:
            refuse(**{"task_id": "t"} if refuse is not operator else {}, **{name: "x"})
        assert str(caught.value) == f"{name}='x' is refused: {entry.why}. Instead: {entry.instead}"
    default = inspect.signature(KubernetesPodOperator.__init__).parameters[name].default
    operator(**{name: default})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"mem_limit": "8g"}, "mem_limit is an argument of containers on a Docker engine"),
        ({"labels": {"llem.key": "0"}}, "labels: 'llem.key' is ours"),
        (
            {"container_resources": {"limits": {"nvidia.com/gpu": 1}}},
            "'nvidia.com/gpu' is asked for by `gpus`",
        ),
        ({"gpu_wait_s": -1}, "gpu_wait_s=-1: allowed: seconds from 0"),
    ],
)
def test_a_value_that_would_be_ignored_is_a_mistake(
    arguments: dict[str, Any], said: str, operator: Callable[..., LLEMKubernetesExperimentOperator]
) -> None:
    with pytest.raises(ArgumentError, match=re.escape(said)):
        operator(**arguments)
    if "labels" in arguments:
        with DAG("d", default_args=arguments), pytest.raises(ArgumentError, match=re.escape(said)):
            operator()


MEANINGLESS = {
    "gpus: {ids: ['0']}\n": "gpus.ids on a Kubernetes cluster: the cluster's device plugin chooses",
    "gpus: {memory_gb: 40}\n": "gpus.memory_gb on a Kubernetes cluster",
    "gpus: {exclusive: host}\n": "gpus.exclusive: host on a Kubernetes cluster",
    "power: {sampling: host}\n": "power.sampling: host on a Kubernetes cluster",
    "study_execution: {isolation: process}\n": "study_execution.isolation on a Kubernetes cluster",
}


@pytest.mark.parametrize("more", MEANINGLESS)
def test_a_key_that_says_nothing_to_a_cluster_is_named_with_its_place(more: str) -> None:
    problems = [str(each) for each in not_runnable(study(more))]
    assert any(MEANINGLESS[more] in each for each in problems), problems
    assert not_runnable(study()) == []


@pytest.mark.parametrize(
    ("more", "resource", "said"),
    [
        ("gpus: {kind: mig}\n", "nvidia.com/gpu", "gpus.kind: mig: nvidia.com/gpu is no slice"),
        (
            "gpus: {kind: full}\n",
            "nvidia.com/mig-1g.10gb",
            "gpus.kind: full: nvidia.com/mig-1g.10gb is a slice",
        ),
    ],
)
def test_the_kind_of_device_and_the_resource_say_the_same(
    more: str, resource: str, said: str, operator: Callable[..., LLEMKubernetesExperimentOperator]
) -> None:
    with pytest.raises(ArgumentError, match=said):
        operator(more, gpu_resource=resource)


def test_slices_are_asked_for_by_their_resource_and_who_asks_for_none_sees_none(
    operator: Callable[..., LLEMKubernetesExperimentOperator],
) -> None:
    slices = made(operator("gpus: {count: 2, kind: mig}\n", gpu_resource="nvidia.com/mig-1g.10gb"))
    assert at(slices, "spec.containers.0.resources") == {"limits": {"nvidia.com/mig-1g.10gb": "2"}}
    variables = [each["name"] for each in slices["spec"]["containers"][0]["env"]]
    assert "NVIDIA_VISIBLE_DEVICES" not in variables
    assert at(made(operator("gpus: {count: 0}\n")), "env.NVIDIA_VISIBLE_DEVICES")["value"] == "void"
    keeper = slices["spec"]["containers"][-1]
    assert {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"} in keeper["env"]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_published_description_refuses_what_a_server_refuses(
    version: str, operator: Callable[..., LLEMKubernetesExperimentOperator]
) -> None:
    manifest = made(operator())
    manifest["spec"]["containers"][0]["gpu"] = 1
    assert wrong_in(manifest, (version,)) != []


def test_a_study_that_names_the_cluster_becomes_a_dag_of_pods(config_file: Callable[[str], str]) -> None:
    dag = study_dag(study(), namespace="benchmarks", node_selector={"a": "b"}, render="static")
    cycles = [task for task in dag.tasks if isinstance(task, LLEMKubernetesExperimentOperator)]
    assert len(cycles) == len(study().plan.planned_cycles)
    assert not [task for task in dag.tasks if isinstance(task, LLEMExperimentOperator)]
    mapped = study_dag(study(), namespace="benchmarks", render="mapped")
    assert [task.task_type for task in mapped.tasks].count("LLEMKubernetesExperimentOperator") == 1


def test_a_role_with_the_verbs_of_the_page_is_enough_and_not_too_much(
    cluster: StandInCluster, api: CoreV1Api, runner: RunnerOf, this_attempt: Attempt
) -> None:
    (block,) = re.findall(r"```yaml\n(apiVersion: v1\nkind: ServiceAccount.*?)```", PAGE, re.DOTALL)
    objects = list(yaml.safe_load_all(block))
    assert [wrong_in(each) for each in objects] == [[], [], []]
    (role,) = (each for each in objects if each["kind"] == "Role")
    allowed = {(verb, name) for rule in role["rules"] for name in rule["resources"] for verb in rule["verbs"]}
    cluster.unschedulable = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
    threading.Timer(0.5, lambda: setattr(cluster, "unschedulable", "")).start()
    first = runner(
        "print('up', flush=True); time.sleep(0.5); result()", private_environment={"HF_TOKEN": "hf_secret"}
    )
    assert not isinstance(first.place(SPEC, Wait(30.0)), Busy)
    second = runner(who=attempt(2, this_attempt))
    place = second.place(SPEC)
    assert not isinstance(place, Busy)
    first.kill()
    second.run(place, SPEC, lambda _: None)
    cluster.stops_at = lambda _: {"containerStatuses": []}
    third = runner(who=attempt(3, this_attempt), start_limit_s=0.5)
    stuck = third.place(SPEC)
    assert not isinstance(stuck, Busy)
    with pytest.raises(AttemptFailedError):
        third.run(stuck, SPEC, lambda _: None)
    assert cluster_gc.things_in(api, "default").pods == ()
    assert cluster.used - {("follow", "pods/log"), ("stream", "pods/exec")} == allowed == set(RIGHTS)


def test_the_bundle_runs_in_a_pod_and_what_it_says_of_its_failure_is_the_tasks(
    cluster: StandInCluster, on_cluster: Callable[..., LLEMKubernetesExperimentOperator]
) -> None:
    with pytest.raises(AttemptFinalError) as caught:
        on_cluster().execute(context())
    assert caught.value.failure.category in ("engine_missing", "meter_unavailable", "gpu_access")
    assert cluster.names() == []


def test_a_cycle_is_stored_from_its_pod_and_the_next_try_finds_it_stored(
    cluster: StandInCluster, on_cluster: Callable[..., LLEMKubernetesExperimentOperator], tmp_path: Path
) -> None:
    kind = quick(tmp_path)
    said = on_cluster(kind).execute(context())
    (cycle,) = ResultsRoot(tmp_path / "results").run("asked", "manual__x").cycles()
    assert said["result"] == cycle.folder.url
    record = cycle.provenance()
    assert (record["runner"], record["image"]) == ("kubernetes", "registry.lab/vllm:1")
    assert (record["host"]["name"], record["adopted"]) == ("node-1", False)
    assert record["image_digest"].startswith("docker.io/library/registry.lab/vllm:1@sha256:")
    assert cluster.names() == []
    cluster.quota = "nothing can be made"
    assert on_cluster(kind).execute(context(try_number=2))["result"] == said["result"]
