"""Real databases on this machine, of Debian's packages, each with data of its own that goes with it."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from tests import parts

INFLUX_CONFIG = """
reporting-disabled = true
bind-address = "127.0.0.1:{rpc}"
[meta]
  dir = "{folder}/meta"
[data]
  dir = "{folder}/data"
  wal-dir = "{folder}/wal"
[http]
  bind-address = "127.0.0.1:{port}"
  log-enabled = false
[monitor]
  store-enabled = false
"""
INIT = ("--no-sync", "-A", "scram-sha-256", "-U", "llem")
START_S = 120


def program(name: str, package: str, *places: str) -> str:
    """The path of a server's program; the test ends where the machine lacks it."""
    found = shutil.which(name, path=os.pathsep.join([os.environ["PATH"], *places]))
    return found or parts.missing(f"no {name}: apt install {package}")


@contextmanager
def running(command: Sequence[str], ready: Callable[[], Any], **options: Any) -> Iterator[None]:
    """A server while it is needed."""
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, **options) as server,
    ):
        try:
            until_s = time.monotonic() + START_S
            while True:
                try:
                    ready()
                    break
                except (httpx.HTTPError, psycopg.Error) as error:
                    if server.poll() is not None or time.monotonic() > until_s:
                        said.seek(0)
                        pytest.fail(f"{command[0]} does not answer: {error}\n{said.read().decode()[-2000:]}")
                    time.sleep(0.05)
            yield
        finally:
            server.terminate()


@contextmanager
def influx() -> Iterator[str]:
    """Address of an InfluxDB 1 without databases."""
    port = parts.free_port()
    url = f"http://127.0.0.1:{port}"
    influxd = program("influxd", "influxdb")
    with tempfile.TemporaryDirectory(prefix="llem-influx-") as folder:
        config = Path(folder, "influx.toml")
        config.write_text(INFLUX_CONFIG.format(folder=folder, port=port, rpc=parts.free_port()))
        with running([influxd, "-config", str(config)], lambda: httpx.get(f"{url}/ping").raise_for_status()):
            yield url


@contextmanager
def victoria_metrics() -> Iterator[str]:
    """Address of a VictoriaMetrics that takes points of any age."""
    port = parts.free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory(prefix="llem-victoria-") as folder:
        command = [
            *(program("victoria-metrics", "victoria-metrics"), f"-storageDataPath={folder}"),
            *(f"-httpListenAddr=127.0.0.1:{port}", "-retentionPeriod=100y", "-dedup.minScrapeInterval=1ms"),
        ]
        with running(command, lambda: httpx.get(f"{url}/health").raise_for_status()):
            yield url


@contextmanager
def postgres() -> Iterator[str]:
    """URL of a PostgreSQL that asks for the password ``secret``; its user is the owner of the database."""
    places = sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin")), reverse=True)
    server = program("postgres", "postgresql", *places)
    port = parts.free_port()
    # Not below pytest's folder: that is root's alone, and every pytest that begins on this machine makes it so again.
    with tempfile.TemporaryDirectory(prefix="llem-postgres-") as name:
        folder = Path(name)
        as_other: dict[str, Any] = {}
        if os.geteuid() == 0:  # PostgreSQL does not run as root
            nobody = pwd.getpwnam("nobody")
            as_other = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        password = folder / "password"
        password.write_text("secret")
        password.chmod(0o644)
        data = folder / "data"
        made = subprocess.run(
            [str(Path(server).with_name("initdb")), *INIT, "-D", str(data), f"--pwfile={password}"],
            check=False,
            capture_output=True,
            text=True,
            cwd=folder,
            **as_other,
        )
        assert made.returncode == 0, made.stdout + made.stderr
        options = ["-h", "127.0.0.1", "-p", str(port), "-k", str(folder), "-c", "fsync=off"]
        url = f"postgresql://llem:secret@127.0.0.1:{port}/postgres"
        with running(
            [server, "-D", str(data), *options], lambda: psycopg.connect(url).close(), cwd=folder, **as_other
        ):
            yield url
