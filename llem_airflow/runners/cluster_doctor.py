"""What the doctor says of a cluster: each check that fails says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kubernetes.client import AuthorizationV1Api, CoreV1Api, NodeV1Api, VersionApi
from kubernetes.client.exceptions import ApiException

from llem_airflow.runners.cluster import Cluster
from llem_airflow.runners.cluster_gc import leftovers_among, things_in
from llem_airflow.runners.cluster_gpus import NODES_HINT, look

RIGHTS = (
    *((verb, "pods") for verb in ("create", "get", "list", "watch", "patch", "delete")),
    ("get", "pods/log"),
    *((verb, "pods/exec") for verb in ("get", "create")),
    *((verb, "configmaps") for verb in ("create", "list", "deletecollection")),
    *((verb, "secrets") for verb in ("create", "deletecollection")),
    ("list", "events"),
)
"""What workers and triggerer do in the namespace: the Role of operators/KUBERNETES.md."""

OK, WARN, FAIL = "ok", "warn", "fail"
USUAL_CLASS = "nvidia"
_DAY_S = 86400.0
_PATIENCE_S = 10.0
_DRY = "llem-doctor"
Said = tuple[str, str, str, str]
"""What was looked at, ok | warn | fail, what was found, what to do."""


def examine(
    api: CoreV1Api,
    namespace: str,
    *,
    resource: str | None = None,
    runtime_class: str | None = None,
    pull_secrets: tuple[str, ...] = (),
) -> list[Said]:
    """Look at what an experiment needs of a cluster; nothing is made there.

    Args:
        api: The client.
        namespace: Where pods are to be made.
        resource: The device plugin's resource that a study asks for; None for any of NVIDIA's.
        runtime_class: The one that is named to the operator; None for none.
        pull_secrets: Names of those that are named to the operator.

    Raises:
        ApiException: The API server refuses even its version.
        HTTPError: It does not answer.
    """
    cluster = Cluster(api, namespace, _PATIENCE_S)
    version = cluster.ask(VersionApi(api.api_client).get_code)
    where = api.api_client.configuration.host
    found = [("api server", OK, f"Kubernetes {version.git_version} answers at {where}", "")]
    looks = (
        _namespace(cluster, api),
        _rights(cluster, api),
        _devices(api, namespace, resource),
        _runtime_class(cluster, api, runtime_class),
        *(_secret(cluster, api, name) for name in pull_secrets),
        _leftovers(api, namespace),
    )
    for each in looks:
        found += each
    return found


def _refused(name: str, error: ApiException, fix: str) -> Said:
    return name, WARN, f"not known: the API server answers {error.status} {error.reason}", fix


def _namespace(cluster: Cluster, api: CoreV1Api) -> Iterator[Said]:
    """By a ConfigMap that would be made."""
    made = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": _DRY}}
    try:
        cluster.ask(api.create_namespaced_config_map, cluster.namespace, made, dry_run="All")
    except ApiException as error:
        name = cluster.namespace
        if error.status == 404:
            fix = f"`kubectl create namespace {name}`, or name another one: the operator's `namespace`, `--cluster`"
            yield "namespace", FAIL, f"there is no namespace {name}", fix
        elif error.status != 403:  # the line about permissions says so
            yield _refused("namespace", error, "look at the API server's log")


def _rights(cluster: Cluster, api: CoreV1Api) -> Iterator[Said]:
    review = AuthorizationV1Api(api.api_client)
    missing = []
    for verb, name in RIGHTS:
        kind, _, below = name.partition("/")
        attributes = {"namespace": cluster.namespace, "verb": verb, "resource": kind}
        asked: dict[str, Any] = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {**attributes, **({"subresource": below} if below else {})}},
        }
        try:
            said = cluster.ask(review.create_self_subject_access_review, asked)
        except ApiException as error:
            yield _refused("permissions", error, "the account must be allowed to ask what it may do")
            return
        if not said.status.allowed:
            missing.append(f"{verb} {name}")
    if missing:
        fix = "bind the connection's account to the Role of operators/KUBERNETES.md: `kubectl apply -f role.yaml`"
        yield "permissions", FAIL, f"in {cluster.namespace} it may not {', '.join(missing)}", fix
    else:
        yield "permissions", OK, f"all that an experiment needs in {cluster.namespace}", ""


def _devices(api: CoreV1Api, namespace: str, resource: str | None) -> Iterator[Said]:
    try:
        seen = look(api, namespace)
    except ApiException as error:
        yield _refused("gpu", error, NODES_HINT)
        return
    if any(text.startswith("nodes") for text in seen["not_seen"]):
        yield "gpu", WARN, "not known: the nodes cannot be seen", NODES_HINT
        return
    wanted = resource or "nvidia.com/..."
    on = [
        (node, each)
        for node in seen["nodes"]
        for each in node["resources"]
        if resource in (None, each["resource"])
    ]
    usable = [(node, each) for node, each in on if each["allocatable"] and not node["state"]]
    if usable:
        text = "; ".join(
            f"{node['node']}: {each['allocatable']} {each['resource']}"
            + f" ({node['product']})" * bool(node["product"])
            for node, each in usable
        )
        yield "gpu", OK, text, ""
    elif on:
        names = ", ".join(sorted({node["node"] for node, _ in on}))
        fix = "`kubectl describe node` says why: cordoned, not ready, or devices that the plugin found unhealthy"
        yield "gpu", FAIL, f"nodes have {wanted}, and none can be had: {names}", fix
    else:
        others = sorted({each["resource"] for node in seen["nodes"] for each in node["resources"]})
        text = f"no node has {wanted}" + f"; there is {', '.join(others)}" * bool(others)
        fix = (
            "install NVIDIA's device plugin or GPU operator on the nodes"
            if not others
            else "name one of these to the operator: `gpu_resource`"
        )
        yield "gpu", FAIL, text, fix


def _runtime_class(cluster: Cluster, api: CoreV1Api, named: str | None) -> Iterator[Said]:
    name = named or USUAL_CLASS
    try:
        handler = cluster.ask(NodeV1Api(api.api_client).read_runtime_class, name).handler
    except ApiException as error:
        if error.status != 404:
            yield _refused("runtime class", error, f"{NODES_HINT}, or ask: `kubectl get runtimeclass {name}`")
        elif named:
            fix = "correct `runtime_class_name`, or install what brings it: NVIDIA's GPU operator makes `nvidia`"
            yield "runtime class", FAIL, f"there is no {name}", fix
        else:
            fix = "right where NVIDIA's runtime is the nodes' default: leave `runtime_class_name` out"
            yield "runtime class", WARN, f"there is no {name}", fix
    else:
        yield "runtime class", OK, f"{name} (handler {handler})", ""


def _secret(cluster: Cluster, api: CoreV1Api, name: str) -> Iterator[Said]:
    """By one of that name that would be made: to read it would need a right that a worker had better not have."""
    made = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}}
    try:
        cluster.ask(api.create_namespaced_secret, cluster.namespace, made, dry_run="All")
    except ApiException as error:
        if error.status == 409:
            yield "image pull secret", OK, f"{name} is there", ""
        elif error.status not in (403, 404):
            yield _refused("image pull secret", error, f"`kubectl get secret {name} -n {cluster.namespace}`")
        return
    fix = f"`kubectl create secret docker-registry {name} -n {cluster.namespace} --docker-server=...`"
    yield "image pull secret", FAIL, f"there is no {name} in {cluster.namespace}", fix


def _leftovers(api: CoreV1Api, namespace: str) -> Iterator[Said]:
    try:
        things = things_in(api, namespace)
    except ApiException:  # the line about permissions says so
        return
    left = leftovers_among(things, alive=None, older_than_s=_DAY_S, installation=None, running="never")
    if left:
        yield "leftovers", WARN, f"{len(left)} of ours are older than a day", "`llem-airflow gc --yes`"
    else:
        yield "leftovers", OK, "none older than a day", ""
