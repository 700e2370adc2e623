from __future__ import annotations

from pathlib import Path

import pytest

from llem_airflow.results import ResultsRoot, StoredRun
from tests.results import roots

RUN_ID = "manual__2026-01-02T03:04:05+00:00"

s3_server = roots.s3_server


@pytest.fixture(params=["file", "object-store", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> ResultsRoot:
    """A root in a folder, one on a file system without rename and without folders, and one on S3."""
    return roots.new_root(request.param, request, tmp_path)


@pytest.fixture
def run(root: ResultsRoot) -> StoredRun:
    return root.run("nightly", RUN_ID)
