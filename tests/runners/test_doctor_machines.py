"""The doctor on four machines: without Docker, with a stopped engine, without permission, healthy."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import docker
import pytest

from llem_airflow.runners.doctor import _no_engine

_AS_NOBODY = """\
import os, sys
from llem_airflow.runners.doctor import examine
from llem_airflow.runners.doctor import diagnose
examine({"DOCKER_HOST": "unix:///nonexistent"})  # everything is imported while the files can be read
os.setgroups([]); os.setgid(65534); os.setuid(65534)
sys.exit(diagnose(as_json="--json" in sys.argv))
"""
_LINE = re.compile(r"^(ok|warn|fail) +\S", re.MULTILINE)


def doctor(tmp_path: Path, *args: str, nobody: bool = False, **environ: str) -> tuple[int, str]:
    """Run it as a program; its exit code and what a person reads."""
    code = _AS_NOBODY if nobody else "from llem_airflow.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "doctor", *args],
        env={**os.environ, "LLEM_RESULTS_ROOT": str(tmp_path), "COLUMNS": "160", **environ},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout


def dead_socket(tmp_path: Path) -> str:
    """The socket that an engine left behind when it ended."""
    path = tmp_path / "docker.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    return f"unix://{path}"


def test_without_docker_it_is_a_warning_as_experiments_run_without_containers_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    check = _no_engine(FileNotFoundError("No such file"), {})
    assert (check.status, check.text) == (
        "warn",
        "no engine answers at /var/run/docker.sock: there is no such socket; Docker is not installed",
    )
    assert "`runners: {transformers: process}`" in check.fix


def test_with_a_stopped_engine_it_fails_and_says_how_to_start_it(tmp_path: Path) -> None:
    code, text = doctor(tmp_path, DOCKER_HOST=dead_socket(tmp_path))
    assert code == 1
    assert re.search(r"fail +engine:? +no engine answers at unix:.*docker.sock: nobody listens there", text)
    assert "→ start it (`systemctl start docker`), or correct DOCKER_HOST" in text
    assert len(_LINE.findall(text)) == 4


def test_without_permission_it_fails_and_names_the_group(tmp_path: Path) -> None:
    where = dead_socket(tmp_path)
    (tmp_path / "docker.sock").chmod(0)
    code, text = doctor(
        tmp_path, nobody=os.getuid() == 0, DOCKER_HOST=where
    )  # for root there is no such thing
    assert code == 1
    assert re.search(r"fail +engine:? +no engine answers at .*docker.sock: permission denied", text)
    assert "→ add your user to the group `docker` and log in again" in text


@pytest.mark.docker
def test_on_a_healthy_machine_nothing_fails_and_every_warning_has_a_fix(
    tmp_path: Path, docker_api: docker.APIClient
) -> None:
    code, text = doctor(tmp_path, "--json")
    checks = {check["name"]: check for check in json.loads(text)}
    assert code == 0
    assert {checks[name]["status"] for name in ("engine", "permissions", "results")} == {"ok"}
    assert set(checks) >= {
        "gpu",
        "disk",
        "memory",
        "leftovers",
        "sessions",
        "hub token",
        "image transformers",
    }
    assert all(check["fix"] for check in checks.values() if check["status"] != "ok")
