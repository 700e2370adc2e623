"""A GPU host as an Airflow connection of type ``llem``: how its containers have to look, and what they may take."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from airflow.sdk import BaseHook
from airflow.sdk.exceptions import AirflowNotFoundException

from llem_airflow.operators.arguments import OUR_LABELS
from llem_airflow.runners.choice import read_runners
from llem_airflow.runners.engine import ENGINE_ERRORS, EngineAddress, engine_url, why_away
from llem_airflow.study.names import ENGINE_ALIASES

DEFAULT_CONN_ID = "llem_default"


class HostSettingsError(ValueError):
    """A field of the connection has a value that cannot be used; the text says which and what is allowed."""


@dataclass(frozen=True, slots=True)
class HostSettings:
    """What a host asks of the containers that run on it. Absent fields are left to the study and our defaults.

    Attributes:
        name: Id of the connection; empty for the defaults of a worker without one.
        docker_host: URL of its Docker engine.
        tls_ca_cert: File of the authority of the engine's certificate, as workers and triggerer see it; the three files
            go together.
        tls_client_cert: File of the client's certificate.
        tls_client_key: File of its key.
        tls_verify: Whether the engine's certificate is checked.
        queue: Airflow queue whose workers measure on this host.
        pool: Airflow pool of its cycles.
        gpu_kinds: Names of its kinds of GPU, as the driver calls them.
        registry: Registry that images come from which nobody names.
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

    name: str = ""
    docker_host: str | None = None
    tls_ca_cert: str | None = None
    tls_client_cert: str | None = None
    tls_client_key: str | None = None
    tls_verify: bool | None = None
    queue: str | None = None
    pool: str | None = None
    gpu_kinds: tuple[str, ...] = ()
    registry: str | None = None
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

    @property
    def address(self) -> EngineAddress:
        """Where its engine is; what the worker's ``DOCKER_HOST`` names where the connection says nothing."""
        return EngineAddress(
            (self.docker_host,) if self.docker_host else (),
            self.tls_ca_cert,
            self.tls_client_cert,
            self.tls_client_key,
            self.tls_verify is not False,
        )


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
        return settings_of(conn)

    def test_connection(self) -> tuple[bool, str]:
        """Whether the fields can be used and the engine answers; what the form's *Test* button shows."""
        try:
            with self.settings().address.connect(10) as api:
                version: Mapping[str, Any] = api.version()
        except HostSettingsError as error:
            return False, str(error)
        except ENGINE_ERRORS as error:
            return False, why_away(error)
        return True, f"Docker {version.get('Version')} answers"


def settings_of(conn: Any) -> HostSettings:
    """What a connection of Airflow says.

    Args:
        conn: A connection, as a task or as Airflow's database has it.

    Raises:
        HostSettingsError: It is of another type, or a field cannot be used.
    """
    name = str(conn.conn_id)
    if conn.conn_type != LLEMHostHook.conn_type:
        raise HostSettingsError(
            f"connection {name!r} is of type {conn.conn_type!r}, and a GPU host's is 'llem': change it, or name "
            "another connection"
        )
    extra = {k: v for k, v in conn.extra_dejson.items() if v not in (None, "", {}, [])}
    try:
        url = engine_url(conn.host, conn.port)
    except ValueError as error:
        raise HostSettingsError(f"connection {name!r}: host: {error}") from error
    return replace(read_settings(name, {"docker_host": url, **extra}), hub_token=conn.password or None)


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
    found = HostSettings(name=conn_id, **{name: value for name, value in read.items() if value is not None})
    files = [name for name in _TLS_FILES if getattr(found, name)]
    if len(files) in (1, 2) or (not files and found.tls_verify is False):
        raise HostSettingsError(
            f"connection {conn_id!r}: {', '.join(_TLS_FILES)} work together only, and tls_verify with them; found: "
            f"{', '.join(files) or 'tls_verify'}"
        )
    return found


def _texts(value: Any) -> dict[str, str]:
    found = json.loads(value) if isinstance(value, str) else value
    if not isinstance(found, dict) or not all(isinstance(each, str) for each in found.values()):
        raise ValueError('allowed: a JSON object of texts, such as {"ds01.user": "ada"}')
    return found


def _names(value: Any) -> tuple[str, ...]:
    if isinstance(value, str) and not value.lstrip().startswith("["):
        value = value.split(",")
    found = json.loads(value) if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise ValueError("allowed: names, separated by commas")
    return tuple(name for each in found if (name := each.strip()))


def _registry(value: Any) -> str:
    found = str(value).strip().rstrip("/")
    if "://" in found or " " in found or not found:
        raise ValueError(
            "allowed: a registry as it stands before an image's name, such as registry.lab:5000/mirror"
        )
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


_TLS_FILES = ("tls_ca_cert", "tls_client_cert", "tls_client_key")
_READERS: dict[str, Any] = {
    "docker_host": str,
    **dict.fromkeys(_TLS_FILES, str),
    "tls_verify": _yes_or_no,
    "queue": str,
    "pool": str,
    "gpu_kinds": _names,
    "registry": _registry,
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
