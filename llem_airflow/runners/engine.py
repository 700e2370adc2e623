"""The engine: small calls that every step needs, patient where the engine may be restarting."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import time
import urllib.parse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import docker
import requests
from docker.errors import APIError, DockerException, NotFound
from docker.tls import TLSConfig
from docker.utils import kwargs_from_env, parse_host

from llem_airflow.protocol.files import EXCHANGE_DIR
from llem_airflow.protocol.redaction import Redactor
from llem_airflow.runners.attempt import LABEL_KEY, Attempt
from llem_airflow.runners.ssh import SCHEME, SSHAddress, SSHClient

T = TypeVar("T")

ENGINE_ERRORS = (DockerException, requests.exceptions.RequestException)
"""What a call to the engine can raise."""

DEFAULT_URL = "unix:///var/run/docker.sock"
"""Where an engine is when nobody names one."""

_PORT = 2375
"""Where Docker listens without TLS, when nobody names a port."""

_AWAY = {
    r"CERTIFICATE_VERIFY_FAILED|certificate verify failed": (
        "the engine's certificate is not signed by the authority in tls_ca_cert, has ended, or is for another name: "
        "compare `openssl s_client -connect HOST:PORT -showcerts` with that file"
    ),
    r"CERTIFICATE_REQUIRED|certificate required|BAD_CERTIFICATE|bad certificate|unknown ca|UNKNOWN_CA": (
        "the engine does not accept this client's certificate: give tls_client_cert and tls_client_key that its "
        "authority has signed"
    ),
    r"HTTP request to an HTTPS server|WRONG_VERSION_NUMBER|wrong version number": (
        "one side speaks TLS and the other does not: an engine behind TLS (usually port 2376) needs tls_ca_cert, "
        "tls_client_cert and tls_client_key, one without (2375) none of them"
    ),
}
"""What an error of the client says, and what it means for a person."""

LIVE_STATES = ("running", "paused", "restarting")
GRACE_S = 120.0
"""How long an engine may be away, as at a restart, before what needs it fails, in seconds."""

_RETRY_EVERY_S = 1.0
_GLANCE_S = 3
_STOP_S = 2
_KEPT = "-kept"


def connect(
    environ: Mapping[str, str] = os.environ, *, timeout_s: int = 60, version: str | None = None
) -> docker.APIClient:
    """A client of the engine that ``DOCKER_HOST`` names.

    Args:
        environ: Names the engine.
        timeout_s: Of each call, in seconds.
        version: Version of its API; None for its newest.

    Raises:
        docker.errors.DockerException: Nobody answers there; the text says why.
        requests.exceptions.RequestException: It did not answer in time.
    """
    where = kwargs_from_env(environment=dict(environ))
    if str(where.get("base_url")).startswith(SCHEME):
        return SSHClient(where["base_url"], timeout_s=timeout_s, version=version)
    reach(where.get("base_url") or DEFAULT_URL, timeout_s)
    return docker.APIClient(**where, version=version or "auto", timeout=timeout_s)


class EngineTLS(TLSConfig):
    """The certificates of an engine, which no variable of the environment replaces.

    Where a call does not say what to check against, ``requests`` asks REQUESTS_CA_BUNDLE and CURL_CA_BUNDLE before
    what the session was given (psf/requests issue 3829), and the engine's own authority would be unknown.
    """

    def configure_client(self, client: docker.APIClient) -> None:
        """As of every client, and for each of its calls."""
        super().configure_client(client)
        merge = client.merge_environment_settings

        def merged(url: Any, proxies: Any, stream: Any, verify: Any, cert: Any) -> Any:
            return merge(url, proxies, stream, client.verify if verify is None else verify, cert)

        client.merge_environment_settings = merged  # type: ignore[method-assign]  # of this client


@dataclass(frozen=True, slots=True)
class EngineAddress:
    """Where a Docker engine is and how it is reached; another process can go there with it.

    Attributes:
        urls: Its addresses, tried in turn; none for what ``DOCKER_HOST`` names.
        ca_cert: File of the certificate authority, or None. The three files go together.
        client_cert: File of the client's certificate, or None.
        client_key: File of its key, or None.
        verify: Whether the engine's certificate is checked.
    """

    urls: tuple[str, ...] = ()
    ca_cert: str | None = None
    client_cert: str | None = None
    client_key: str | None = None
    verify: bool = True

    def __str__(self) -> str:
        """For people."""
        return ", ".join(self.urls) or "what DOCKER_HOST names"

    def to_json(self) -> dict[str, Any]:
        """In plain JSON values."""
        return {**asdict(self), "urls": list(self.urls)}

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> EngineAddress:
        """From :meth:`to_json`."""
        return cls(**{**said, "urls": tuple(said["urls"])})

    def connect(self, timeout_s: int) -> docker.APIClient:
        """A client of the engine.

        Raises:
            docker.errors.DockerException: Nobody answers there; the text says why.
            requests.exceptions.RequestException: It did not answer in time.
        """
        if not self.urls:
            return connect(timeout_s=timeout_s)
        for url in self.urls[:-1]:
            with contextlib.suppress(*ENGINE_ERRORS):
                return self._connect(url, timeout_s)
        return self._connect(self.urls[-1], timeout_s)

    @property
    def tls(self) -> EngineTLS | None:
        """Its certificates; None where it has none.

        Raises:
            docker.errors.DockerException: A file of them cannot be read here.
        """
        if not (self.ca_cert and self.client_cert and self.client_key):
            return None
        pair = self.client_cert, self.client_key
        named = {"tls_ca_cert": self.ca_cert, "tls_client_cert": pair[0], "tls_client_key": pair[1]}
        for name, path in named.items():
            if not os.access(path, os.R_OK):
                raise DockerException(
                    f"cannot connect to the Docker daemon: {name} is {path}, which is no file that can be read here: "
                    "put it there for this user, or correct the connection"
                )
        return EngineTLS(client_cert=pair, ca_cert=self.ca_cert, verify=self.verify)

    def _connect(self, url: str, timeout_s: int) -> docker.APIClient:
        if url.startswith(SCHEME):
            return connect({"DOCKER_HOST": url}, timeout_s=timeout_s)
        if (tls := self.tls) is None:
            return connect({"DOCKER_HOST": str(parse_host(url))}, timeout_s=timeout_s)
        reach(url, timeout_s)
        secure = url.replace("tcp://", "https://")
        return docker.APIClient(base_url=secure, tls=tls, version="auto", timeout=timeout_s)


def engine_url(host: str | None, port: int | None = None) -> str | None:
    """URL of the engine that a host (a name, an address, a socket, a URL) and a port name; None where they name none.

    Raises:
        ValueError: The host holds a port that cannot be one, or is no address for ssh.
    """
    if host and host.startswith(SCHEME):
        named = SSHAddress.of(host)
        return replace(named, port=named.port or port).url
    if not host or host.startswith("/"):
        return f"unix://{host}" if host else None
    scheme, _, rest = host.rpartition("://")
    if scheme not in ("", "tcp", "http", "https"):
        return host
    if rest.count(":") > 1 and "[" not in rest:
        rest = f"[{rest}]"  # IPv6
    try:
        where = rest if urllib.parse.urlsplit(f"//{rest}").port else f"{rest.rstrip('/')}:{port or _PORT}"
    except ValueError as error:
        raise ValueError(f"found {host!r}; allowed: a name or URL with a port from 1 to 65535") from error
    return f"{scheme or 'tcp'}://{where}"


def reach(url: str, timeout_s: int) -> None:
    """Open a connection to an engine and close it.

    Raises:
        docker.errors.DockerException: Nobody answers there; the text says why.
    """
    try:
        _knock(url, timeout_s)
    except PermissionError as error:
        raise DockerException(
            f"permission denied while trying to connect to the Docker daemon socket at {url}"
        ) from error
    except OSError as error:
        raise DockerException(
            f"cannot connect to the Docker daemon at {url}: {error.strerror or error}"
        ) from error


def why_away(error: BaseException) -> str:
    """Why an engine cannot be reached, for people: what lies behind an error of the client, with what to do."""
    text = str(error)
    for sign, words in _AWAY.items():
        if re.search(sign, text):
            return f"{words} ({text})"
    return text


def seen_from_here(environ: Mapping[str, str] = os.environ, *, engines: int = 1) -> str:
    """What a study's ``auto`` would find on this machine, for people.

    Args:
        environ: ``DOCKER_HOST`` names an engine.
        engines: How many engines the study has.
    """
    if not environ.get("DOCKER_HOST") and not is_installed_here():
        found = f"there is no Docker engine ({DEFAULT_URL.removeprefix('unix://')} does not exist)"
        return (
            f"{found}: processes"
            if engines == 1
            else f"{found}, and {engines} engines need containers: a run fails"
        )
    try:
        reach(str(kwargs_from_env(environment=dict(environ)).get("base_url") or DEFAULT_URL), _GLANCE_S)
    except DockerException as error:
        return (
            f"{error}: a run fails until it answers, or until the study says `runners: {{<engine>: process}}`"
        )
    return f"a Docker engine listens at {environ.get('DOCKER_HOST') or DEFAULT_URL}: containers"


def is_installed_here() -> bool:
    """Whether this machine has the default socket of an engine, be it one that answers or not."""
    try:
        Path(DEFAULT_URL.removeprefix("unix://")).stat()
    except PermissionError:
        return True
    except OSError:
        return False
    return True


def _knock(url: str, timeout_s: int) -> None:
    """Open a connection and close it: docker-py says less about why it cannot, and leaves a socket open."""
    if url.startswith(SCHEME):
        return SSHClient(url, timeout_s=timeout_s).close()
    parts = urllib.parse.urlsplit(url)
    if parts.scheme in ("unix", "http+unix"):
        with socket.socket(socket.AF_UNIX) as knock:
            knock.settimeout(timeout_s)
            knock.connect(parts.path)
    elif parts.hostname and parts.scheme in ("tcp", "http", "https"):
        socket.create_connection((parts.hostname, parts.port or 2375), timeout_s).close()
    return None


def patiently(call: Callable[[], T]) -> T:
    """Call the engine; while it cannot be reached, again, for up to :data:`GRACE_S`.

    Raises:
        docker.errors.APIError: The engine answered, with a refusal.
        requests.exceptions.RequestException: It stayed away.
    """
    begin_s = time.monotonic()
    while True:
        try:
            return call()
        except requests.exceptions.HTTPError:
            raise
        except requests.exceptions.RequestException:
            if time.monotonic() - begin_s >= GRACE_S:
                raise
            time.sleep(_RETRY_EVERY_S)


def containers_of(api: docker.APIClient, attempt: Attempt) -> list[dict[str, Any]]:
    """Containers that any try of this attempt's cycle made, but for those that were kept to be looked at."""
    found: list[dict[str, Any]] = api.containers(all=True, filters={"label": f"{LABEL_KEY}={attempt.key}"})
    return [each for each in found if not is_kept(name_of(each))]


def is_kept(name: str) -> bool:
    """Whether the container of a name failed and was kept: nobody takes it over, and gc removes it by its age."""
    return name.endswith(_KEPT)


def keep_container(api: docker.APIClient, name: str) -> str | None:
    """Stop a container, so that it holds no GPU, and keep it under another name; None when it is not there."""
    kept = f"{name}{_KEPT}"
    try:
        api.stop(name, timeout=_STOP_S)
        remove_container(api, kept)
        api.rename(name, kept)
    except NotFound:
        return None
    return kept


def name_of(listed: Mapping[str, Any]) -> str:
    """Name of a container as the list gives it."""
    return str(listed["Names"][0]).lstrip("/") if listed.get("Names") else str(listed["Id"])[:12]


def exchange_of(mounts: Iterable[Mapping[str, Any]]) -> str | None:
    """Name of the volume that is mounted as the exchange."""
    return next((str(mount["Name"]) for mount in mounts if mount.get("Destination") == EXCHANGE_DIR), None)


def remove_container(api: docker.APIClient, name: str) -> bool:
    """Remove a container, running or not; False when there is none of that name."""
    try:
        api.remove_container(name, force=True)
    except NotFound:
        return False
    except APIError as error:
        if error.status_code != 409:  # somebody else is removing it already
            raise
    return True


def remove_volume(api: docker.APIClient, name: str | None) -> bool:
    """Remove a volume if it is there and unused; whether it was."""
    if name is None:
        return False
    try:
        api.remove_volume(name)
    except APIError as error:
        if error.status_code not in (404, 409):
            raise
        return False
    return True


def sweep_volumes(api: docker.APIClient, attempt: Attempt) -> None:
    """Remove volumes that earlier tries of this cycle left without a container."""
    listed = api.volumes(filters={"label": f"{LABEL_KEY}={attempt.key}"})
    for volume in listed.get("Volumes") or []:
        remove_volume(api, volume["Name"])


def remove_all(api: docker.APIClient, attempt: Attempt) -> None:
    """Remove the containers and volumes of all tries of an attempt, whatever their state."""
    for listed in containers_of(api, attempt):
        remove_container(api, listed["Id"])
    sweep_volumes(api, attempt)


def run_once(
    api: docker.APIClient, image: str, folder: str, archive: bytes, timeout_s: int, **made: Any
) -> tuple[int, str, str]:
    """Run a short-lived container to its end; it is removed whatever happens.

    Args:
        api: The engine.
        image: Its image.
        folder: Where the files go, as the container sees it.
        archive: The files, as a tar archive.
        timeout_s: How long it may take, in seconds.
        made: Further arguments of ``APIClient.create_container``.

    Returns:
        Its exit code, what it printed, and its errors.

    Raises:
        docker.errors.DockerException: The engine refused.
        requests.exceptions.RequestException: It did not answer in time.
    """
    identity = api.create_container(image, **made)["Id"]
    try:
        api.put_archive(identity, folder, archive)
        api.start(identity)
        exit_code = int(api.wait(identity, timeout=timeout_s)["StatusCode"])
        out, err = (
            api.logs(identity, stdout=stdout, stderr=not stdout).decode("utf-8", "replace")
            for stdout in (True, False)
        )
        return exit_code, out, err
    finally:
        with contextlib.suppress(*ENGINE_ERRORS):
            api.remove_container(identity, force=True, v=True)


def host_facts(api: docker.APIClient) -> dict[str, Any]:
    """Facts about the engine's host; none when it does not answer."""
    facts: dict[str, Any] = {}
    with contextlib.suppress(*ENGINE_ERRORS):
        info = api.info()
        facts = {
            "name": info.get("Name"),
            "engine_id": info.get("ID"),
            "engine_version": info.get("ServerVersion"),
            "kernel": info.get("KernelVersion"),
            "operating_system": info.get("OperatingSystem"),
            "cpus": info.get("NCPU"),
            "memory_bytes": info.get("MemTotal"),
        }
    return facts


def write_inspection(inspection: Mapping[str, Any], redactor: Redactor, path: Path) -> None:
    """Keep what the engine says of a container, without its secrets."""
    path.write_text(redactor.text(json.dumps(inspection, indent=1, sort_keys=True)), encoding="utf-8")
