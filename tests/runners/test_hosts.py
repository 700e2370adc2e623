"""Commands look at every host that Airflow knows, and say what is wrong with each by its name."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from llem_airflow.cli import main
from llem_airflow.runners.claims import Waiter
from llem_airflow.runners.doctor import FAIL, WARN, Check, examine
from llem_airflow.runners.engine import EngineAddress, why_away
from llem_airflow.runners.hosts import Host, hosts_of
from tests.runners.programs import attempt

FULL = "mkdir /var/lib/docker/overlay2/0f-init: no space left on device"


def closed_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """Two hosts that do not answer and three connections with a mistake, in an Airflow without a database."""
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path / "airflow"))
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", f"sqlite:///{tmp_path}/none.db")
    urls = {"gpu1": closed_port(), "gpu2": closed_port()}
    said: dict[str, dict[str, Any]] = {
        name: {"conn_type": "llem", "host": url, "extra": {"queue": name, "gpu_kinds": "A, B"}}
        for name, url in urls.items()
    }
    said["gpu3"] = {"conn_type": "llem", "extra": {"gpu_quota": "many"}}
    said["gpu4"] = {"conn_type": "docker", "host": "x"}
    said["gpu5"] = {"conn_type": "llem", "host": "tcp://gpu5", "extra": {"tls_ca_cert": "/ca.pem"}}
    for name, each in said.items():
        monkeypatch.setenv(f"AIRFLOW_CONN_{name.upper()}", json.dumps(each))
    return urls


def test_without_names_every_connection_of_the_type_is_a_host(connections: dict[str, str]) -> None:
    found = {host.name: host for host in hosts_of(())}
    assert sorted(found) == ["gpu1", "gpu2", "gpu3", "gpu5"]
    assert found["gpu1"].address.urls == (connections["gpu1"],)
    assert (found["gpu2"].queue, found["gpu2"].gpu_kinds) == ("gpu2", ("A", "B"))
    assert "connection 'gpu3': gpu_quota: found 'many'" in found["gpu3"].problem
    assert found["gpu5"].problem.endswith("and tls_verify with them; found: tls_ca_cert")


def test_a_name_is_a_connection_where_there_is_one_and_an_address_otherwise(
    connections: dict[str, str],
) -> None:
    found = hosts_of(("gpu2", "other", "tcp://gpu9:1", "gpu4"))
    assert [host.address.urls for host in found[:3]] == [
        (connections["gpu2"],),
        ("tcp://other:2375",),
        ("tcp://gpu9:1",),
    ]
    assert found[3].problem.startswith("connection 'gpu4' is of type 'docker', and a GPU host's is 'llem'")


def test_gc_gpus_and_doctor_name_the_host_that_does_not_answer(connections: dict[str, str]) -> None:
    for verb in ("gc", "gpus", "doctor"):
        done = CliRunner().invoke(main, [verb], env={"COLUMNS": "300"})
        assert done.exit_code == (1 if verb == "doctor" else 2)
        text = done.stdout + done.stderr
        for name in connections:
            (line,) = [line for line in text.splitlines() if f"{name}: " in line and "answer" in line]
            assert "refused" in line or "nobody listens there" in line
        assert "connection 'gpu3': gpu_quota" in text


def test_a_host_may_be_named_and_json_has_it(connections: dict[str, str]) -> None:
    done = CliRunner().invoke(main, ["doctor", "--json", "--host", "gpu1"])
    told = json.loads(done.stdout)
    assert {each["host"] for each in told} == {"", "gpu1"}


def about(name: str, checks: list[Check]) -> Check:
    return next(check for check in checks if check.name == name)


def test_a_queue_of_which_nothing_runs_wants_a_worker_and_a_pool_must_be_there() -> None:
    address = EngineAddress((closed_port(),))
    waits = Host("gpu1", address, queue="gpus", pool="lab", waits_s=720, no_pool=True)
    checks = examine(hosts=[waits])
    queue = about("queue", checks)
    assert (queue.status, queue.host) == (FAIL, "gpu1")
    assert queue.text == "a task has waited in queue 'gpus' for 12 min and none of it runs"
    assert queue.fix == "start a worker on the host: `airflow celery worker --queues gpus`"
    assert about("pool", checks).fix.startswith("`airflow pools set lab 1")
    busy = Host("gpu1", address, queue="gpus", waits_s=720, running=1)
    assert not [check for check in examine(hosts=[busy]) if check.name in ("queue", "pool")]


@contextmanager
def engine_of_another_time(offset_s: float, *, full: bool = False) -> Iterator[str]:
    """What an engine answers whose clock is off, or whose disk is full; it knows nothing else."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            now = datetime.now(UTC) + timedelta(seconds=offset_s)
            said = {"SystemTime": f"{now:%Y-%m-%dT%H:%M:%SZ}", "ID": "another"}
            known: dict[str, dict[str, Any]] = {"/version": {"ApiVersion": "1.41"}, "/info": said}
            if full:
                known["/json"] = {"Id": "sha256:0", "Config": {}}
            body = next((known[end] for end in known if self.path.endswith(end)), None)
            refused = full and self.path.endswith("/containers/create")
            text = json.dumps(body or {"message": FULL if refused else "not known"}).encode()
            self.send_response(200 if body else 500 if refused else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_POST = do_DELETE = do_GET  # noqa: N815  # as http.server calls them

        def log_message(self, *args: object) -> None:
            """Nothing on the terminal."""

    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"tcp://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_clock_that_differs_is_told_by_its_host() -> None:
    with engine_of_another_time(-3600) as url:
        clock = about("clock", examine(hosts=[Host("gpu1", EngineAddress((url,)))]))
    assert (clock.status, clock.host) == (WARN, "gpu1")
    assert "s behind this machine's" in clock.text
    assert "NTP" in clock.fix


def test_a_certificate_that_is_not_here_is_told_by_its_host() -> None:
    address = EngineAddress(("tcp://gpu1:2376",), "/nowhere/ca.pem", "/nowhere/cert.pem", "/nowhere/key.pem")
    engine = about("engine", examine(hosts=[Host("gpu1", address)]))
    assert (engine.status, engine.host) == (FAIL, "gpu1")
    assert "tls_ca_cert is /nowhere/ca.pem, which is no file that can be read here" in engine.text


def test_a_disk_that_is_full_is_told_by_its_host() -> None:
    with engine_of_another_time(0, full=True) as url:
        disk = about("disk", examine(hosts=[Host("gpu1", EngineAddress((url,)))]))
    assert (disk.status, disk.host) == (FAIL, "gpu1")
    assert FULL in disk.text
    assert "`docker system df`" in disk.fix


def test_who_goes_on_with_a_wait_sees_that_the_engine_is_another_one() -> None:
    with engine_of_another_time(0) as url:
        is_another_engine(url)


def is_another_engine(url: str) -> None:
    """Whether a wait that was begun at another engine sees that this is not it."""
    later = {
        "engine": EngineAddress((url,)).to_json(),
        "engine_id": "the worker's",
        "attempt": asdict(attempt()),
        "ticket": {},
        "image": "",
    }
    sight = Waiter(later).look()
    assert sight.elsewhere
    assert sight.text == f"not known, {url} is another engine here"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed", "the authority in tls_ca_cert"),
        ("tlsv13 alert certificate required", "give tls_client_cert and tls_client_key"),
        ("Client sent an HTTP request to an HTTPS server.", "one side speaks TLS and the other does not"),
        ("Connection refused", "Connection refused"),
    ],
)
def test_what_a_client_says_of_an_engine_is_told_with_what_to_do(text: str, said: str) -> None:
    assert said in why_away(OSError(text))
