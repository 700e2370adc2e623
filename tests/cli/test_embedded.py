"""The Airflow that `llem-airflow ui` starts."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from click.testing import CliRunner

from llem_airflow.cli import embedded, main
from llem_airflow.cli.embedded import Home, start_ui
from tests import parts


def test_a_ui_whose_port_is_taken_says_so_and_how_to_choose_another(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        done = CliRunner().invoke(main, ["ui", "--dags", str(tmp_path), "--port", str(port)])
    assert done.exit_code == 2
    assert f"port {port} cannot be had (Address already in use)" in done.output
    assert f"llem-airflow ui --port {port + 1}" in done.output


def test_the_tasks_of_a_ui_on_another_port_find_its_api(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    printenv = (
        "import os; print(*(f'{k}={v}' for k, v in os.environ.items()), sep='\\n', file=open('told', 'w'))"
    )
    monkeypatch.setattr(embedded, "airflow_command", lambda *_: [sys.executable, "-c", printenv])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.example")
    port = parts.free_port()
    assert start_ui(Home(tmp_path, str(tmp_path), tmp_path), tmp_path, port) == 0
    told = (tmp_path / "told").read_text().splitlines()
    assert f"AIRFLOW__API__PORT={port}" in told
    assert f"AIRFLOW__CORE__EXECUTION_API_SERVER_URL=http://localhost:{port}/execution/" in told
    assert "AIRFLOW__API__BASE_URL=https://airflow.example" in told


@pytest.mark.airflow
def test_the_page_and_the_password_are_told_and_an_end_leaves_no_process(tmp_path: Path) -> None:
    port = parts.free_port()
    program = str(Path(sys.executable).with_name("llem-airflow"))
    command = [program, "ui", "--dags", str(tmp_path), "--port", str(port)]
    environment = os.environ | {"AIRFLOW_HOME": str(tmp_path / "airflow"), "http_proxy": "http://127.0.0.1:9"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as ui:
        assert ui.stdout is not None
        said = next(line for line in ui.stdout if "UI is ready" in line)
        found = re.search(rf"http://localhost:{port}, user (\S+), password (\S+)", said)
        assert found, said
        who = json.dumps({"username": found[1], "password": found[2]}).encode()
        asked = Request(
            f"http://localhost:{port}/auth/token", who, headers={"Content-Type": "application/json"}
        )
        with urlopen(asked, timeout=60) as answer:
            assert answer.status == 201
        below = processes_below(ui.pid)
        assert len(below) > 4, below
        ui.terminate()
        ui.communicate(timeout=100)
    assert [pid for pid in below if Path(f"/proc/{pid}").exists()] == []


def processes_below(pid: int) -> list[int]:
    """All processes that it started, and theirs."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = status.read_text().rpartition(")")[2].split()
            parents[int(status.parent.name)] = int(fields[1])
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


def test_the_command_uses_the_results_root_of_the_services_where_it_has_none_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("LLEM_RESULTS_ROOT", raising=False)
    for name in ("AIRFLOW__LLEM__RESULTS_ROOT", "LLEM_RESULTS_ROOT"):
        monkeypatch.setenv(name, str(tmp_path / name))
        assert Home.here().results == str(tmp_path / name)
        done = CliRunner().invoke(main, ["results", "list"], env={"COLUMNS": "300"})
        assert str(tmp_path / name) in done.output
