"""docker-compose.airflow.yml is valid, complete and closed, without starting anything."""

from __future__ import annotations

import json
import runpy
import stat
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llem_airflow import __version__
from llem_airflow.cli.embedded import SETTINGS
from tests import parts
from tests.compose.stack import FILE, compose_command, make_env

AIRFLOW_SERVICES = {"init", "api-server", "scheduler", "dag-processor", "triggerer"}


PROFILES = {
    "": {"postgres", "engine"},
    "local": {"postgres", "engine"},
    "celery": {"postgres", "engine", "redis", "worker"},
}
"""What each has besides Airflow's own services."""
EXECUTORS = {"": "LocalExecutor", "local": "LocalExecutor", "celery": "CeleryExecutor"}


def read(env_file: Path, profile: str) -> Any:
    return json.loads(compose(env_file, "config", "--format", "json", COMPOSE_PROFILES=profile).stdout)


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compose") / "env"
    make_env(path)
    return path


@pytest.fixture(scope="module", params=EXECUTORS)
def profile(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def config(env: Path, profile: str) -> Any:
    return read(env, profile)


def compose(env_file: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [*compose_command(), "-f", str(FILE), "--env-file", str(env_file), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env={"PATH": "/usr/bin:/bin", **environment}
    )


def environment_of(config: Any, service: str) -> dict[str, str]:
    environment: dict[str, str] = config["services"][service]["environment"]
    return environment


def test_each_profile_has_its_services_and_its_executor(config: Any, profile: str) -> None:
    assert set(config["services"]) == AIRFLOW_SERVICES | PROFILES[profile]
    said = {environment_of(config, name)["AIRFLOW__CORE__EXECUTOR"] for name in AIRFLOW_SERVICES}
    assert said == {EXECUTORS[profile]}


def test_every_service_has_the_same_secrets_and_settings(config: Any) -> None:
    shared, *others = (
        {
            key: value
            for key, value in environment_of(config, name).items()
            if key not in ("AIRFLOW_ADMIN_PASSWORD", "DOCKER_HOST")
        }
        for name in (AIRFLOW_SERVICES | {"worker"}) & set(config["services"])
    )
    assert all(environment == shared for environment in others)


def test_the_settings_for_long_tasks_are_those_of_the_embedded_airflow(config: Any) -> None:
    environment = environment_of(config, "scheduler")
    assert {key: environment[key] for key in SETTINGS} == SETTINGS


def test_the_proxy_alone_has_the_engines_socket(config: Any) -> None:
    holders = {
        name
        for name, service in config["services"].items()
        if any(volume["target"] == "/var/run/docker.sock" for volume in service.get("volumes", []))
    }
    assert holders == {"engine"}
    assert config["services"]["engine"].get("ports") is None


def test_only_those_who_start_experiments_or_wait_for_gpus_reach_the_proxy(config: Any) -> None:
    near = {name for name, service in config["services"].items() if "engine" in service["networks"]}
    assert near == {"engine", "scheduler", "triggerer", "worker"} & set(config["services"])
    assert config["networks"]["engine"]["internal"] is True
    told = {name for name in near if "DOCKER_HOST" in config["services"][name].get("environment", {})}
    assert told == near - {"engine"}


def test_nobody_is_root_and_everybody_says_how_it_is(config: Any) -> None:
    for name, service in config["services"].items():
        assert int(service["user"].partition(":")[0]) > 0
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert name == "init" or "test" in service["healthcheck"]


def test_the_page_is_open_to_this_machine_only_unless_asked(config: Any) -> None:
    (port,) = config["services"]["api-server"]["ports"]
    assert port["host_ip"] == "127.0.0.1"


def test_the_admin_password_is_known_to_init_alone(config: Any) -> None:
    holders = {name for name in AIRFLOW_SERVICES if "AIRFLOW_ADMIN_PASSWORD" in environment_of(config, name)}
    assert holders == {"init"}


def test_the_default_image_is_of_this_version(config: Any) -> None:
    assert config["services"]["scheduler"]["image"] == f"llem-airflow/airflow:{__version__}"


def secrets_of(profile: str) -> list[str]:
    everywhere = [
        "POSTGRES_PASSWORD",
        "AIRFLOW_FERNET_KEY",
        "AIRFLOW_JWT_SECRET",
        "AIRFLOW_SECRET_KEY",
        "AIRFLOW_ADMIN_PASSWORD",
        "DOCKER_GID",
    ]
    return everywhere + (["REDIS_PASSWORD", "FLOWER_PASSWORD"] if profile == "celery" else [])


@pytest.mark.parametrize(
    ("profile", "secret"), [(profile, secret) for profile in ("", "celery") for secret in secrets_of(profile)]
)
def without(env: Path, folder: Path, *names: str) -> Path:
    """A copy of an env file that does not set these."""
    lines = env.read_text().splitlines(keepends=True)
    path = folder / "without"
    path.write_text("".join(line for line in lines if line.partition("=")[0] not in names))
    return path


@pytest.mark.parametrize(
    ("profile", "secret"),
    [("", secret) for secret in secrets_of("")]
    + [("celery", "REDIS_PASSWORD"), ("celery", "FLOWER_PASSWORD")],
)
def test_without_a_secret_it_says_how_to_make_it(
    env: Path, tmp_path: Path, profile: str, secret: str
) -> None:
    done = compose(without(env, tmp_path, secret), "config", "--quiet", COMPOSE_PROFILES=profile)
    assert done.returncode != 0
    assert secret in done.stderr
    assert "make compose-env" in done.stderr


def test_an_env_file_of_before_the_profiles_goes_on(env: Path, tmp_path: Path) -> None:
    old = without(env, tmp_path, "REDIS_PASSWORD", "FLOWER_PASSWORD")
    assert set(read(old, "")["services"]) == AIRFLOW_SERVICES | PROFILES[""]


def test_redis_does_not_start_without_a_password(env: Path) -> None:
    redis = read(env, "celery")["services"]["redis"]
    script = redis["command"][-1].replace("$$", "$")
    done = subprocess.run(
        ["sh", "-ec", script], capture_output=True, text=True, check=False, env={"REDISCLI_AUTH": ""}
    )
    assert done.returncode != 0
    assert "COMPOSE_PROFILES must say celery" in done.stderr
    assert redis["environment"]["REDISCLI_AUTH"] not in json.dumps(redis["command"])


def test_a_profile_that_does_not_exist_is_refused(env: Path) -> None:
    done = compose(env, "config", "--quiet", COMPOSE_PROFILES="celary")
    assert done.returncode != 0
    assert "celary.env" in done.stderr


def test_secrets_are_fresh_and_for_their_owner_only(tmp_path: Path) -> None:
    first, second = make_env(tmp_path / "a"), make_env(tmp_path / "b")
    assert not {first[key] for key in first if key != "DOCKER_GID"} & set(second.values())
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600


NAMES = [name for name in secrets_of("celery") if name != "DOCKER_GID"]
MAKE_ENV = runpy.run_path(str(parts.REPOSITORY / "images" / "airflow" / "make-env"))["main"]


@given(kept=st.sets(st.sampled_from(NAMES)), empty=st.sampled_from(NAMES), newline=st.booleans())
def test_an_env_file_that_is_there_gets_what_it_lacks_and_keeps_what_it_has(
    kept: set[str], empty: str, newline: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "env"
        lines = [
            "# mine",
            "DOCKER_GID=1",
            *(f"export {name} = 'kept'" for name in sorted(kept)),
            f'{empty}=""',
        ]
        before = "\n".join(lines) + "\n" * newline
        path.write_text(before)
        path.chmod(0o644)
        assert MAKE_ENV([str(path)]) == 0
        after = path.read_text()
        assert after.startswith(before)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        added = dict(line.split("=", 1) for line in after.removeprefix(before).splitlines() if line)
        assert set(added) == (set(NAMES) - kept) | {empty}  # the last line of a name counts
        assert all(added.values())
        assert MAKE_ENV([str(path)]) == 0
        assert path.read_text() == after
