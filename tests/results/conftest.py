from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from llem_airflow.results import ResultsRoot, StoredRun

RUN_ID = "manual__2026-01-02T03:04:05+00:00"


@pytest.fixture(params=["file", "object-store"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ResultsRoot]:
    """A root in a folder, and one on a file system without rename and without folders."""
    if request.param == "file":
        yield ResultsRoot(tmp_path / "results")
        return
    store = ResultsRoot(f"memory://results-{uuid.uuid4().hex}")
    yield store
    store.folder.remove()


@pytest.fixture
def run(root: ResultsRoot) -> StoredRun:
    return root.run("nightly", RUN_ID)
