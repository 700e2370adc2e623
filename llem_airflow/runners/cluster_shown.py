"""What ``llem-airflow gpus`` prints of a cluster: each node's devices, the pods that ask for them, and who waits."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from llem_airflow.text.terminal import Folding, Rows, show
from llem_airflow.text.wording import counted, span

_HEADS = ("Node", "Device", "Requested by", "Since")


def print_cluster(target: Any, cluster: Mapping[str, Any]) -> None:
    """Print a cluster.

    Args:
        target: The console.
        cluster: What ``cluster_gpus.look`` has found, with the ``name`` of the cluster, or an ``error``.
    """
    if "error" in cluster:
        text = f"{cluster['name']}: {cluster['error']}. What to do: {cluster['fix']}"
        show(target, Folding(text, "bold red", indent=2))
        return
    show(target, Folding(f"{cluster['name']}: {_headline(cluster)}", "bold", indent=2))
    now_s = time.time_ns() / 1e9
    rows = [row for node in cluster["nodes"] for row in _rows(node, now_s)]
    rows += [(("?", _asks(each), _who(each), _since(each, now_s)), "yellow") for each in cluster["elsewhere"]]
    if rows:
        cells, styles = zip(*rows, strict=True)
        show(target, Rows(_HEADS, cells, styles=styles))
    for text in cluster["not_seen"]:
        show(target, Folding(f"Not seen: {text}", "yellow", indent=2))
    if cluster["waiting"]:
        show(target, Folding("Waiting, the oldest first:", "bold"))
    for place, each in enumerate(cluster["waiting"], start=1):
        why = f": {each['why']}" if each["why"] else ""
        text = f"{place:>2}. {_who(each)}: asks for {_asks(each)}, for {_since(each, now_s)}{why}"
        show(target, Folding(text, indent=4))


def _headline(cluster: Mapping[str, Any]) -> str:
    total: dict[str, list[int]] = {}
    for each in (each for node in cluster["nodes"] for each in node["resources"]):
        sums = total.setdefault(each["resource"], [0, 0])
        sums[0] += each["requested"]
        sums[1] += each["allocatable"]
    told = [f"{held} of {there} {name} requested" for name, (held, there) in sorted(total.items())]
    waiting = counted(len(cluster["waiting"]), "pod") if cluster["waiting"] else "nobody"
    return f"{', '.join(told) or 'no node with GPUs is seen'}; {waiting} waiting"


def _rows(node: Mapping[str, Any], now_s: float) -> list[tuple[tuple[str, ...], str]]:
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
            who = f"{pod['asks'][each['resource']]}: {_who(pod)}"
            found.append((("", "", who, _since(pod, now_s)), "cyan" if pod["what"] else "yellow"))
    return found


def _who(pod: Mapping[str, Any]) -> str:
    where = f"{pod['namespace']}/{pod['pod']}"
    return f"{pod['what']} ({where})" if pod["what"] else f"pod {where}"


def _asks(pod: Mapping[str, Any]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(pod["asks"].items()))


def _since(pod: Mapping[str, Any], now_s: float) -> str:
    return span(now_s - pod["since_epoch_s"])
