"""`llem-airflow gc`, `gpus` and `doctor` over clusters, through a connection of Airflow; the cluster is a stand-in."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from airflow.sdk.exceptions import AirflowException
from click.testing import CliRunner, Result
from kubernetes.client import CoreV1Api

from llem_airflow.cli import main
from llem_airflow.operators import LLEMCollectGarbageOperator, known_clusters
from llem_airflow.operators.maintenance import hosts_to_clean
from llem_airflow.runners import cluster_doctor, cluster_gc, cluster_gpus, hosts
from llem_airflow.runners.airflow_asked import asking
from llem_airflow.runners.attempt import Attempt
from llem_airflow.runners.pod_spec import PodSettings, config_maps, label_value, pod, secret
from tests.kubernetes.cluster import Fault, Object, StandInCluster, node, now
from tests.kubernetes.schema import wrong_in
from tests.runners.programs import HASH, SPEC, attempt

PAGE = (Path(__file__).parents[2] / "llem_airflow/operators/KUBERNETES.md").read_text()
HELD = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
LONG_AGO = "2026-01-02T03:04:05Z"


@pytest.fixture
def connected(
    cluster: StandInCluster,
    config_file: Callable[[str], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An Airflow without tasks, whose connection `lab` leads to the cluster."""
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path / "airflow"))
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", f"sqlite:///{tmp_path}/none.db")
    monkeypatch.setenv("LLEM_INSTALLATION", "tests")
    extra = {"kube_config_path": config_file(cluster.url)}
    said = {
        "lab": {"conn_type": "kubernetes", "extra": extra},
        "host": {"conn_type": "llem", "host": "tcp://gpu1"},
    }
    for name, each in said.items():
        monkeypatch.setenv(f"AIRFLOW_CONN_{name.upper()}", json.dumps(each))


@pytest.fixture
def asked_here(connected: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Questions are answered in this process, which saves the import of Airflow; two tests ask as commands do."""

    def ask(module: str, question: Any, timeout_s: float) -> Any:  # nobody waits here
        assert module == "known_clusters"
        return json.loads(json.dumps(known_clusters.answer(json.loads(json.dumps(question)))))

    monkeypatch.setattr(hosts, "ask", ask)


def run(verb: str, *arguments: str) -> Result:
    return CliRunner().invoke(main, [verb, "--cluster", "lab", *arguments], env={"COLUMNS": "200"})


def left_by(
    cluster: StandInCluster, who: Attempt, phase: str, *, node: str = "", made: str = LONG_AGO
) -> str:
    """What an attempt has left: its objects as they are made, in some phase."""
    settings = PodSettings("registry.lab/engine:1", private_environment={"HF_TOKEN": "t"}, gpus=1)
    private = secret(who, settings)
    maps = config_maps(who, b"bundle", SPEC)
    assert private is not None
    made_pod = pod(who, HASH, settings, len(maps))
    for each in (made_pod, private, *maps):
        each["metadata"] |= {
            "uid": "u", "creationTimestamp": made, "namespace": "default", "resourceVersion": "7",
        }  # fmt: skip
        kind = {"Pod": "pods", "Secret": "secrets", "ConfigMap": "configmaps"}[each["kind"]]
        cluster.objects[kind, each["metadata"]["name"]] = each
    made_pod["status"] = {"phase": phase}
    if node:
        made_pod["spec"]["nodeName"] = node
    if phase == "none":
        del cluster.objects["pods", who.container_name]
    return who.container_name


def foreign(cluster: StandInCluster, name: str, node: str, **devices: str) -> None:
    """Somebody else's pod in another namespace."""
    resources = {"limits": {f"nvidia.com/{key.replace('_', '-')}": value for key, value in devices.items()}}
    spec: Object = {"containers": [{"name": "train", "image": "i", "resources": resources}]}
    cluster.objects["pods", name] = {
        "kind": "Pod", "apiVersion": "v1", "spec": {**spec, **({"nodeName": node} if node else {})},
        "metadata": {"name": name, "namespace": "team", "creationTimestamp": LONG_AGO, "resourceVersion": "8"},
        "status": {"phase": "Running" if node else "Pending"},
    }  # fmt: skip
    if not node:
        condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": HELD}
        cluster.objects["pods", name]["status"]["conditions"] = [condition]


def removed(cluster: StandInCluster, api: CoreV1Api, **rules: Any) -> list[str]:
    found = cluster_gc.leftovers_among(
        cluster_gc.things_in(api, "default"),
        **{"alive": None, "older_than_s": 3600.0, "installation": "tests", "running": "never", **rules},
    )
    return sorted(each.name for each in found)


def test_what_is_left_over_follows_the_rules_of_containers(cluster: StandInCluster, api: CoreV1Api) -> None:
    over, lives, running = (left_by(cluster, attempt(), "Pending") for _ in range(3))
    cluster.pod(running)["spec"]["nodeName"] = "node-1"
    young = left_by(cluster, attempt(), "Failed", made=now())
    orphans = left_by(cluster, attempt(), "none")
    others = left_by(cluster, replace(attempt(), installation="another"), "Failed")

    def alive(labels: Any) -> bool | None:
        name = f"llem-{labels['llem.key']}-try1"
        return {over: False, lives: True, running: False, orphans: False}.get(name)

    assert removed(cluster, api) == sorted([over, lives, orphans])
    assert removed(cluster, api, older_than_s=0.0) == sorted([over, lives, orphans, young])
    assert removed(cluster, api, alive=alive) == sorted([over, orphans])
    assert removed(cluster, api, alive=alive, running="disowned") == sorted([over, orphans, running])
    assert removed(cluster, api, alive=lambda _: True, running="any") == []
    assert removed(cluster, api, running="any", installation=None) == sorted(
        [over, lives, orphans, running, others]
    )


def test_an_installation_with_a_long_name_is_known_by_its_label(
    cluster: StandInCluster, api: CoreV1Api
) -> None:
    long = "https://airflow.lab:8443/" + "a" * 80
    name = left_by(cluster, replace(attempt(), installation=long), "Failed")
    assert len(label_value(long)) <= 63
    assert removed(cluster, api, installation=long) == [name]


def test_gc_removes_pods_with_what_belongs_to_them_and_leaves_the_rest(
    cluster: StandInCluster, connected: None
) -> None:
    over = left_by(cluster, attempt(), "Failed")
    running = left_by(cluster, attempt(), "Running", node="node-1")
    orphans = left_by(cluster, attempt(), "none")
    others = left_by(cluster, replace(attempt(), installation="another"), "Failed")
    foreign(cluster, "train", "node-1", gpu="1")
    listed = run("gc")
    assert listed.exit_code == 0, listed.output
    assert f"lab: pod {over}  ended, " in listed.stdout
    assert f"lab: objects {orphans}  unused, " in listed.stdout
    assert (
        f"lab: {running} runs and is not touched without --force: tiny-a1b2c3d4 cycle 1, dag test+"
        in listed.stdout
    )
    assert "Airflow cannot be asked who is alive" in listed.stdout
    assert "2 found; `llem-airflow gc --yes` removes them." in listed.stdout
    assert sorted(cluster.names("pods")) == sorted([over, running, others, "train"]), (
        "nothing is removed unasked"
    )
    assert "Removed 2." in run("gc", "--yes").stdout
    kept = sorted([running, others, "train"])
    there = [(name, each) for (kind, name), each in list(cluster.objects.items()) if kind == "pods"]
    assert sorted(name for name, each in there if "deletionTimestamp" not in each["metadata"]) == kept
    assert sorted(cluster.names("secrets")) == sorted([running, others])
    assert sorted(cluster.names("configmaps")) == sorted([f"{running}-0", f"{others}-0"])


def test_gpus_shows_each_node_s_devices_who_asks_for_them_and_who_waits(
    cluster: StandInCluster, asked_here: None
) -> None:
    cluster.nodes = [
        node(
            "node-1",
            {"nvidia.com/gpu": 4},
            allocatable={"nvidia.com/gpu": 3},
            **{"nvidia.com/gpu.product": "H100"},
        ),
        node("node-2", {"nvidia.com/mig-1g.10gb": 7}),
        node("cpu-only", {}),
    ]
    cluster.nodes[1]["spec"]["unschedulable"] = True
    name = left_by(cluster, replace(attempt(), dag_id="nightly"), "Running", node="node-1")
    foreign(cluster, "train", "node-1", gpu="1")
    foreign(cluster, "slice", "node-2", **{"mig_1g.10gb": "2"})
    foreign(cluster, "queued", "", gpu="2")
    foreign(cluster, "done", "node-1", gpu="1")
    cluster.pod("done")["status"]["phase"] = "Succeeded"
    shown = run("gpus")
    assert shown.exit_code == 0, shown.output
    text = re.sub(r" +", " ", shown.stdout)
    assert (
        "lab: 2 of 3 nvidia.com/gpu requested, 2 of 7 nvidia.com/mig-1g.10gb requested; 1 pod waiting" in text
    )
    assert "node-1 3 nvidia.com/gpu, H100 (1 more unhealthy or reserved) 1 free" in text
    assert f"1: tiny-a1b2c3d4 of DAG nightly (default/{name}) " in text
    assert "1: pod team/train " in text
    assert "node-2 (cordoned) 7 nvidia.com/mig-1g.10gb 5 free" in text
    assert "1. pod team/queued: asks for 2 nvidia.com/gpu, for" in text
    assert text.rstrip().endswith(HELD)
    assert "team/done" not in text
    assert "cpu-only" not in text
    (told,) = json.loads(run("gpus", "--json").stdout)
    assert (told["cluster"], [each["node"] for each in told["nodes"]]) == ("lab", ["node-1", "node-2"])
    assert told["nodes"][0]["resources"][0]["requested_by"][0]["asks"] == {"nvidia.com/gpu": 1}


def test_who_may_not_look_at_the_whole_cluster_sees_the_namespace_and_is_told(
    cluster: StandInCluster, api: CoreV1Api
) -> None:
    name = left_by(cluster, attempt(), "Running", node="node-1")
    foreign(cluster, "train", "node-1", gpu="1")
    cluster.faults = [Fault("list", "nodes", status=403), Fault("list", "pods everywhere", status=403)]
    seen = cluster_gpus.look(api, "default")
    assert [each["pod"] for each in seen["elsewhere"]] == [name]
    assert [text.partition(":")[0] for text in seen["not_seen"]] == [
        "nodes, and what they have", "pods of other namespaces",
    ]  # fmt: skip
    assert "ClusterRole of operators/KUBERNETES.md" in seen["not_seen"][0]


def test_an_init_container_s_devices_are_those_of_the_pod_where_they_are_more() -> None:
    def asks(count: int) -> Object:
        return {"resources": {"limits": {"nvidia.com/gpu": str(count), "memory": "1Gi"}}}

    asked = {"spec": {"containers": [asks(1), asks(1), {}], "initContainers": [asks(3)]}}
    assert cluster_gpus.requested(asked) == {"nvidia.com/gpu": 3}


def about(cluster: StandInCluster, api: CoreV1Api, name: str, **named: Any) -> tuple[str, str, str]:
    found = {said[0]: said[1:] for said in cluster_doctor.examine(api, "default", **named)}
    assert cluster.names("configmaps", "secrets") == [], "nothing is made"
    return found.get(name, ("", "", ""))


def test_a_cluster_that_has_everything_passes(cluster: StandInCluster, api: CoreV1Api) -> None:
    said = cluster_doctor.examine(api, "default", resource="nvidia.com/gpu", runtime_class="nvidia")
    assert [(each[0], each[1]) for each in said] == [
        ("api server", "ok"), ("permissions", "ok"), ("gpu", "ok"), ("runtime class", "ok"), ("leftovers", "ok"),
    ]  # fmt: skip
    assert cluster.url in said[0][2]
    assert said[2][2] == "node-1: 2 nvidia.com/gpu"


def test_a_namespace_that_is_not_there_is_named(cluster: StandInCluster, api: CoreV1Api) -> None:
    cluster.faults = [Fault("create", "configmaps", status=404, message='namespaces "default" not found')]
    assert about(cluster, api, "namespace") == (
        "fail", "there is no namespace default",
        "`kubectl create namespace default`, or name another one: the operator's `namespace`, `--cluster`",
    )  # fmt: skip


def test_rights_that_are_missing_are_named_with_the_role_to_bind(
    cluster: StandInCluster, api: CoreV1Api
) -> None:
    cluster.denied = {("create", "pods/exec"), ("delete", "pods")}
    status, text, fix = about(cluster, api, "permissions")
    assert (status, text) == ("fail", "in default it may not delete pods, create pods/exec")
    assert "`kubectl apply -f role.yaml`" in fix


@pytest.mark.parametrize(
    ("nodes", "resource", "text", "fix"),
    [
        ([], None, "no node has nvidia.com/...", "install NVIDIA's device plugin"),
        ([node("a", {"nvidia.com/gpu": 1})], "nvidia.com/mig-1g.10gb",
         "no node has nvidia.com/mig-1g.10gb; there is nvidia.com/gpu", "`gpu_resource`"),
        ([node("a", {"nvidia.com/gpu": 1}, allocatable={"nvidia.com/gpu": 0})], None,
         "nodes have nvidia.com/..., and none can be had: a", "unhealthy"),
        ([{**node("a", {"nvidia.com/gpu": 1}), "spec": {"unschedulable": True}}], "nvidia.com/gpu",
         "nodes have nvidia.com/gpu, and none can be had: a", "cordoned"),
    ],
    ids=["none", "another", "unhealthy", "cordoned"],
)  # fmt: skip
def test_a_device_that_nobody_can_have_is_told(
    cluster: StandInCluster, api: CoreV1Api, nodes: list[Object], resource: str | None, text: str, fix: str
) -> None:
    cluster.nodes = nodes
    status, said, hint = about(cluster, api, "gpu", resource=resource)
    assert (status, said) == ("fail", text)
    assert fix in hint


def test_nodes_that_may_not_be_seen_are_no_failure(cluster: StandInCluster, api: CoreV1Api) -> None:
    cluster.faults = [Fault("list", "nodes", status=403)]
    assert about(cluster, api, "gpu")[:2] == ("warn", "not known: the nodes cannot be seen")


@pytest.mark.parametrize(
    ("named", "status", "fix"),
    [("gvisor", "fail", "correct `runtime_class_name`"), (None, "warn", "leave `runtime_class_name` out")],
)
def test_a_runtime_class_that_is_not_there_is_told(
    cluster: StandInCluster, api: CoreV1Api, named: str | None, status: str, fix: str
) -> None:
    cluster.classes = ()
    found = about(cluster, api, "runtime class", runtime_class=named)
    assert found[:2] == (status, f"there is no {named or 'nvidia'}")
    assert fix in found[2]


def test_an_image_pull_secret_is_looked_for_without_reading_it(
    cluster: StandInCluster, api: CoreV1Api
) -> None:
    named: dict[str, Any] = {"pull_secrets": ("login",)}
    status, text, fix = about(cluster, api, "image pull secret", **named)
    assert (status, text) == ("fail", "there is no login in default")
    assert fix == "`kubectl create secret docker-registry login -n default --docker-server=...`"
    cluster.objects["secrets", "login"] = {"metadata": {"name": "login", "namespace": "default"}}
    assert ("image pull secret", "ok", "login is there", "") in cluster_doctor.examine(
        api, "default", **named
    )
    assert ("get", "secrets") not in cluster.used
    assert ("list", "secrets") not in cluster.used


def test_leftovers_are_counted(cluster: StandInCluster, api: CoreV1Api) -> None:
    left_by(cluster, attempt(), "Failed")
    said = cluster_doctor.examine(api, "default")
    assert said[-1] == ("leftovers", "warn", "1 of ours are older than a day", "`llem-airflow gc --yes`")


def test_the_doctor_names_the_cluster_and_fails_where_a_check_does(
    cluster: StandInCluster, asked_here: None
) -> None:
    told = run(
        "doctor", "--pull-secret", "login", "--gpu-resource", "nvidia.com/gpu", "--runtime-class", "kata"
    )
    assert told.exit_code == 1
    assert "ok   lab: api server: Kubernetes v1.35.0 answers at http://127.0.0.1:" in told.stdout
    assert "fail lab: image pull secret: there is no login in default" in told.stdout
    assert "fail lab: runtime class: there is no kata" in told.stdout
    assert "engine" not in told.stdout, "no host is looked at where only a cluster is named"


def test_a_cluster_that_does_not_answer_or_is_not_known_is_said_by_its_name(
    cluster: StandInCluster, asked_here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.faults = [Fault("list", "nodes", status=401, message="Unauthorized")]
    done = CliRunner().invoke(
        main, ["gpus", "--cluster", "lab", "--cluster", "nowhere/x", "--cluster", "host", "--json"]
    )
    assert done.exit_code == 2
    errors = {each["cluster"]: f"{each['error']}; {each['fix']}" for each in json.loads(done.stdout)}
    assert errors["lab"].startswith(
        "the API server refused: 401 Unauthorized; give the worker's account the role"
    )
    assert errors["nowhere/x"].startswith(
        "there is no connection 'nowhere'; `airflow connections add nowhere"
    )
    assert errors["host"].startswith("connection 'host' is of type 'llem', and a cluster's is 'kubernetes'")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "kubernetes", None)  # as where it is not installed
        done = CliRunner().invoke(main, ["gpus", "--cluster", "lab"], env={"COLUMNS": "200"})
        assert done.exit_code == 2
        assert done.stdout.startswith("lab: the extra `kubernetes` of llem-airflow is not installed here")
        assert "pip install 'llem-airflow[kubernetes]'" in done.stdout
    for name in [name for name in os.environ if name.startswith("AIRFLOW")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AIRFLOW_HOME", "/nowhere/airflow")
    (told,) = hosts.answers_of(["lab"], "gpus")
    assert told["error"] == "no Airflow is set up here, whose connections lead to clusters"


def test_without_names_the_clusters_of_the_configuration_are_looked_at(
    cluster: StandInCluster, connected: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__LLEM__CLUSTERS", "lab, lab/team")
    monkeypatch.delenv("AIRFLOW_CONN_HOST")
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
    told = json.loads(CliRunner().invoke(main, ["gpus", "--json"]).stdout)
    assert [each.get("cluster") for each in told] == [None, "lab", "lab/team"]


def test_who_watches_a_cluster_asks_one_process_which_ends_with_it(
    cluster: StandInCluster, connected: None
) -> None:
    def asked() -> list[str]:
        found: list[str] = []
        for thread in Path("/proc/self/task").glob("*/children"):
            with contextlib.suppress(OSError):
                pids = thread.read_text().split()
                found += [
                    pid for pid in pids if b"known_clusters" in Path(f"/proc/{pid}/cmdline").read_bytes()
                ]
        return found

    with asking("known_clusters") as asks:
        seen = []
        for _ in range(2):
            (told,) = hosts.answers_of(["lab"], "gpus", asks)
            assert told["name"] == "lab"
            assert [each["node"] for each in told["nodes"]] == ["node-1"]
            seen.append(asked())
    assert seen[0] == seen[1]
    assert len(seen[0]) == 1
    assert asked() == []


def test_the_maintenance_task_cleans_a_cluster_by_airflow_s_word(
    cluster: StandInCluster, connected: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = left_by(cluster, attempt(), "Running", node="node-1", made=now())
    lives = left_by(cluster, replace(attempt(), task_id="lives"), "Pending", made=now())
    states = {"task": "failed", "lives": "deferred"}

    def states_of(*, run_ids: list[str], task_ids: list[str], **_: Any) -> dict[str, dict[str, str]]:
        return {run_ids[0]: {task_ids[0]: states[task_ids[0]]}}

    task = LLEMCollectGarbageOperator(task_id="gc", cluster="lab")
    context: Any = {"ti": SimpleNamespace(get_task_states=states_of)}
    assert task.execute(context) == 1
    assert (
        "deletionTimestamp"
        in cluster.objects.get(("pods", ended), {"metadata": {"deletionTimestamp"}})["metadata"]
    )
    assert lives in cluster.names("pods")
    with pytest.raises(
        AirflowException, match=r"nowhere: there is no connection 'nowhere'\. What to do: `airflow"
    ):
        LLEMCollectGarbageOperator(task_id="gc", cluster="nowhere").execute(context)
    cluster.faults = [Fault("list", "configmaps", status=403)]
    with pytest.raises(AirflowException, match="lab: the API server refused: 403"):
        task.execute(context)


def test_the_maintenance_dag_has_a_task_for_each_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLEM_CLUSTERS", "lab/team, other")
    assert hosts_to_clean() == {"gc_lab.team": {"cluster": "lab/team"}, "gc_other": {"cluster": "other"}}


def test_the_page_s_commands_run_as_they_are_written(cluster: StandInCluster, asked_here: None) -> None:
    written = [line for line in PAGE.splitlines() if line.startswith("llem-airflow ")]
    assert len(written) == 6
    for line in written:
        done = CliRunner().invoke(main, shlex.split(line, comments=True)[1:])
        assert done.exit_code == ("--pull-secret" in line), f"{line}: {done.output}"


def test_what_a_person_asks_of_a_cluster_needs_what_the_page_says(
    cluster: StandInCluster, api: CoreV1Api
) -> None:
    left_by(cluster, attempt(), "Failed")
    things = cluster_gc.things_in(api, "default")
    rules: dict[str, Any] = {"alive": None, "older_than_s": 0.0, "installation": None, "running": "any"}
    cluster_gc.remove_from(api, "default", cluster_gc.leftovers_among(things, **rules))
    cluster_doctor.examine(api, "default", pull_secrets=("login",))
    blocks = [list(yaml.safe_load_all(each)) for each in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]
    objects = [each for block in blocks for each in block if isinstance(each, dict) and "rules" in each]
    assert all(wrong_in(each) == [] for each in objects if each["kind"] == "Role")
    allowed = {
        (verb, name)
        for each in objects
        for rule in each["rules"]
        for name in rule["resources"]
        for verb in rule["verbs"]
    }
    everyone = {("get", "version"), ("create", "selfsubjectaccessreviews")}
    used = {(verb, name.removesuffix(" everywhere")) for verb, name in cluster.used}
    assert used - everyone <= allowed
    assert {("list", "nodes"), ("get", "runtimeclasses")} <= used, "and each of its own rights is used"
