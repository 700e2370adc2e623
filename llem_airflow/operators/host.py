"""A GPU host as an Airflow connection of type ``llem``: how its containers have to look, and what they may take."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

import docker
from airflow.sdk import BaseHook
from airflow.sdk.exceptions import AirflowNotFoundException

from llem_airflow.container.choice import read_runners
from llem_airflow.container.engine import ENGINE_ERRORS, connect
from llem_airflow.study.engine_names import ENGINE_ALIASES

DEFAULT_CONN_ID = "llem_default"
_ENGINE_PORT = 2375
"""Where Docker listens without TLS, when nobody names a port."""


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
        read = read_settings(self.llem_conn_id, {"docker_host": _engine_url(conn.host, conn.port), **extra})
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


def _engine_url(host: str | None, port: int | None) -> str | None:
    """URL of the engine that a connection's host and port name; None where they name none."""
    if not host or host.startswith("/"):
        return f"unix://{host}" if host else None
    scheme, _, rest = host.rpartition("://")
    if scheme not in ("", "tcp", "http", "https"):
        return host
    if rest.count(":") > 1 and "[" not in rest:
        rest = f"[{rest}]"  # IPv6
    where = rest if urlsplit(f"//{rest}").port else f"{rest.rstrip('/')}:{port or _ENGINE_PORT}"
    return f"{scheme or 'tcp'}://{where}"


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


def _positive(value: Any) -> float:
    number = float(value)
    if number <= 0:
        raise ValueError("allowed: a number above 0")
    return number


def _count(value: Any) -> int:
    if float(value) != int(value) or int(value) < 1:
        raise ValueError("allowed: a whole number from 1")
    return int(value)


_READERS: dict[str, Any] = {
    "docker_host": str,
    "labels": _texts,
    "cgroup_parent": str,
    "gpu_quota": _count,
    "shm_size": str,
    "images": _images,
    "runners": lambda value: read_runners(value, "runners"),
    "gpu_wait_s": _positive,
    "max_runtime_s": _positive,
    "max_idle_s": _positive,
}
