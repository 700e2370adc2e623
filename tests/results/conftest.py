from __future__ import annotations

import importlib.util
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from llem_airflow.results import ResultsRoot, StoredRun

RUN_ID = "manual__2026-01-02T03:04:05+00:00"


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """URL of an S3 server on this machine."""
    if not all(importlib.util.find_spec(name) for name in ("moto", "s3fs")):
        pytest.skip("needs s3fs and moto[server]")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            _wait_for(port)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


@pytest.fixture(params=["file", "object-store", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ResultsRoot]:
    """A root in a folder, one on a file system without rename and without folders, and one on S3."""
    if request.param == "file":
        yield ResultsRoot(tmp_path / "results")
        return
    if request.param == "s3":
        options = {"endpoint_url": request.getfixturevalue("s3_server"), "key": "test", "secret": "test"}
        bucket = f"results-{uuid.uuid4().hex}"
        fsspec.filesystem("s3", **options).mkdir(bucket)
        yield ResultsRoot(f"s3://{bucket}/energy", **options)
        return
    store = ResultsRoot(f"memory://results-{uuid.uuid4().hex}")
    yield store
    store.folder.remove()


@pytest.fixture
def run(root: ResultsRoot) -> StoredRun:
    return root.run("nightly", RUN_ID)


def _wait_for(port: int) -> None:
    for _ in range(300):
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                return
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(f"the S3 server does not answer on port {port}")
