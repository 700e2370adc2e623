"""A GPU host as an Airflow connection of type ``llem``: how its containers have to look, and what they may take."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import docker
from airflow.sdk import BaseHook
from airflow.sdk.exceptions import AirflowNotFoundException

from llem_airflow.operators.arguments import OUR_LABELS
from llem_airflow.runners.choice import read_runners
from llem_airflow.runners.engine import ENGINE_ERRORS, connect, engine_url
from llem_airflow.study.names import ENGINE_ALIASES

DEFAULT_CONN_ID = "llem_default"


class HostSettingsError(ValueError):
    """A field of the connection has a value that cannot be used; the text says which and what is allowed."""


@dataclass(frozen=True, slots=True)
class HostSettings:
    """What a host asks of the containers that run on it. Absent fields are left to the study and our defaults.

    Attributes:
        docker_host: URL of its Docker engine.
        labels: Labels of every container.
        cgroup_parent: Cgroup below which containers are put.
        gpu_quota: GPUs that containers of ours may hold at the same time.
        shm_size: Size of /dev/shm.
        images: Image by engine.
        runners: Runner by engine, in the study file's words.
        gpu_wait_s: How long to wait for GPUs, in seconds.
        max_runtime_s: Longest life of a container, in seconds.
        max_idle_s: Longest time without output, in seconds.
        max_gpu_idle_s: Longest time in which an attempt's GPUs compute nothing, in seconds.
        keep_failed: Whether failed containers are stopped and kept, to be looked at.
        hub_token: Token for gated models of the hub: the connection's password, which Airflow keeps encrypted.
    """

    docker_host: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    cgroup_parent: str | None = None
    gpu_quota: int | None = None
    shm_size: str | None = None
    images: Mapping[str, str] = field(default_factory=dict)
    runners: Mapping[str, str] = field(default_factory=dict)
    gpu_wait_s: float | None = None
    max_runtime_s: float | None = None
    max_idle_s: float | None = None
    max_gpu_idle_s: float | None = None
    keep_failed: bool | None = None
    hub_token: str | None = field(default=None, repr=False)


class LLEMHostHook(BaseHook):
    """The connection of a GPU host.

    Args:
        llem_conn_id: Id of the connection.
    """

    conn_name_attr = "llem_conn_id"
    default_conn_name = DEFAULT_CONN_ID
    conn_type = "llem"
    hook_name = "LLEM GPU host"

    def __init__(self, llem_conn_id: str = DEFAULT_CONN_ID) -> None:
        super().__init__()
        self.llem_conn_id = llem_conn_id

    def settings(self) -> HostSettings:
        """What the connection says; only defaults when it is the default one and does not exist.

        Raises:
            HostSettingsError: A field cannot be used, or a connection that was named does not exist.
        """
        try:
            conn = self.get_connection(self.llem_conn_id)
        except AirflowNotFoundException as error:
            if self.llem_conn_id == DEFAULT_CONN_ID:
                return HostSettings()
            raise HostSettingsError(
                f"there is no connection {self.llem_conn_id!r}: `airflow connections add {self.llem_conn_id} "
                "--conn-type llem --conn-host unix:///var/run/docker.sock`"
            ) from error
        extra = {k: v for k, v in conn.extra_dejson.items() if v not in (None, "", {})}
        try:
            url = engine_url(conn.host, conn.port)
        except ValueError as error:
            raise HostSettingsError(f"connection {self.llem_conn_id!r}: host: {error}") from error
        read = read_settings(self.llem_conn_id, {"docker_host": url, **extra})
        return replace(read, hub_token=conn.password or None)

    def test_connection(self) -> tuple[bool, str]:
        """Whether the fields can be used and the engine answers; what the form's *Test* button shows."""
        try:
            where = self.settings().docker_host
            with connect({"DOCKER_HOST": where} if where else {}, timeout_s=10) as api:
                version: Mapping[str, Any] = api.version()
        except (HostSettingsError, docker.errors.DockerException, *ENGINE_ERRORS) as error:
            return False, str(error)
        return True, f"Docker {version.get('Version')} answers"


def read_settings(conn_id: str, fields: Mapping[str, Any]) -> HostSettings:
    """Check the fields of a connection.

    Raises:
        HostSettingsError: A field is not known or its value cannot be used.
    """
    read: dict[str, Any] = {}
    for name, value in fields.items():
        if name not in _READERS:
            raise HostSettingsError(
                f"connection {conn_id!r}: {name!r} is not known; known are: {', '.join(sorted(_READERS))}"
            )
        try:
            read[name] = None if value is None else _READERS[name](value)
        except (ValueError, TypeError) as error:
            raise HostSettingsError(f"connection {conn_id!r}: {name}: found {value!r}; {error}") from error
    return HostSettings(**read)


def _texts(value: Any) -> dict[str, str]:
    found = json.loads(value) if isinstance(value, str) else value
    if not isinstance(found, dict) or not all(isinstance(each, str) for each in found.values()):
        raise ValueError('allowed: a JSON object of texts, such as {"ds01.user": "ada"}')
    return found


def _images(value: Any) -> dict[str, str]:
    return {ENGINE_ALIASES.get(name, name): image for name, image in _texts(value).items()}


def _labels(value: Any) -> dict[str, str]:
    found = _texts(value)
    if ours := [name for name in found if name.startswith(OUR_LABELS)]:
        raise ValueError(f"{', '.join(ours)}: labels that begin with {OUR_LABELS} are ours")
    return found


def _not_negative(value: Any) -> float:
    number = float(value)
    if not 0 <= number < math.inf:
        raise ValueError("allowed: a number of seconds from 0")
    return number


def _yes_or_no(value: Any) -> bool:
    found = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}.get(
        str(value).lower()
    )
    if found is None:
        raise ValueError("allowed: true or false")
    return found


def _positive(value: Any) -> float:
    number = float(value)
    if not 0 < number < math.inf:
        raise ValueError("allowed: a number above 0")
    return number


def _count(value: Any) -> int:
    if float(value) != int(value) or int(value) < 1:
        raise ValueError("allowed: a whole number from 1")
    return int(value)


_READERS: dict[str, Any] = {
    "docker_host": str,
    "labels": _labels,
    "cgroup_parent": str,
    "gpu_quota": _count,
    "shm_size": str,
    "images": _images,
    "runners": lambda value: read_runners(value, "runners"),
    "gpu_wait_s": _not_negative,
    "max_runtime_s": _positive,
    "max_idle_s": _positive,
    "max_gpu_idle_s": _positive,
    "keep_failed": _yes_or_no,
}
