"""The exchange by the volume's own folder: where it is to be seen, and only what is safe to read."""

from __future__ import annotations

import os
from pathlib import Path

import docker
import pytest

from llem_airflow.runners.attempt import Attempt
from llem_airflow.runners.container_spec import ContainerSettings
from llem_airflow.runners.engine import connect
from llem_airflow.runners.exchange import fill, plain_files, volume_folder
from tests import parts
from tests.runners.conftest import RunContainer
from tests.runners.engine_proxy import EngineProxy
from tests.runners.programs import HASH, in_container, program

NAME = "llem-0123456789abcdef-try1-exchange"


def test_a_folder_that_is_not_there_or_not_the_volume_s_is_not_used(tmp_path: Path) -> None:
    (tmp_path / NAME / "_data").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / NAME)
    mine = tmp_path / NAME / "_data"
    assert volume_folder(str(mine), NAME) == (mine if os.geteuid() == 0 else None)
    assert volume_folder(str(mine), "another-volume") is None
    assert volume_folder(str(tmp_path / "gone" / NAME / "_data"), NAME) is None
    assert volume_folder(None, NAME) is None
    assert volume_folder(str(mine), None) is None


def test_only_plain_files_are_read_and_nothing_is_followed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "folder").mkdir(parents=True)
    (out / "file").write_text("seen")
    (out / "link").symlink_to("/etc/passwd")
    os.mkfifo(out / "pipe")
    assert [(name, size, file.read()) for name, size, file in plain_files(tmp_path, "out")] == [
        ("file", 4, b"seen")
    ]


def test_an_out_that_became_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to("/etc")
    with pytest.raises(OSError, match="out"):
        list(plain_files(tmp_path, "out"))


def test_a_file_that_became_a_link_is_not_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    folder = tmp_path / "volume"
    folder.mkdir()
    (folder / "llem.pyz").symlink_to(victim)
    with pytest.raises(OSError, match=r"llem\.pyz"):
        fill(folder, {"llem.pyz": b"x"}, "out", None)
    assert victim.read_text() == "untouched"


@pytest.mark.docker
@pytest.mark.skipif(os.geteuid() != 0, reason="only root sees the volumes of an engine")
@pytest.mark.parametrize("user", [None, "0", "root", "65532:65532"])
def test_an_attempt_goes_without_the_archive_api_where_its_volume_is_seen(
    docker_api: docker.APIClient,
    python_image: str,
    tmp_path: Path,
    this_attempt: Attempt,
    clean: None,
    user: str | None,
) -> None:
    engine = parts.ENGINE_SOCKET
    code = program(tmp_path, "json.load(open(os.environ['LLEM_CONFIG_PATH'])); print('hf_secret'); result()")
    settings = ContainerSettings(python_image, user=user, private_environment={"HF_TOKEN": "hf_secret"})
    lines: list[str] = []
    with EngineProxy(tmp_path / "engine.sock", engine) as proxy, connect({"DOCKER_HOST": proxy.url}) as api:
        collected = in_container(api, this_attempt, settings, tmp_path / "out", code, on_line=lines.append)
        assert [call for call in proxy.passed if "archive" in call] == []
    assert lines == ["[redacted]"]
    assert (collected.folder / f"{HASH}_result.json").is_file()


@pytest.mark.docker
def test_secrets_are_blanked_on_the_shorter_way_too(run_container: RunContainer) -> None:
    collected = run_container(
        "open(out + '/note', 'w').write(os.environ['HF_TOKEN']); result()",
        direct_volume=True,
        private_environment={"HF_TOKEN": "hf_secret"},
    )
    assert (collected.folder / "note").read_text() == "[redacted]"
