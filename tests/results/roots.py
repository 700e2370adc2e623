"""Roots to test the store on: a folder, a file system without rename, and a real S3 server on this machine."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import fsspec
import pytest

from llem_airflow.results import ResultsRoot
from tests import parts


@contextmanager
def s3_at(port: int, *, keys: bool = False) -> Iterator[str]:
    """An S3 server at a port of this machine; its URL.

    Args:
        port: The port.
        keys: Whether it asks for signatures by keys that it knows, from the third request on: ``new_key`` makes one.
    """
    if not all(importlib.util.find_spec(name) for name in ("moto", "s3fs")):
        pytest.skip("needs s3fs and moto[server]")
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    environment = os.environ | ({"INITIAL_NO_AUTH_ACTION_COUNT": "3"} if keys else {})
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:
        try:
            _wait_for(port)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.kill()


def new_key(url: str) -> tuple[str, str]:
    """Id and secret of a key with which the server lets everything pass; others are refused from then on."""
    iam = import_module("boto3").client(
        "iam",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id="none",
        aws_secret_access_key="none",
    )
    iam.create_user(UserName="lab")
    rule = {"Effect": "Allow", "Action": "*", "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [rule]})
    iam.put_user_policy(UserName="lab", PolicyName="all", PolicyDocument=policy)
    key = iam.create_access_key(UserName="lab")["AccessKey"]
    return key["AccessKeyId"], key["SecretAccessKey"]


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """URL of an S3 server on this machine."""
    with s3_at(parts.free_port()) as url:
        yield url


def new_root(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> ResultsRoot:
    """An empty root: ``file``, ``object-store`` (no rename, no folders) or ``s3``."""
    if kind == "file":
        return ResultsRoot(tmp_path / "results")
    if kind == "s3":
        options = {"endpoint_url": request.getfixturevalue("s3_server"), "key": "test", "secret": "test"}
        bucket = f"results-{uuid.uuid4().hex}"
        fsspec.filesystem("s3", **options).mkdir(bucket)
        return ResultsRoot(f"s3://{bucket}/energy", **options)
    store = ResultsRoot(f"memory://results-{uuid.uuid4().hex}")
    request.addfinalizer(store.folder.remove)
    return store


def _wait_for(port: int) -> None:
    for _ in range(300):
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                return
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(f"the S3 server does not answer on port {port}")
