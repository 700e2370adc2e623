"""The doctor says what is wrong and what to do, whatever is broken."""

from __future__ import annotations

import dataclasses
import json
import socket
import subprocess
import sys
from pathlib import Path

import docker
import pytest
from click.testing import CliRunner

from llem_airflow.cli import main
from llem_airflow.protocol.gpu_profile import GpuProfile
from llem_airflow.results.folder import Folder
from llem_airflow.results.records import write_profile
from llem_airflow.runners.doctor import FAIL, OK, WARN, Check, examine, worst
from tests.standins.gpus import use_script

CANARY = "hf_canary1234567890"


def find(name: str, checks: list[Check]) -> Check:
    return next(check for check in checks if check.name == name)


def test_a_missing_socket_is_said() -> None:
    check = find("engine", examine({"DOCKER_HOST": "unix:///nonexistent/docker.sock"}))
    assert (check.status, check.text) == (
        FAIL,
        "no engine answers at unix:///nonexistent/docker.sock: there is no such socket",
    )
    assert "systemctl start docker" in check.fix


def test_a_closed_port_is_said() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        check = find("engine", examine({"DOCKER_HOST": f"tcp://127.0.0.1:{free.getsockname()[1]}"}))
    assert check.text.endswith("nobody listens there")


def test_results_that_cannot_be_written_fail(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    checks = examine({"DOCKER_HOST": "unix:///nonexistent/d.sock", "LLEM_RESULTS_ROOT": "/proc/results"})
    assert find("results", checks).status == FAIL
    assert worst(checks) == 1


def test_the_tokens_value_is_never_shown() -> None:
    checks = examine({"DOCKER_HOST": "unix:///nonexistent/d.sock", "HF_TOKEN": CANARY})
    assert CANARY not in str(checks)
    assert find("hub token", checks).status == OK


def test_everything_that_is_not_ok_has_a_fix() -> None:
    checks = examine({"DOCKER_HOST": "unix:///nonexistent/d.sock"})
    assert all(check.fix for check in checks if check.status != OK)


def test_json_can_be_read_and_a_failure_is_an_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent/d.sock")
    result = CliRunner().invoke(main, ["doctor", "--json"])
    assert result.exit_code == 1
    assert {check["status"] for check in json.loads(result.stdout)} <= {OK, WARN, FAIL}


def test_gc_without_an_engine_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent/d.sock")
    result = CliRunner().invoke(main, ["gc"])
    assert result.exit_code == 2
    assert "What to do: check that the Docker engine runs" in result.stderr


@pytest.mark.docker
def test_a_healthy_engine_is_ok(docker_api: docker.APIClient) -> None:
    checks = examine()
    assert find("engine", checks).status == OK
    assert find("permissions", checks).status == OK


@pytest.mark.docker
def test_gc_lists_and_does_not_remove_by_itself(docker_api: docker.APIClient) -> None:
    result = CliRunner().invoke(main, ["gc", "--json", "--installation", "nobody-has-this"])
    assert result.exit_code == 0
    assert json.loads(result.stdout) == []


def test_an_engine_s_name_that_cannot_be_resolved_is_no_missing_image_or_socket() -> None:
    checks = examine({"DOCKER_HOST": "tcp://nosuchhost.invalid:2375"})
    text = find("engine", checks).text
    assert "cannot be resolved" in text
    assert "image" not in text


@pytest.mark.parametrize("age", ["-1", "-0.001", "x"])
def test_gc_refuses_an_age_that_is_none(age: str) -> None:
    assert CliRunner().invoke(main, ["gc", "--older-than", age]).exit_code == 2


def test_a_gpu_without_a_profile_is_told_how_to_get_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uuid = "GPU-5741d000-0000-0000-0000-000000000000"
    use_script(monkeypatch, tmp_path, "driver = 580.1")
    code = (
        "from llem_airflow.runners.doctor import examine\n"
        f"checks = examine({{'DOCKER_HOST': 'unix:///nonexistent', 'LLEM_RESULTS_ROOT': {str(tmp_path)!r}}})\n"
        "print([(c.status, c.text) for c in checks if c.name == 'power meter'])"
    )  # the driver library is found at a process's start

    def said() -> str:
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert said() == f"[('warn', '{uuid} is not characterised: usual numbers are taken')]\n"
    nothing = GpuProfile(1, uuid, "A100", "measured", driver="580.1")
    write_profile(Folder.at(tmp_path), nothing, {})
    assert "nothing of its power meter could be told" in said()
    profile = dataclasses.replace(nothing, counter_period_s=0.1)
    write_profile(Folder.at(tmp_path), profile, {})
    assert said() == f"[('ok', '{uuid} is characterised')]\n"
    dated = dataclasses.replace(profile, made_epoch_ns=1_795_000_000_000_000_000, made_by="llem-airflow 1")
    write_profile(Folder.at(tmp_path), dated, {})
    assert said() == f"[('ok', '{uuid} is characterised (llem-airflow 1, 2026-11-18)')]\n"
    write_profile(Folder.at(tmp_path), dataclasses.replace(profile, driver="570"), {})
    assert "was characterised with driver 570, now it is 580.1" in said()
