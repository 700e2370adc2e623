from __future__ import annotations

import re
import uuid
from pathlib import Path

import pytest

from llem_airflow.results.folder import Folder, ResultReadError


def test_a_file_that_was_not_written_to_its_end_never_appears(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path)
    folder.write("summary.json", b"old")

    def interrupted() -> None:
        with folder.atomic_write("summary.json") as file:
            file.write(b"ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert folder.read("summary.json") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (None, "is missing"),
        (b"{", "not JSON: "),
        (b"\xff", "not JSON: "),
        (b"[" * 100_000, "not JSON: "),
        (b"[]", "expected an object"),
    ],
)
@pytest.mark.parametrize("kind", ["file", "memory"])
def test_a_file_that_is_no_object_is_named(data: bytes | None, said: str, kind: str, tmp_path: Path) -> None:
    folder = Folder.at(tmp_path if kind == "file" else f"memory://{tmp_path.name}-{uuid.uuid4().hex}")
    if data is not None:
        folder.write("run.json", data)
    with pytest.raises(ResultReadError, match=f"^{re.escape(folder.url)}/run.json: {re.escape(said)}"):
        folder.read_object("run.json")
    if data is None:
        assert folder.read_object("run.json", optional=True) == {}
