"""The compose stack's proxy before a Docker engine: the real HAProxy with the real rules, in a container."""

from __future__ import annotations

import csv
import io
import socket
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import docker

from tests import parts

RULES = parts.REPOSITORY / "images" / "airflow" / "engine-proxy"
CALLS, SESSIONS = "/usr/local/etc/haproxy/calls.lst", "/usr/local/etc/haproxy/sessions.lst"
_ADMIN = "global\n  stats socket ipv4@*:9999 level admin\n"
"""What the stack does not have: a way to ask it and to take rules away."""


@dataclass(frozen=True, slots=True)
class Haproxy:
    """A running proxy.

    Attributes:
        url: As ``DOCKER_HOST`` names it.
        admin_port: Of HAProxy's own command line.
    """

    url: str
    admin_port: int

    def ask(self, command: str) -> str:
        """The answer to a command of HAProxy's command line."""
        with socket.create_connection(("127.0.0.1", self.admin_port), timeout=60) as line:
            line.sendall(f"{command}\n".encode())
            return b"".join(iter(lambda: line.recv(65536), b"")).decode()

    @property
    def refused(self) -> int:
        """How many calls it has refused."""
        rows = csv.DictReader(io.StringIO(self.ask("show stat").removeprefix("# ")))
        return next(int(row["dreq"]) for row in rows if row["svname"] == "FRONTEND")

    def rules(self, file: str) -> list[str]:
        """HAProxy's references to the rules of a file, in their order."""
        return [f"#{line.split(' ', 1)[0]}" for line in self.ask(f"show acl {file}").splitlines() if line]


@contextmanager
def haproxy(api: docker.APIClient, *, sessions: bool = False) -> Iterator[Haproxy]:
    """Run the proxy before this machine's engine."""
    engine = parts.ENGINE_SOCKET
    made: str = api.create_container(
        parts.build_image("services"),
        [
            "haproxy",
            "-W",
            "-db",
            "-f",
            "/usr/local/etc/haproxy/haproxy.cfg",
            "-f",
            "/usr/local/etc/admin.cfg",
        ],
        user="99:99",
        environment={"LLEM_SESSIONS": "on" if sessions else ""},
        labels={"llem.test": "haproxy"},
        ports=[2375, 9999],
        host_config=api.create_host_config(
            binds=[f"{engine}:/var/run/docker.sock"],
            group_add=[str(engine.stat().st_gid)],
            port_bindings=dict.fromkeys((2375, 9999), ("127.0.0.1",)),
        ),
    )["Id"]
    try:
        api.put_archive(made, "/", _files())
        api.start(made)
        port, admin = (int(api.port(made, port)[0]["HostPort"]) for port in (2375, 9999))
        running = Haproxy(f"tcp://127.0.0.1:{port}", admin)
        _wait(running, api, made)
        yield running
    finally:
        api.remove_container(made, force=True)


def _files() -> bytes:
    files = {f"usr/local/etc/haproxy/{path.name}": path.read_bytes() for path in RULES.iterdir()}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in {**files, "usr/local/etc/admin.cfg": _ADMIN.encode()}.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o644
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _wait(running: Haproxy, api: docker.APIClient, made: str) -> None:
    # Docker's own listener takes connections before HAProxy does, and closes them.
    deadline_s = time.monotonic() + 120
    while True:
        try:
            if running.rules(CALLS):
                return
        except OSError:
            pass
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"HAProxy does not answer: {api.logs(made).decode()[-2000:]}")
        time.sleep(0.1)
