"""What each fault of a store is called, and what to do about it: by the errors of the client that talks to a server."""

from __future__ import annotations

import errno
import json
import os
import re
import uuid
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fsspec
import pytest
from click.testing import CliRunner

from llem_airflow.cli import main
from llem_airflow.results.folder import (
    Folder,
    ResultsWriteError,
    StoreConnectionError,
    is_of_store,
    why_store_fails,
)
from llem_airflow.runners.doctor import FAIL, OK, Check, examine, results
from tests import parts
from tests.results.s3_gate import Gate, gated_lab

ENVIRONMENT = {
    "AWS_MAX_ATTEMPTS": "1",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@pytest.fixture(scope="module")
def lab() -> Iterator[tuple[Gate, str, str]]:
    """A gate before a server that knows one key, and the key."""
    with gated_lab() as made:
        yield made


@pytest.fixture
def by_key(
    lab: tuple[Gate, str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[tuple[Gate, pytest.MonkeyPatch]]:
    """The gate, and variables with which its key is used."""
    gate, key, secret = lab
    gate.open()
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    told = {"AWS_ENDPOINT_URL": gate.url, "AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret}
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
    for name, value in {**ENVIRONMENT, **told, "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    fsspec.filesystem("s3").clear_instance_cache()
    yield gate, monkeypatch
    fsspec.filesystem("s3").clear_instance_cache()
    gate.open()


def looked_at(root: str) -> Check:
    """What the doctor says of a results root."""
    fsspec.filesystem("s3").clear_instance_cache()
    return results(root)


def said_at_a_write(url: str) -> str:
    fsspec.filesystem("s3").clear_instance_cache()
    with pytest.raises(Exception) as caught:  # noqa: PT011  # each fault is of another class
        Folder.at(f"{url}/energy", config_kwargs={"retries": {"max_attempts": 1}}).write("one", b"1")
    assert is_of_store(caught.value)
    return why_store_fails(caught.value, url)


def test_the_doctor_finds_each_fault_beforehand_and_leaves_nothing(
    by_key: tuple[Gate, pytest.MonkeyPatch],
) -> None:
    gate, environ = by_key
    found = looked_at("s3://lab/energy")
    assert (found.status, found.text, found.fix) == (OK, "s3://lab/energy, listed and written", "")
    assert fsspec.filesystem("s3").ls("lab") == []
    told = {"DOCKER_HOST": "unix:///nonexistent/d.sock", "LLEM_RESULTS_ROOT": "s3://nowhere/energy"}
    missing = next(check for check in examine(told) if check.name == "results")
    assert (missing.status, missing.fix) == (FAIL, "make it, or correct [llem] results_root")
    assert "there is no such bucket" in missing.text
    gate.away = lambda *_: True
    away = looked_at("s3://lab/energy")
    assert away.text.startswith("s3://lab/energy cannot be used: ")
    assert away.text.endswith("the object store does not answer")
    assert away.fix == "check its address (AWS_ENDPOINT_URL) and the network"
    gate.open()
    gate.throttled = lambda *_: True
    assert looked_at("s3://lab/energy").text.endswith("the object store throttles")
    gate.open()
    gate.throttled = lambda method, _: (
        method == "PUT"
    )  # who may list may still be refused at the first commit
    assert looked_at("s3://lab/energy").status == FAIL
    gate.open()
    environ.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    refused = looked_at("s3://lab/energy")
    assert refused.text.endswith(": the store refuses this worker's credentials")
    assert refused.fix == "it needs read, write and list in the bucket"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        environ.delenv(name)
    nobody = looked_at("s3://lab/energy")
    assert nobody.text.endswith("the object store wants credentials, and this worker has none")
    assert nobody.fix.startswith("set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile")


def test_a_store_that_throttles_or_goes_away_at_a_write_says_so(
    by_key: tuple[Gate, pytest.MonkeyPatch],
) -> None:
    gate, _ = by_key
    gate.throttled = lambda *_: True
    assert said_at_a_write("s3://lab").endswith(": the object store throttles; a later try stores it")
    gate.open()
    gate.away = lambda *_: True
    assert "the object store does not answer; check its address" in said_at_a_write("s3://lab")
    gate.open()
    assert "there is no such bucket" in said_at_a_write(f"s3://{uuid.uuid4().hex}")


def test_a_file_that_another_has_made_is_no_fault_whichever_way_the_server_says_so(
    by_key: tuple[Gate, pytest.MonkeyPatch],
) -> None:
    gate, _ = by_key
    folder = Folder.at(f"s3://lab/{uuid.uuid4().hex}")
    assert folder.create("probe", b"1")
    assert not folder.create("probe", b"2")
    gate.unmet = lambda *_: True
    assert not folder.create("probe", b"3")
    gate.open()
    assert folder.read("probe") == b"1"
    folder.remove()


def test_a_name_before_the_bucket_is_a_connection_of_airflow_s(
    by_key: tuple[Gate, pytest.MonkeyPatch], lab: tuple[Gate, str, str]
) -> None:
    """Only it has the credentials, and messages name it."""
    if find_spec("airflow.providers.amazon") is None:
        parts.missing("needs apache-airflow-providers-amazon")
    gate, environ = by_key
    _, key, secret = lab
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        environ.delenv(name)
    right, wrong, none = (f"lab_{uuid.uuid4().hex}" for _ in range(3))  # an opened store serves for a while
    for name, password in {right: secret, wrong: "wrong-secret"}.items():
        environ.setenv(f"AIRFLOW_CONN_{name.upper()}", connection(gate.url, key, password))
    root = Folder.at(f"s3://{right}@lab/energy")
    assert root.url == f"s3://{right}@lab/energy"
    below = root.child("study", "run")
    below.write("one", b"1")
    assert Folder.at(below.url).read("one") == b"1"
    assert below.above(2) == root
    below.remove()
    assert looked_at(f"s3://{right}@lab/energy").status == OK
    refused = looked_at(f"s3://{wrong}@lab/energy")
    assert refused.text.endswith(": the store refuses this worker's credentials")
    assert refused.fix.startswith(f"correct the connection '{wrong}' (Admin > Connections)")
    gate.away = lambda *_: True
    away = looked_at(f"s3://{right}@lab/energy")
    assert away.fix == f"check its address (endpoint_url of the connection '{right}') and the network"
    nobody = looked_at(f"s3://{none}@lab/energy")
    assert nobody.status == FAIL
    assert f"Airflow has no connection '{none}', which the results root names: add it" in nobody.text


def connection(url: str, key: str, secret: str) -> str:
    """A connection to a server, as AIRFLOW_CONN_… has it."""
    extra = {"endpoint_url": url, "region_name": "us-east-1"}
    return json.dumps({"conn_type": "aws", "login": key, "password": secret, "extra": extra})


def test_a_command_names_a_connection_that_is_not_there(by_key: tuple[Gate, pytest.MonkeyPatch]) -> None:
    missing = CliRunner().invoke(main, ["results", "list", "--results-root", "s3://lab_none@lab/energy"])
    assert missing.exit_code == 2
    assert re.match("Airflow has no connection 'lab_none'", missing.stderr)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.EBUSY, "Please reduce your request rate."), "throttles; a later try stores it"),
        (
            PermissionError(errno.EACCES, "Access Denied for s3://lab-503/429"),
            "refuses this worker's credentials; it needs read, write",
        ),
        (
            ResultsWriteError(errno.ENOSPC, "cannot write x: No space left; the disk is full: free some"),
            "the disk is full: free some",
        ),
        (StoreConnectionError("there is no such connection"), "there is no such connection"),
        (ValueError("something else\nand more"), "something else"),
    ],
)
def test_what_a_store_says_is_told_in_one_line(error: Any, said: str) -> None:
    assert said in why_store_fails(error)
    assert "\n" not in why_store_fails(error)
