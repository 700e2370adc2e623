"""The hosts and clusters that a command is about, and what clusters answer.

Hosts are those that are named, else each connection of type ``llem`` that Airflow knows. Clusters are asked through
Airflow, whose connections lead to them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from llem_airflow.runners.airflow_asked import NoAnswerError, ask, is_airflow_here
from llem_airflow.runners.engine import EngineAddress, engine_url, is_installed_here

_NO_AIRFLOW = (
    "no Airflow is set up here, whose connections lead to clusters",
    "run it where Airflow is, or name its folder: AIRFLOW_HOME",
)
_EXTRA = "`pip install 'llem-airflow[kubernetes]'`"
_NO_EXTRA = (
    "the extra `kubernetes` of llem-airflow is not installed here, by which clusters are asked",
    f"{_EXTRA} into {sys.prefix}",
)
_LOOK_S = 120.0
_RECOVERY_S = 3600.0
"""What it brings out may be gigabytes."""


@dataclass(frozen=True, slots=True)
class Host:
    """A host with a Docker engine.

    Attributes:
        name: As people call it: the id of its connection, or its address; empty for the one that nobody names, which is
            DOCKER_HOST's, else this machine's.
        address: Where its engine is.
        problem: Why it cannot be asked; empty when it can.
        queue: Airflow queue of its workers, or None.
        pool: Airflow pool of its cycles, or None.
        gpu_kinds: The kinds of GPU that it is said to have.
        waits_s: How long the oldest task waits in its queue, in seconds; None when none does or nobody knows.
        running: How many tasks of that queue run.
        no_pool: Whether Airflow has no pool of that name.
    """

    name: str = ""
    address: EngineAddress = field(default_factory=EngineAddress)
    problem: str = ""
    queue: str | None = None
    pool: str | None = None
    gpu_kinds: tuple[str, ...] = ()
    waits_s: float | None = None
    running: int = 0
    no_pool: bool = False

    @property
    def prefix(self) -> str:
        """What a line about it begins with."""
        return f"{self.name}: " if self.name else ""


HERE = Host()
"""The one that nobody names."""


def hosts_of(names: Sequence[str]) -> list[Host]:
    """The hosts of these names; without names all that Airflow knows, else the one of ``DOCKER_HOST``.

    Args:
        names: Ids of connections, or addresses of engines: a URL, a socket, a machine with or without a port.

    Raises:
        ValueError: An address has a port that cannot be.
    """
    ids = [name for name in names if "/" not in name and ":" not in name]
    return _hosts(names, _ask_airflow(ids) if ids or not names else {})


def targets(hosts: Sequence[str], clusters: Sequence[str]) -> tuple[list[Host], list[str]]:
    """The hosts and clusters that a command is about; without names all that Airflow knows.

    Args:
        hosts: As of :func:`hosts_of`.
        clusters: ``CONNECTION`` or ``CONNECTION/NAMESPACE``.

    Raises:
        ValueError: An address has a port that cannot be.
    """
    if hosts or clusters:
        return (hosts_of(hosts) if hosts else []), list(clusters)
    said = _ask_airflow([])
    found, known = _hosts([], said), list(said.get("clusters") or [])
    nobodys = found == [HERE] and not os.environ.get("DOCKER_HOST") and not is_installed_here()
    return ([] if known and nobodys else found), known


def _hosts(names: Sequence[str], said: Mapping[str, Any]) -> list[Host]:
    known = {each["name"]: _host(each, said) for each in said.get("hosts", ()) if not each.get("missing")}
    if not names:
        return list(known.values()) or [HERE]
    return [known.get(name) or Host(name, EngineAddress((str(engine_url(name)),))) for name in names]


def _host(told: Mapping[str, Any], said: Mapping[str, Any]) -> Host:
    if "problem" in told:
        return Host(told["name"], problem=told["problem"])
    queue = said["queues"].get(told["queue"]) or {}
    return Host(
        told["name"],
        EngineAddress.from_json(told["engine"]),
        queue=told["queue"],
        pool=told["pool"],
        gpu_kinds=tuple(told["gpu_kinds"]),
        waits_s=queue.get("waits_s"),
        running=queue.get("running") or 0,
        no_pool=bool(told["pool"]) and said["pools"] is not None and told["pool"] not in said["pools"],
    )


def _ask_airflow(names: Sequence[str]) -> dict[str, Any]:
    """What the Airflow that is set up here knows of hosts; nothing where there is none."""
    if not is_airflow_here():
        return {}
    try:
        said: dict[str, Any] = ask("known_hosts", list(names))
    except NoAnswerError as error:
        sys.stderr.write(f"Airflow cannot be asked for its hosts ({error}).\n")
        return {}
    return said


def answers_of(
    clusters: Sequence[str], do: str, asks: Callable[..., Any] | None = None, **options: Any
) -> list[dict[str, Any]]:
    """What each cluster answers: with ``error`` and ``fix`` where it does not.

    Args:
        clusters: ``CONNECTION`` or ``CONNECTION/NAMESPACE``.
        do: ``doctor``, ``gc``, ``gpus`` or ``recover``.
        asks: What asks, of ``airflow_asked.asking``; None for a process of this question's own.
        options: Of the question.
    """
    if not clusters:
        return []
    error, fix = _NO_EXTRA if is_airflow_here() else _NO_AIRFLOW
    if is_airflow_here() and find_spec("kubernetes") is not None:
        try:
            said: list[dict[str, Any]] = (asks or ask)(
                "known_clusters",
                {"clusters": list(clusters), "do": do, **options},
                timeout_s=_RECOVERY_S if do == "recover" else _LOOK_S,
            )["clusters"]
        except NoAnswerError as problem:
            error = f"Airflow cannot be asked for its clusters ({problem})"
            fix = f"{_EXTRA} where it is not; `airflow db check`"
        else:
            return said
    return [{"name": name, "error": error, "fix": fix} for name in clusters]
