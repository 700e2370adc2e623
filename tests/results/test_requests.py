"""What an operation asks of an object store does not grow with the runs that are there."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from llem_airflow.results import StoredRun
from tests.results import roots
from tests.results.recorded import Recording, provenance

EXPERIMENT = "tiny-batch-1-01234567"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the requests that the S3 client sent."""
    sent: list[str] = []
    client = import_module("s3fs").S3FileSystem
    original = client._call_s3

    async def counted(self: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        sent.append(method)
        return await original(self, method, *args, **kwargs)

    monkeypatch.setattr(client, "_call_s3", counted)
    return sent


def test_requests_do_not_grow_with_the_runs_of_a_study(
    request: pytest.FixtureRequest, tmp_path: Path, asked: list[str]
) -> None:
    root = roots.new_root("s3", request, tmp_path)
    files = Recording().write(tmp_path / "out")
    cycles: list[StoredRun] = []

    def commit(run_id: str) -> None:
        run = root.run("nightly", run_id)
        run.write_plan("model: tiny\n", {"experiments": []}, {"started_epoch_ns": 1})
        run.commit_cycle(EXPERIMENT, 1, files, provenance())
        cycles.append(run)

    commit("first")
    operations: dict[str, Callable[[], object]] = {
        "commit": lambda: commit(f"r{len(cycles)}"),
        "is committed": lambda: cycles[0].is_committed(EXPERIMENT, 1),
        "cycles": cycles[0].cycles,
        "skip": lambda: cycles[0].mark_skipped(EXPERIMENT, 2, "late", needed=True),
    }

    def requests() -> dict[str, int]:
        found = {}
        for name, operation in operations.items():
            before = len(asked)
            operation()
            found[name] = len(asked) - before
        return found

    few = requests()
    for k in range(12):
        commit(f"more-{k}")
    assert requests() == few
    assert few["commit"] <= 40, few
    assert max(few["is committed"], few["cycles"], few["skip"]) <= 8, few
    assert len(root.runs("nightly")) == 15
