"""Which operator makes a study's cycles and on which hosts: what is known from a DAG's parsing on.

A study whose runner is a cluster has pods. One that names hosts has tasks with the queue and the pool of each host's
connection, which is read only where the whole DAG is made: a worker has its task already.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llem_airflow import operators
from llem_airflow.operators.host import HostSettings, HostSettingsError, LLEMHostHook
from llem_airflow.study import Study, StudyFileError

Arguments = Mapping[str, Any]

_OF_PLANS = ("llem_conn_id", "queue", "executor")
_HOSTS = ("airflow", "hosts")


def cycle_operator(study: Study) -> Any:
    """The operator of the study's cycles.

    Raises:
        ImportError: It is that of pods, and the extra ``kubernetes`` is not installed.
    """
    return (
        operators.LLEMKubernetesExperimentOperator if study.on_a_cluster else operators.LLEMExperimentOperator
    )


def plan_args(study: Study, operator_args: Arguments, hosts: Mapping[str, Arguments]) -> dict[str, Any]:
    """Those arguments of a study's cycles that its plan can have, which looks for a Docker engine on the first host."""
    pods = study.on_a_cluster
    own = {name: value for name, value in operator_args.items() if not pods or name in _OF_PLANS}
    first = next(iter(hosts.values()), {})
    return {**{name: value for name, value in first.items() if name != "pool"}, **own}


def places_of(study: Study, operator_args: Arguments, *, reading: bool) -> dict[str, dict[str, Any]]:
    """Of each host over which the study is spread, the arguments that bring a task there; none for a study on one.

    A DAG's own ``llem_conn_id`` goes before the study's hosts, and so do its and the study's queue and pool before
    those of the connection, which are read where ``reading``.

    Raises:
        StudyFileError: A connection is not there or cannot be used, two are the same host, nothing says how many cycles
            a host takes, or the kinds of GPU differ.
    """
    names = study.airflow.hosts
    if not names or "llem_conn_id" in operator_args:
        return {}
    hosts = {name: _settings(study, name) if reading else HostSettings(name) for name in names}
    if reading:
        _check(study, list(hosts.values()), pool=operator_args.get("pool") or study.airflow.pool)
    return {
        name: {
            "llem_conn_id": name,
            **({"queue": host.queue} if host.queue else {}),
            **({"pool": host.pool} if host.pool and not study.airflow.pool else {}),
        }
        for name, host in hosts.items()
    }


def _settings(study: Study, name: str) -> HostSettings:
    try:
        return LLEMHostHook(name).settings()
    except HostSettingsError as error:
        raise _refused(study, str(error), "correct the connection, or name another host") from error


def _check(study: Study, hosts: Sequence[HostSettings], *, pool: str | None) -> None:
    if len(hosts) < 2:
        return
    where: dict[tuple[str | None, str | None], str] = {}
    for host in hosts:
        twin = where.setdefault((host.docker_host, host.queue), host.name)
        if twin != host.name:
            said = f"connections {twin!r} and {host.name!r} have the same engine and queue: they are one host"
            raise _refused(study, said, "give each its engine's address (host) or a queue of its own")
        if not (host.pool or pool):
            said = f"connection {host.name!r} names no pool: nothing says how many cycles the host takes at a time"
            raise _refused(
                study,
                said,
                f'`airflow pools set {host.name} 1 "GPUs of {host.name}"`, and `pool` in the connection',
            )
    on_gpus = any(experiment.gpus.count != 0 for experiment in study.experiments)
    kinds = {host.name: host.gpu_kinds for host in hosts}
    if (
        on_gpus
        and not study.airflow.mixed_gpus
        and len({kind for each in kinds.values() for kind in each}) > 1
    ):
        told = "; ".join(f"{name}: {', '.join(each) or 'not told'}" for name, each in kinds.items())
        said = f"the hosts have different kinds of GPU ({told}), and a comparison is made on one kind"
        raise _refused(study, said, "name hosts of one kind, or write `airflow.mixed_gpus: true`")


def _refused(study: Study, found: str, allowed: str) -> StudyFileError:
    return StudyFileError([study.problem(_HOSTS, found, allowed)])
