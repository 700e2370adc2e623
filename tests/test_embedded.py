"""The Airflow that `llem-airflow ui` starts."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from llem_airflow import embedded
from llem_airflow.cli import main
from llem_airflow.embedded import Home, start_ui


def test_a_ui_whose_port_is_taken_says_so_and_how_to_choose_another(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        done = CliRunner().invoke(main, ["ui", "--dags", str(tmp_path), "--port", str(port)])
    assert done.exit_code == 1
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
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    assert start_ui(Home(tmp_path, str(tmp_path), tmp_path), tmp_path, port) == 0
    told = (tmp_path / "told").read_text().splitlines()
    assert f"AIRFLOW__API__PORT={port}" in told
    assert f"AIRFLOW__CORE__EXECUTION_API_SERVER_URL=http://localhost:{port}/execution/" in told
    assert "AIRFLOW__API__BASE_URL=https://airflow.example" in told
