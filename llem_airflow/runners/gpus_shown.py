"""Who holds the GPUs of a host, since when, and who waits for them: what ``llem-airflow gpus`` shows."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import docker

from llem_airflow.runners.airflow_asked import asking
from llem_airflow.runners.claims import (
    LABEL_CANDIDATES,
    LABEL_COUNT,
    engine_now_epoch_s,
    held_tickets,
    since_epoch_s,
)
from llem_airflow.runners.doctor import python_images
from llem_airflow.runners.engine import ENGINE_ERRORS, is_installed_here, why_away
from llem_airflow.runners.failures import classify
from llem_airflow.runners.gpus import GpuLookError, Inventory, inventory, local_inventory, on_this_machine
from llem_airflow.runners.holders import LABEL_EXCLUSIVE, LABEL_QUOTA, LABEL_TICKET, Holder, gpu_processes
from llem_airflow.runners.hosts import Host, answers_of, targets
from llem_airflow.runners.images import digest
from llem_airflow.runners.leases import everyone, held_by_ours
from llem_airflow.text.terminal import Folding, Rows, console, show
from llem_airflow.text.wording import counted, span


@dataclass(frozen=True, slots=True)
class Waiter:
    """A task that waits for GPUs.

    Attributes:
        what: Experiment, cycle, DAG and run.
        count: How many GPUs it wants; 0 with ``exclusive_host`` for the host alone.
        candidates: Which can serve.
        exclusive_host: Whether it wants the host for itself.
        since_epoch_s: When its claim began.
    """

    what: str
    count: int
    candidates: tuple[str, ...]
    exclusive_host: bool
    since_epoch_s: float


@dataclass(frozen=True, slots=True)
class HostGpus:
    """A host's GPUs.

    Attributes:
        host: Its name.
        known: Its GPUs.
        held: Who holds them.
        waiting: Who waits, the first first.
        ours: GPUs that experiments hold together.
        quota: The smallest quota that a claim named, or None where none did.
        now_epoch_s: The host's time.
        unseen: What cannot be seen from here, for people; empty for nothing.
    """

    host: str
    known: Inventory
    held: tuple[Holder, ...]
    waiting: tuple[Waiter, ...]
    ours: int
    quota: int | None
    now_epoch_s: float
    unseen: str

    def holders_of(self, gpu: str) -> list[Holder]:
        """Who holds a GPU or slice itself; a whole GPU in slices is held through them."""
        return [
            each
            for each in self.held
            if any(self.known.find(one) == self.known.find(gpu) for one in each.gpus)
        ]

    def holders_above(self, gpu: str) -> list[Holder]:
        """Who holds the whole GPU that a slice is of."""
        found = self.known.find(gpu)
        return self.holders_of(found.parent) if found is not None and found.parent else []

    def nameless(self) -> list[Holder]:
        """Holders of what is not among the known GPUs: those of a host whose driver could not be asked, or the host."""
        return [
            each
            for each in self.held
            if each.exclusive_host or any(self.known.find(gpu) is None for gpu in each.gpus)
        ]


def look(api: docker.APIClient | None, images: Sequence[str] = ()) -> HostGpus:
    """Look at a host.

    Args:
        api: Its engine; None for this machine without one.
        images: Images with Python from whose containers a driver on another machine may be asked.

    Raises:
        docker.errors.DockerException: The engine refused.
        requests.exceptions.RequestException: It does not answer.
    """
    if api is None:
        known = local_inventory() or Inventory(absent="this machine shows no NVIDIA driver")
        name, now_s, unseen, tickets = os.uname().nodename, time.time_ns() / 1e9, "", {}
    else:
        image = next((name for name in images if digest(api, name) is not None), "")
        known = _known(api, image)
        name, now_s = str(api.info().get("Name")), engine_now_epoch_s(api)
        away = "processes without a container cannot be seen: the engine is on another machine"
        unseen = "" if on_this_machine(api) else away
        tickets = {labels[LABEL_TICKET]: labels for labels in held_tickets(api, now_s)}
    held = everyone(api, known)
    held += gpu_processes(api, known, held)
    served = {holder.ticket for holder in held}
    waiting = [_waiter(tickets[number]) for number in sorted(tickets) if number not in served]
    quotas = [int(quota) for labels in tickets.values() if (quota := labels.get(LABEL_QUOTA))]
    quotas += [holder.quota for holder in held if holder.quota is not None]
    return HostGpus(
        host=name,
        known=known,
        held=tuple(held),
        waiting=tuple(waiting),
        ours=held_by_ours(held),
        quota=min(quotas, default=None),
        now_epoch_s=now_s,
        unseen=unseen,
    )


def _known(api: docker.APIClient, image: str) -> Inventory:
    """The host's GPUs; where nobody can tell, why."""
    try:
        if image:
            return inventory(api, image)
        found = local_inventory() if on_this_machine(api) else None
    except GpuLookError as error:
        return Inventory(absent=str(error))
    return found or Inventory(
        absent="the engine has no image of ours to ask the driver from: `llem-airflow doctor`"
    )


_TOLD = ("kind", "name", "what", "owner", "gpus", "since_epoch_s", "exclusive_host")


def _told(holder: Holder) -> dict[str, Any]:
    return {name: getattr(holder, name) for name in _TOLD}


def _waiter(labels: Mapping[str, str]) -> Waiter:
    said = {name: labels.get(f"llem.{name}", "?") for name in ("experiment", "cycle", "dag_id", "run_id")}
    return Waiter(
        what="{experiment} cycle {cycle} of DAG {dag_id}, run {run_id}".format(**said),
        count=int(labels.get(LABEL_COUNT) or 0),
        candidates=tuple(gpu for gpu in labels.get(LABEL_CANDIDATES, "").split(",") if gpu),
        exclusive_host=labels.get(LABEL_EXCLUSIVE) == "host",
        since_epoch_s=since_epoch_s(labels[LABEL_TICKET]),
    )


def to_json(host: HostGpus) -> dict[str, Any]:
    """A host in a stable format: its devices with their holders, then who waits."""
    return {
        "host": host.host,
        "driver": host.known.driver,
        "gpus": [
            {
                "id": gpu.id,
                "index": gpu.index,
                "name": gpu.name,
                "slice_of": gpu.parent,
                "held_by": [_told(each) for each in host.holders_of(gpu.id)],
            }
            for gpu in host.known.gpus
        ],
        "other_holders": [_told(each) for each in host.nameless()],
        "held_by_experiments": host.ours,
        "quota": host.quota,
        "waiting": [asdict(each) for each in host.waiting],
        "now_epoch_s": host.now_epoch_s,
        "not_seen": [text for text in (host.known.absent, host.unseen) if text],
    }


_LOOK_EVERY_S = 2.0
_STYLES = {"free": "green", "task": "cyan", "container": "yellow", "process": "yellow", "split": "dim"}


def show_hosts(hosts: Sequence[str], clusters: Sequence[str] = (), *, watch: bool, as_json: bool) -> int:
    """Show the GPUs of some hosts and clusters, once or again and again; the exit code.

    Args:
        hosts: Ids of connections or addresses.
        clusters: Names of clusters. Without both, every host and cluster that Airflow knows, else the host that
            DOCKER_HOST names, else this machine.
        watch: Whether to look again until Ctrl-C.
        as_json: One JSON document, or with ``watch`` one line for each look.

    Raises:
        ValueError: A host has a port that cannot be.
    """
    named, names = targets(hosts, clusters)
    with asking("known_clusters") if watch else nullcontext() as asks:
        while True:
            seen = [_seen(host) for host in named]
            on_clusters = answers_of(names, "gpus", asks)
            _show(seen, on_clusters, watch=watch, as_json=as_json)
            if not watch:
                failed = any(isinstance(one, tuple) for one in seen)
                return 2 if failed or any("error" in one for one in on_clusters) else 0
            time.sleep(_LOOK_EVERY_S)


def _show(
    seen: Sequence[HostGpus | tuple[str, str]],
    on_clusters: Sequence[Mapping[str, Any]],
    *,
    watch: bool,
    as_json: bool,
) -> None:
    """Print what one look has shown."""
    if as_json:
        found = [
            {"host": one[0], "error": one[1]} if isinstance(one, tuple) else to_json(one) for one in seen
        ]
        found += [{"cluster": one["name"], **one} for one in on_clusters]
        sys.stdout.write(json.dumps(found, indent=None if watch else 1) + "\n")
    else:
        _print(seen, on_clusters, clear=watch)
    sys.stdout.flush()


def _seen(host: Host) -> HostGpus | tuple[str, str]:
    """A host's GPUs; or its engine and why that does not answer."""
    if host.problem:
        return host.name, host.problem
    if not host.address.urls and not os.environ.get("DOCKER_HOST") and not is_installed_here():
        return _called(host, look(None))
    where = next(iter(host.address.urls), None) or os.environ.get("DOCKER_HOST") or "this machine"
    try:
        with host.address.connect(20) as api:
            return _called(host, look(api, python_images(os.environ)))
    except ENGINE_ERRORS as error:
        hint = classify(None, "", error=error).hint
        name = host.name if host.name and host.name != where else where
        return name, f"the Docker engine does not answer: {why_away(error)}. What to do: {hint}"


def _called(host: Host, seen: HostGpus) -> HostGpus:
    """With the name of the connection before the machine's own."""
    known = host.name and not any(host.name in url for url in host.address.urls)
    return replace(seen, host=f"{host.name} ({seen.host})") if known else seen


def _print(
    seen: Sequence[HostGpus | tuple[str, str]], clusters: Sequence[Mapping[str, Any]], *, clear: bool
) -> None:
    target = console()
    if clear and target.is_terminal:
        target.clear()
    for number, one in enumerate((*seen, *clusters)):
        if number:
            show(target, "")
        if isinstance(one, tuple):
            show(target, Folding(f"{one[0]}: {one[1]}", "bold red", indent=2))
        elif isinstance(one, HostGpus):
            _print_host(target, one)
        else:
            _print_cluster(target, one)


def _print_host(target: Any, host: HostGpus) -> None:
    show(target, Folding(_headline(host), "bold", indent=2))
    rows = list(_rows(host))
    if rows:
        cells, styles = zip(*rows, strict=True)
        show(target, Rows(("GPU", "Device", "Held by", "Since"), cells, styles=styles))
    for text in (host.known.absent, host.unseen):
        if text:
            show(target, Folding(f"Not seen: {text}", "yellow", indent=2))
    if host.waiting:
        show(target, Folding("Waiting, the first first:", "bold"))
    for place, waiter in enumerate(host.waiting, start=1):
        wants = "the host alone" if waiter.exclusive_host else f"{waiter.count} GPU(s)"
        since = span(host.now_epoch_s - waiter.since_epoch_s)
        show(target, Folding(f"{place:>2}. {waiter.what}: wants {wants}, for {since}", indent=4))


def _headline(host: HostGpus) -> str:
    devices = [gpu.id for gpu in host.known.gpus if gpu.id not in {each.parent for each in host.known.gpus}]
    held = sum(bool(host.holders_of(gpu) or host.holders_above(gpu)) for gpu in devices)
    quota = f" of the quota of {host.quota}" if host.quota is not None else ""
    driver = f", driver {host.known.driver}" if host.known.driver else ""
    return (
        f"{host.host}{driver}: {held} of {counted(len(devices), 'GPU')} held, {host.ours} by experiments{quota}; "
        f"{len(host.waiting) or 'nobody'} waiting"
    )


def _rows(host: HostGpus) -> list[tuple[tuple[str, ...], str]]:
    """Cells and style of each device and of whatever else holds something."""
    found: list[tuple[tuple[str, ...], str]] = []
    split = {gpu.parent for gpu in host.known.gpus}
    for gpu in host.known.gpus:
        holders = host.holders_of(gpu.id)
        name = gpu.name or gpu.id
        if not holders:
            above = gpu.parent is not None and host.holders_above(gpu.id)
            word = "split" if gpu.id in split or above else "free"
            text = "in slices" if gpu.id in split else "with its whole GPU" if above else "free"
            found.append(((gpu.index, name, text, ""), _STYLES[word]))
        found += [((gpu.index, name, _who(each), _since(host, each)), _STYLES[each.kind]) for each in holders]
    for each in host.nameless():
        device = "the host alone" if each.exclusive_host else ", ".join(each.gpus)
        found.append((("?", device, _who(each), _since(host, each)), _STYLES[each.kind]))
    return found


def _who(held: Holder) -> str:
    owner = f", {held.owner}" if held.owner else ""
    return {
        "task": f"{held.what} ({held.name}{owner})",
        "container": f"container {held.name} ({held.what}{owner})",
        "process": f"{held.name}{owner}",
    }[held.kind]


def _since(host: HostGpus, held: Holder) -> str:
    return "" if held.since_epoch_s is None else span(host.now_epoch_s - held.since_epoch_s)


_CLUSTER_HEADS = ("Node", "Device", "Requested by", "Since")


def _print_cluster(target: Any, cluster: Mapping[str, Any]) -> None:
    """Print what ``cluster_gpus.look`` has found, with the ``name`` of the cluster, or an ``error``."""
    if "error" in cluster:
        text = f"{cluster['name']}: {cluster['error']}. What to do: {cluster['fix']}"
        show(target, Folding(text, "bold red", indent=2))
        return
    show(target, Folding(f"{cluster['name']}: {_cluster_headline(cluster)}", "bold", indent=2))
    now_s = time.time_ns() / 1e9
    rows = [row for node in cluster["nodes"] for row in _node_rows(node, now_s)]
    rows += [
        (("?", _asks(each), _pod(each), _pod_since(each, now_s)), "yellow") for each in cluster["elsewhere"]
    ]
    if rows:
        cells, styles = zip(*rows, strict=True)
        show(target, Rows(_CLUSTER_HEADS, cells, styles=styles))
    for text in cluster["not_seen"]:
        show(target, Folding(f"Not seen: {text}", "yellow", indent=2))
    if cluster["waiting"]:
        show(target, Folding("Waiting, the oldest first:", "bold"))
    for place, each in enumerate(cluster["waiting"], start=1):
        why = f": {each['why']}" if each["why"] else ""
        text = f"{place:>2}. {_pod(each)}: asks for {_asks(each)}, for {_pod_since(each, now_s)}{why}"
        show(target, Folding(text, indent=4))


def _cluster_headline(cluster: Mapping[str, Any]) -> str:
    total: dict[str, list[int]] = {}
    for each in (each for node in cluster["nodes"] for each in node["resources"]):
        sums = total.setdefault(each["resource"], [0, 0])
        sums[0] += each["requested"]
        sums[1] += each["allocatable"]
    told = [f"{held} of {there} {name} requested" for name, (held, there) in sorted(total.items())]
    waiting = counted(len(cluster["waiting"]), "pod") if cluster["waiting"] else "nobody"
    return f"{', '.join(told) or 'no node with GPUs is seen'}; {waiting} waiting"


def _node_rows(node: Mapping[str, Any], now_s: float) -> list[tuple[tuple[str, ...], str]]:
    found: list[tuple[tuple[str, ...], str]] = []
    name = f"{node['node']} ({node['state']})" if node["state"] else node["node"]
    for each in node["resources"]:
        lost = each["capacity"] - each["allocatable"]
        device = f"{each['allocatable']} {each['resource']}" + f", {node['product']}" * bool(node["product"])
        device += f" ({lost} more unhealthy or reserved)" if lost else ""
        free = each["allocatable"] - each["requested"]
        style = "dim" if node["state"] else "green" if free > 0 else ""
        found.append(((name, device, f"{max(0, free)} free", ""), style))
        for pod in each["requested_by"]:
            who = f"{pod['asks'][each['resource']]}: {_pod(pod)}"
            found.append((("", "", who, _pod_since(pod, now_s)), "cyan" if pod["what"] else "yellow"))
    return found


def _pod(pod: Mapping[str, Any]) -> str:
    where = f"{pod['namespace']}/{pod['pod']}"
    return f"{pod['what']} ({where})" if pod["what"] else f"pod {where}"


def _asks(pod: Mapping[str, Any]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(pod["asks"].items()))


def _pod_since(pod: Mapping[str, Any], now_s: float) -> str:
    return span(now_s - pod["since_epoch_s"])
