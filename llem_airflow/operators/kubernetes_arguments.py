"""KubernetesPodOperator's arguments: what the experiment operator makes of each, and why it refuses some.

One table serves the check at DAG parse time, the page and the tests, as for DockerOperator (``arguments``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator

from llem_airflow.operators.arguments import ARGUMENTS as OF_CONTAINERS
from llem_airflow.operators.arguments import (
    Honoured,
    Refused,
    defaults_of,
    our_labels,
    refusals,
    refuse,
    with_default_args,
)

_POD = "as in KubernetesPodOperator"
_OWN_LOG = "the log is read whole, with its times, and stored beside the result"
_OWN_WAIT = "the pod is watched"
_OWN_END = (
    "an attempt is taken over by the next try, or removed in every end, or its result could be measured twice"
)

ARGUMENTS: dict[str, Honoured | Refused] = {
    "kubernetes_conn_id": Honoured("connection of type `kubernetes`; templated"),
    "namespace": Honoured("where pod, ConfigMaps and Secret are made; templated"),
    "image": Honoured(
        "image that holds the engine and `python3`; left out, the study, the host or the default name one",
    ),
    "name": Refused(
        "the name says whose the pod is, so that a later try finds it",
        "find it by its labels: `kubectl get pods -l llem.dag_id=<dag>`",
    ),
    "random_name_suffix": Refused("likewise", "leave it out: no two attempts have one name"),
    "cmds": Honoured("what starts the bundle, whose path follows; left out: the engine's, `python3`; templated"),
    "arguments": Refused(
        "the bundle that measures is the argument",
        "what the engine is told belongs into the study",
    ),
    "ports": Refused("an experiment serves nothing to the outside", "`hostnetwork`, to reach a network of the node"),
    "volume_mounts": Honoured("besides those of model, cache and exchange; templated"),
    "volumes": Honoured("likewise"),
    "env_vars": Honoured("variables; templated; go before those of the study's model and caches"),
    "env_from": Honoured(_POD),
    "secrets": Honoured(_POD),
    "in_cluster": Honoured("whether the worker itself runs in the cluster"),
    "cluster_context": Honoured(_POD),
    "reattach_on_restart": Refused(_OWN_END, "leave it out"),
    "durable": Refused(_OWN_END, "leave it out"),
    "labels": Honoured("besides ours; `llem.` is ours; templated"),
    "startup_timeout_seconds": Honoured("from the node to the attempt's start, pulling included; left out: 1800"),
    "startup_check_interval_seconds": Refused(_OWN_WAIT, "leave it out"),
    "schedule_timeout_seconds": Refused("it is the wait for GPUs", "`gpu_wait_s`"),
    "get_logs": Refused(_OWN_LOG, "leave it out"),
    "init_container_logs": Refused(
        "what a failed one says of its end is in the error",
        "`kubectl logs -c`, while the pod is there",
    ),
    "container_logs": Refused(_OWN_LOG, "leave it out"),
    "image_pull_policy": Honoured("of all containers of ours"),
    "annotations": Honoured("besides ours; templated"),
    "container_resources": Honoured(
        "CPU, memory and disk of the attempt's container; GPUs are asked for by `gpus` of the study",
    ),
    "affinity": Honoured(_POD),
    "config_file": Honoured(_POD),
    "runtime_class_name": Honoured("such as `nvidia`, where it is not the nodes' default"),
    "node_selector": Honoured("such as `nvidia.com/gpu.product`; templated"),
    "image_pull_secrets": Honoured(_POD),
    "service_account_name": Honoured("of the pod, which needs no rights"),
    "automount_service_account_token": Honoured("left out: no"),
    "hostnetwork": Honoured(_POD),
    "host_aliases": Honoured(_POD),
    "tolerations": Honoured(_POD),
    "security_context": Honoured("of the pod; left out: user and group 65532, seccomp `RuntimeDefault`"),
    "container_security_context": Honoured("of all containers of ours; left out: no capability, read-only root"),
    "xcom_sidecar_container_security_context": Refused("there is no XCom sidecar", "`container_security_context`"),
    "dnspolicy": Honoured(_POD),
    "dns_config": Honoured(_POD),
    "hostname": Honoured(_POD),
    "subdomain": Honoured(_POD),
    "schedulername": Honoured(_POD),
    "full_pod_spec": Honoured("the pod that ours begins as; the other arguments go before it"),
    "init_containers": Honoured("run after the one that hands bundle and spec in"),
    "log_events_on_failure": Refused("warnings about a pod that does not start are in the error", "leave it out"),
    "log_events_on_startup": Refused(
        "what the scheduler says is in the log; it takes no list of a namespace's events",
        "leave it out",
    ),
    "do_xcom_push": Honoured("whether the task's XCom names the result; there is no sidecar for it; left out: yes"),
    "pod_template_file": Honoured("as `full_pod_spec`"),
    "pod_template_dict": Honoured("as `full_pod_spec`"),
    "priority_class_name": Honoured(_POD),
    "pod_runtime_info_envs": Honoured(_POD),
    "termination_grace_period": Honoured("between SIGTERM and SIGKILL, in seconds; left out: 10"),
    "configmaps": Honoured(_POD),
    "skip_on_exit_code": Refused(
        "a valid result counts, whatever the exit code; without one the attempt has failed",
        "leave experiments out in the study or the trigger form",
    ),
    "deferrable": Honoured(
        "whether gates, thermal gaps, and the waits for a node and an image are the triggerer's",
    ),
    "poll_interval": Refused(_OWN_WAIT, "leave it out"),
    "log_pod_spec_on_failure": Refused(
        "a failed attempt's pod is in its evidence, without secrets",
        "read inspect.json there",
    ),
    "on_finish_action": Refused(_OWN_END, "leave it out; log and files of a failed attempt are in its evidence"),
    "on_kill_action": Refused(_OWN_END, "leave it out"),
    "is_delete_operator_pod": Refused("KubernetesPodOperator itself ignores it", "leave it out"),
    "termination_message_policy": Honoured(_POD),
    "active_deadline_seconds": Honoured(
        "the cluster's own limit, which takes the result with it; the study's wall clock limit does not",
    ),
    "callbacks": Refused(
        "they are called at steps that are not made here",
        "a cluster policy's `pod_mutation_hook` may change the pod",
    ),
    "progress_callback": Refused(_OWN_LOG, "leave it out"),
    "logging_interval": Refused(_OWN_LOG, "leave it out"),
    "trigger_kwargs": Refused("its trigger is not used", "leave it out"),
    "container_name_log_prefix_enabled": Refused(_OWN_LOG, "leave it out"),
    "log_formatter": Refused(_OWN_LOG, "leave it out"),
    "base_container_name": Honoured("name of the attempt's container; left out: `base`; templated"),
    "base_container_status_polling_interval": Refused(_OWN_WAIT, "leave it out"),
}  # fmt: skip
"""Every argument of KubernetesPodOperator."""

_DEFAULTS = defaults_of(KubernetesPodOperator, ARGUMENTS)
"""A refused argument may be given with the value that it has anyway."""


def given(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of an operator, those of KubernetesPodOperator that only ``default_args`` names included.

    Raises:
        ArgumentError: Some cannot be given; the text names all of them.
    """
    found = with_default_args(ARGUMENTS, arguments)
    check(found)
    return found


def check(arguments: Mapping[str, Any]) -> None:
    """Refuse what would be ignored, and what only a Docker engine knows.

    Raises:
        ArgumentError: The text names all that is wrong.
    """
    wrong = refusals(ARGUMENTS, arguments, _DEFAULTS)
    wrong += [
        f"{name} is an argument of containers on a Docker engine. Instead: what a pod has for it "
        "(operators/KUBERNETES.md)"
        for name in arguments
        if name in OF_CONTAINERS and name not in ARGUMENTS
    ]
    wrong += our_labels(arguments)
    wrong += [
        f"container_resources: {name!r} is asked for by `gpus` of the study and the operator's `gpu_resource`"
        for name in devices_in(arguments.get("container_resources"), arguments.get("gpu_resource"))
    ]
    refuse(wrong)


def devices_in(resources: Any, gpu_resource: str | None) -> list[str]:
    """Names of GPUs among some resources."""
    if resources is None:
        return []
    read: Mapping[str, Any] = resources if isinstance(resources, dict) else vars(resources)
    said = {name for part in ("limits", "requests") for name in read.get(part, read.get(f"_{part}")) or ()}
    return sorted(name for name in said if name.startswith("nvidia.com/") or name == gpu_resource)


def table() -> str:
    """The table of the page."""
    rows = ["| argument | what becomes of it |", "|---|---|"]
    for name, entry in ARGUMENTS.items():
        said = (
            entry.text
            if isinstance(entry, Honoured)
            else f"**refused**: {entry.why}. Instead: {entry.instead}"
        )
        rows.append(f"| `{name}` | {said} |")
    return "\n".join(rows)


if __name__ == "__main__":  # what the page holds between its markers
    print(table())  # noqa: T201  # for the person who changes the table
