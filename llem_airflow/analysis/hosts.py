"""Cycles of several hosts: which conditions count on each, which kinds of GPU there are, and what is said about it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llem_airflow.analysis import formatting
from llem_airflow.analysis.blocked import by_host
from llem_airflow.analysis.cycle import Cycle
from llem_airflow.analysis.flags import FlagSummary
from llem_airflow.analysis.statistics import mean_of
from llem_airflow.analysis.verdict import THRESHOLD_RATIO
from llem_airflow.protocol.gpus import gpus_told
from llem_airflow.text.wording import counted

HOST, HARDWARE = "host", "hardware"
"""Conditions of a comparison over several hosts: that some host measured both sides, and one kind of GPU on all."""

_METRIC = "energy_per_output_token_j"
_PER_HOST = 2
"""Cycles of an experiment on a host from which on they tell how much cycles differ there."""


def gpus_text(environment: Mapping[str, Any]) -> str:
    """``2 x NVIDIA H100``, of an environment or a fingerprint; empty where there is no GPU."""
    names = Counter(str(gpu.get("name") or "GPU") for gpu in gpus_told(environment))
    return " + ".join(f"{count} x {name}" for name, count in sorted(names.items()))


def kind_of(fingerprint: Mapping[str, Any]) -> str:
    """The kind of hardware: the GPUs, or the CPU where there is none."""
    return gpus_text(fingerprint) or str(fingerprint.get("cpu") or "")


def kinds_of(fingerprints: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """The distinct kinds of hardware."""
    return tuple(sorted({kind for one in fingerprints if (kind := kind_of(one))}))


def n_text(n: int, hosts: int) -> str:
    """``6 cycles``, and on how many hosts where they are several."""
    return counted(n, "cycle") + on_hosts(hosts)


def on_hosts(hosts: int) -> str:
    """`` on 2 hosts``; empty for one."""
    return f" on {hosts} hosts" if hosts > 1 else ""


Conditions = Mapping[str, Sequence[str]]
"""Each field of the fingerprints with its distinct values, as JSON."""


def unequal_on_hosts(
    ours: Mapping[str, Conditions], theirs: Mapping[str, Conditions]
) -> dict[str, tuple[list[str], list[str]]]:
    """What differs between two sides that several hosts measured: each host's own conditions are compared there.

    A condition may differ from host to host, as the host is a block: the GPU's UUID, the driver. The kind of GPU may
    not: how an experiment compares with another depends on it.

    Args:
        ours: Conditions of the reference by host.
        theirs: Those of the candidate.
    """
    both = [host for host in ours if host in theirs]
    if not both:
        return {HOST: (_names(ours), _names(theirs))}
    found: dict[str, tuple[list[str], list[str]]] = {}
    for key in sorted({key for side in (ours, theirs) for host in both for key in side[host]}):
        values = [(list(ours[host].get(key, ())), list(theirs[host].get(key, ()))) for host in both]
        if any(one != other or len(one) > 1 for one, other in values):
            found[key] = _joined(one for one, _ in values), _joined(other for _, other in values)
    kinds = [kinds_of(_boards(side[host]) for host in both) for side in (ours, theirs)]
    if len({*kinds[0], *kinds[1]}) > 1:
        found[HARDWARE] = _names(kinds[0]), _names(kinds[1])
    return found


def _boards(conditions: Conditions) -> dict[str, Any]:
    """The fields of a fingerprint that tell its hardware."""
    return {key: json.loads(conditions[key][0]) for key in ("gpus", "cpu") if conditions.get(key)}


def _names(names: Iterable[str]) -> list[str]:
    return [json.dumps(name) for name in sorted(names)]


def _joined(values: Iterable[Sequence[str]]) -> list[str]:
    return sorted({each for one in values for each in one})


def host_flags(rows: Sequence[Cycle]) -> list[FlagSummary]:
    """What has to be known of an experiment that several hosts measured; nothing for one host.

    Args:
        rows: Its cycles with a result.
    """
    each = Counter(row.host for row in rows)
    if len(each) < 2:
        return []
    found = []
    kinds = kinds_of(row.fingerprint for row in rows)
    if len(kinds) > 1:
        found.append(
            FlagSummary(
                "mixed_hardware",
                "warning",
                f"its cycles were measured on {len(kinds)} kinds of hardware ({'; '.join(kinds)}): the mean is that of "
                "no kind, and it is not compared",
                "measure each kind in a study of its own (gpus.kind)",
            )
        )
    told = ", ".join(f"{name or 'not known'} {count}" for name, count in each.items())
    if len(rows) - len(each) < 2:
        found.append(
            FlagSummary(
                "few_cycles_on_hosts",
                "warning",
                f"{counted(len(rows), 'cycle')} on {len(each)} hosts ({told}) hardly tell how much cycles of one host "
                "differ"
                + (": the interval has the differences of hosts in it" if len(rows) == len(each) else ""),
                f"set study_execution.n_cycles to {_PER_HOST * len(each)} or more, or use fewer hosts",
            )
        )
    elif max(each.values()) - min(each.values()) > 1:
        found.append(
            FlagSummary(
                "hosts_unbalanced",
                "warning",
                f"its cycles are spread unevenly over hosts ({told}): each host weighs the same, so the interval is "
                "wider than as many cycles spread evenly would make it",
                f"make study_execution.n_cycles a multiple of {len(each)}, and clear the tasks that failed",
            )
        )
    return found + _hosts_differ(rows)


def _hosts_differ(rows: Sequence[Cycle]) -> list[FlagSummary]:
    known = ((row.host, value) for row in rows if (value := row.measures.get(_METRIC)))
    means = {host: mean_of(cell) for host, cell in by_host(known).items()}
    if len(means) < 2 or min(means.values()) <= 0.0:
        return []
    apart = max(means.values()) / min(means.values()) - 1.0
    if apart < THRESHOLD_RATIO:
        return []
    told = ", ".join(f"{host or 'not known'} {formatting.number(mean)}" for host, mean in means.items())
    return [
        FlagSummary(
            "hosts_differ",
            "info",
            f"energy per output token differs by {apart:.1%} between hosts ({told} J/token); spread and interval are "
            "within hosts, and tell nothing of another host",
            "compare experiments on the same hosts; power limits, cooling and the boards themselves make hosts differ",
        )
    ]
