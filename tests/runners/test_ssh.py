"""Engines behind ssh://, through a real SSH server: what works as over a socket, and what is said where it does not."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from click.testing import CliRunner

from llem_airflow.cli import main
from llem_airflow.results import ResultsRoot
from llem_airflow.runners.attempt import LABEL_KEY
from llem_airflow.runners.container_spec import ContainerSettings
from llem_airflow.runners.doctor import examine
from llem_airflow.runners.engine import EngineAddress, connect, engine_url, seen_from_here
from llem_airflow.runners.failures import classify
from llem_airflow.runners.gc import find_leftovers
from llem_airflow.runners.gpus import on_this_machine
from llem_airflow.runners.hosts import Host
from llem_airflow.runners.ssh import SSHAddress, SSHClient, SSHError
from llem_airflow.runners.stranded import Recovery
from tests.chaos.world import wait_for
from tests.parts import ENGINE_SOCKET, free_port
from tests.runners.conftest import left_of
from tests.runners.programs import SPEC, attempt, in_container, program
from tests.runners.sshd import SSHServer, ssh_clients
from tests.runners.test_hosts import is_another_engine


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SSHServer]:
    with SSHServer(tmp_path_factory.mktemp("ssh") / "server") as made:
        yield made


@pytest.fixture
def url(server: SSHServer, monkeypatch: pytest.MonkeyPatch, docker_api: docker.APIClient) -> str:
    """The engine of the tests, by a user whom the server knows."""
    server.client(monkeypatch)
    return f"{server.address}{ENGINE_SOCKET}"


def why(url: str) -> str:
    """Why nobody answers there."""
    with pytest.raises(SSHError) as caught:
        EngineAddress((url,)).connect(30)
    assert str(caught.value).startswith(f"cannot connect to the Docker daemon at {url}: ")
    return str(caught.value)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("ssh://gpu1", SSHAddress("gpu1")),
        ("ssh://ada@gpu1:2222", SSHAddress("gpu1", "ada", 2222)),
        (
            "ssh://ada@[fd00::1]/run/user/1000/d.sock",
            SSHAddress("fd00::1", "ada", None, "/run/user/1000/d.sock"),
        ),
    ],
)
def test_an_address_is_read_as_the_docker_command_reads_it(url: str, address: SSHAddress) -> None:
    assert SSHAddress.of(url) == address
    assert address.url == url
    assert engine_url(url) == url


def test_the_port_of_a_connection_is_that_of_an_address_without_one() -> None:
    assert engine_url("ssh://ada@gpu1", 2222) == "ssh://ada@gpu1:2222"
    assert engine_url("ssh://ada@gpu1:22", 2222) == "ssh://ada@gpu1:22"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ssh://", r"found 'ssh://'; allowed: ssh://\[user@\]host\[:port\]\[/path/of/the/engine.sock\]"),
        ("ssh://gpu1:many", "found 'ssh://gpu1:many'; allowed: ssh://"),
        ("ssh://-oProxyCommand=x", "found 'ssh://-oProxyCommand=x'; allowed: ssh://"),
        ("ssh://ada:secret@gpu1", "^an ssh:// address takes no password: give the user of the worker a key$"),
    ],
)
def test_what_is_no_address_is_refused_before_anything_is_run(url: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        engine_url(url)
    with pytest.raises(SSHError, match=said.removeprefix("^")):
        connect({"DOCKER_HOST": url})


def test_the_command_asks_nobody_and_accepts_no_unknown_key() -> None:
    command = SSHAddress("gpu1", "ada", 2222, "/run/my docker.sock").command(7)
    assert {"-oBatchMode=yes", "-oStrictHostKeyChecking=yes", "-oConnectTimeout=7"} <= set(command)
    assert command[-7:-1] == ["-l", "ada", "-p", "2222", "--", "gpu1"]
    assert command[-1] == "docker --host 'unix:///run/my docker.sock' system dial-stdio"
    assert SSHAddress("gpu1").command(7)[-2:] == ["gpu1", "docker system dial-stdio"]


def test_a_host_whose_key_is_not_known_is_not_talked_to(
    server: SSHServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.client(monkeypatch, known="nobody")
    said = why(server.address)
    assert "the host's key is not known here, and none is accepted unseen: log in once by hand" in said
    assert f"`ssh -p {server.port} {server.user}@127.0.0.1`" in said
    assert not (server.folder / "nobody").exists()


def test_a_host_that_shows_another_key_is_not_talked_to(
    server: SSHServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.know(server.folder / "changed", "other")
    server.client(monkeypatch, known="changed")
    said = why(server.address)
    assert "the host shows another key than the one in known_hosts" in said
    assert f"`ssh-keygen -R '[127.0.0.1]:{server.port}'`" in said


def test_a_key_that_is_not_accepted_is_said_in_words_and_by_every_command(
    server: SSHServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.client(monkeypatch, key="other")
    said = why(server.address)
    assert "no key of this user is accepted: put one that needs no passphrase" in said
    assert f"into authorized_keys of {server.user} there (" in said
    assert "Permission denied (publickey" in said
    (engine,) = [
        each for each in examine(hosts=[Host("gpu1", EngineAddress((server.address,)))]) if each.host
    ]
    assert (engine.name, engine.status) == ("engine", "fail")
    assert f"no engine answers at {server.address}: " in engine.text
    assert "no key of this user is accepted" in engine.text
    monkeypatch.setenv("AIRFLOW_CONN_GPU1", json.dumps({"conn_type": "llem", "host": server.address}))
    for verb in ("gc", "gpus"):
        done = CliRunner().invoke(main, [verb, "--host", server.address], env={"COLUMNS": "300"})
        assert done.exit_code == 2
        assert "no key of this user is accepted" in done.stdout + done.stderr
        assert "`ssh HOST docker version` has to answer" in done.stdout + done.stderr


def test_a_port_at_which_no_ssh_server_listens_is_said(
    server: SSHServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.client(monkeypatch)
    port = free_port()
    assert "no SSH server listens there: start it, or correct the port" in why(f"ssh://127.0.0.1:{port}")


def test_a_worker_without_ssh_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "there is no program `ssh` here: install openssh-client" in why("ssh://gpu1")


@pytest.mark.parametrize(
    ("settings", "path", "said", "category"),
    [
        ("SetEnv PATH=/nowhere", "", "there is no command `docker` on the host", "daemon_down"),
        ("", "/nowhere.sock", "no engine runs behind that socket: start it on the host", "daemon_down"),
        (
            'ForceCommand exec runuser -u nobody -- sh -c "$SSH_ORIGINAL_COMMAND"',
            ENGINE_SOCKET,
            "the user may not use the engine's socket: `sudo usermod -aG docker USER`",
            "permission",
        ),
    ],
)
def test_what_is_wrong_on_the_other_side_is_said(
    settings: str,
    path: str,
    said: str,
    category: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    docker_api: docker.APIClient,
) -> None:
    if "runuser" in settings and os.geteuid() != 0:
        pytest.skip("only root can be somebody else")
    with SSHServer(tmp_path / "server", settings) as there:
        there.client(monkeypatch)
        with pytest.raises(SSHError) as caught:
            connect({"DOCKER_HOST": f"{there.address}{path}"})
    assert said in caught.value.reason
    found = classify(None, "", error=caught.value)
    assert found.category == category
    assert "`ssh HOST docker version` has to answer" in found.hint


@pytest.mark.docker
def test_every_command_asks_an_engine_behind_ssh(
    url: str, docker_api: docker.APIClient, python_image: str
) -> None:
    with EngineAddress.from_json(json.loads(json.dumps(EngineAddress((url,)).to_json()))).connect(60) as api:
        assert isinstance(api, SSHClient)
        assert api.info()["ID"] == docker_api.info()["ID"]
        assert api.api_version == docker_api.api_version
        assert not on_this_machine(api)
        assert len(ssh_clients()) == 1
    wait_for(lambda: not ssh_clients(), 60)
    assert seen_from_here({"DOCKER_HOST": url}) == f"a Docker engine listens at {url}: containers"
    environ = {**os.environ, "LLEM_IMAGE_TRANSFORMERS": python_image}
    checks = {each.name: each for each in examine(environ, [Host("gpu1", EngineAddress((url,)))])}
    assert (checks["engine"].status, checks["engine"].host) == ("ok", "gpu1")
    assert checks["disk"].text.endswith("GB free for images and volumes"), "as a container there sees it"
    done = CliRunner().invoke(main, ["gpus", "--host", url], env={"COLUMNS": "300"})
    assert done.exit_code == 0, done.output
    assert "the engine is on another machine" in done.output
    wait_for(lambda: not ssh_clients(), 60)


@pytest.mark.docker
def test_a_result_that_nobody_fetched_is_found_and_stored_behind_ssh(
    url: str, docker_api: docker.APIClient, python_image: str, tmp_path: Path
) -> None:
    class KilledError(Exception):
        """What ends a worker before it has stored anything."""

    def killed(_: object) -> None:
        raise KilledError

    who = attempt()
    settings = ContainerSettings(python_image, direct_volume=False)
    root = ResultsRoot(tmp_path / "results")
    with EngineAddress((url,)).connect(60) as api:
        with pytest.raises(KilledError):
            in_container(api, who, settings, tmp_path / "out", program(tmp_path, "result()"), store=killed)
        left = find_leftovers(api, alive=lambda _: False, older_than_s=-60.0)
        (ours,) = [one for one in left if one.name == who.container_name]
        (stored,) = Recovery(api, root, "gpu1").results([ours])
    ref = root.run(SPEC.study, who.run_id).cycle(who.experiment_id, 1)
    assert ref is not None
    assert stored.stored == ref.folder.url
    assert left_of(docker_api, who) == []


@pytest.mark.docker
def test_a_trigger_looks_at_an_engine_behind_ssh(url: str, docker_api: docker.APIClient) -> None:
    is_another_engine(url)


@pytest.mark.docker
def test_a_cycle_goes_on_over_a_connection_that_is_killed(
    url: str, server: SSHServer, docker_api: docker.APIClient, python_image: str, tmp_path: Path
) -> None:
    """The container lives on its host; whoever measures comes back to it, and no line is lost or said twice."""
    who = attempt()
    lines: list[str] = []
    code = program(
        tmp_path,
        """
print("up", flush=True)
while not os.path.exists(out + "/go"):
    time.sleep(0.1)
print("done")
result()
""",
    )
    ended: list[int] = []

    def cut() -> None:
        wait_for(lambda: "up" in lines, 120)
        ended.append(server.kill())
        server.start()
        (container,) = docker_api.containers(filters={"label": f"{LABEL_KEY}={who.key}"})
        docker_api.exec_start(docker_api.exec_create(container, ["touch", "/run/llem/out/go"])["Id"])

    cutting = threading.Thread(target=cut, daemon=True)
    cutting.start()
    settings = ContainerSettings(python_image, wall_clock_s=240.0, direct_volume=False)
    with EngineAddress((url,)).connect(60) as api:
        collected = in_container(api, who, settings, tmp_path / "out", code, on_line=lines.append)
    cutting.join(60)
    assert ended
    assert ended[0] > 0
    assert (collected.exit_code, lines) == (0, ["up", "done"])
    assert left_of(docker_api, who) == []
    wait_for(lambda: not ssh_clients(), 60)
