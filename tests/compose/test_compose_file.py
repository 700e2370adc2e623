"""docker-compose.airflow.yml is valid, complete and closed, without starting anything."""

from __future__ import annotations

import json
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from llem_airflow import __version__
from llem_airflow.cli.embedded import SETTINGS
from tests import parts
from tests.compose.stack import FILE, compose_command, make_env

AIRFLOW_SERVICES = {"init", "api-server", "scheduler", "dag-processor", "triggerer"}


@pytest.fixture
def config(tmp_path: Path) -> Any:
    make_env(tmp_path / "env")
    return json.loads(compose(tmp_path / "env", "config", "--format", "json").stdout)


def compose(env_file: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*compose_command(), "-f", str(FILE), "--env-file", str(env_file), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": "/usr/bin:/bin"})


def environment_of(config: Any, service: str) -> dict[str, str]:
    environment: dict[str, str] = config["services"][service]["environment"]
    return environment


def test_the_file_has_every_service_of_an_airflow_with_postgres(config: Any) -> None:
    assert set(config["services"]) == AIRFLOW_SERVICES | {"postgres"}


def test_every_service_has_the_same_secrets_and_settings(config: Any) -> None:
    init, *others = (
        environment_of(config, name) for name in sorted(AIRFLOW_SERVICES, key=lambda n: n != "init")
    )
    shared = {key: value for key, value in init.items() if key != "AIRFLOW_ADMIN_PASSWORD"}
    assert all(environment == shared for environment in others)


def test_the_settings_for_long_tasks_are_those_of_the_embedded_airflow(config: Any) -> None:
    environment = environment_of(config, "scheduler")
    assert {key: environment[key] for key in SETTINGS} == SETTINGS


def test_only_the_scheduler_and_the_triggerer_reach_the_engine(config: Any) -> None:
    holders = {
        name
        for name, service in config["services"].items()
        if any(volume["target"] == "/var/run/docker.sock" for volume in service.get("volumes", []))
    }
    assert holders == {"scheduler", "triggerer"}


def test_the_page_is_open_to_this_machine_only_unless_asked(config: Any) -> None:
    (port,) = config["services"]["api-server"]["ports"]
    assert port["host_ip"] == "127.0.0.1"


def test_the_admin_password_is_known_to_init_alone(config: Any) -> None:
    holders = {name for name in AIRFLOW_SERVICES if "AIRFLOW_ADMIN_PASSWORD" in environment_of(config, name)}
    assert holders == {"init"}


def test_the_default_image_is_of_this_version(config: Any) -> None:
    assert config["services"]["scheduler"]["image"] == f"llem-airflow/airflow:{__version__}"


def test_without_secrets_it_says_how_to_make_them(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    done = compose(tmp_path / "empty", "config", "--quiet")
    assert done.returncode != 0
    assert "make compose-env writes .env" in done.stderr


def test_secrets_are_fresh_and_for_their_owner_only(tmp_path: Path) -> None:
    first, second = make_env(tmp_path / "a"), make_env(tmp_path / "b")
    assert not {first[key] for key in first if key != "DOCKER_GID"} & set(second.values())
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600


def test_an_env_file_that_is_there_is_never_changed(tmp_path: Path) -> None:
    path = tmp_path / "env"
    path.write_text("MINE=1\n")
    script = parts.REPOSITORY / "images" / "airflow" / "make-env"
    done = subprocess.run([str(script), str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, path.read_text()) == (1, "MINE=1\n")
    assert "stays as it is" in done.stderr
