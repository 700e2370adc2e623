"""What the terminal and Markdown say of recorded runs: a changed word shows in the diff of golden/."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.report.golden import GOLDEN, made
from tests.report.runs import RUNS


@pytest.mark.parametrize("name", RUNS)
def test_a_recorded_run_is_told_as_it_was(name: str, tmp_path: Path) -> None:
    frozen = {file.name: file.read_text() for file in (GOLDEN / name).iterdir()}
    assert made(name, tmp_path) == frozen, (
        "read the change, then `python -m tests.report.golden` and read its diff"
    )
