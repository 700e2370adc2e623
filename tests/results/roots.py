"""Roots to test the store on: a folder, a file system without rename, and an S3 server on this machine."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
import pytest

from llem_airflow.results import ResultsRoot
from tests import parts
from tests.results.swift import KEY, SECRET, swift


@contextmanager
def s3_at(port: int) -> Iterator[str]:
    """A light S3 server, which takes any key, at a port of this machine; its URL."""
    if not all(importlib.util.find_spec(name) for name in ("moto", "s3fs")):
        pytest.skip("needs s3fs and moto[server]")
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            _wait_for(port)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.kill()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """URL of an S3 server on this machine: the light one, or as ``LLEM_TEST_S3`` says ``swift``."""
    with swift() if os.environ.get("LLEM_TEST_S3") == "swift" else s3_at(parts.free_port()) as url:
        yield url


def new_root(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> ResultsRoot:
    """An empty root: ``file``, ``object-store`` (no rename, no folders) or ``s3``."""
    if kind == "file":
        return ResultsRoot(tmp_path / "results")
    if kind == "s3":
        options = {"endpoint_url": request.getfixturevalue("s3_server"), "key": KEY, "secret": SECRET}
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
