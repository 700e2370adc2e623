"""The report tells what the prefix cache made of prompts that begin alike."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llem_airflow.analysis.aggregate import aggregate_run
from llem_airflow.analysis.tables import cycle_rows
from llem_airflow.report.page import report_html
from tests.analysis.test_empty_answers import stored


@pytest.mark.parametrize("prefix_tokens", [None, 0, 64])
def test_a_shared_prefix_is_told_with_the_state_of_the_cache(
    tmp_path: Path, prefix_tokens: int | None
) -> None:
    def change(folder: Path) -> None:
        (path,) = folder.glob("*_config.json")
        spec = json.loads(path.read_text())
        spec["config"]["task"]["dataset"] = {"source": "synthetic:8x8", "prefix_tokens": prefix_tokens}
        path.write_text(json.dumps(spec))

    run = stored(tmp_path, change)
    (row,) = cycle_rows(run)
    assert ("prefix_cache" in row["flags"]) == bool(prefix_tokens)
    assert row["status"] == "valid"
    aggregate_run(run, page=report_html)
    (page,) = tmp_path.rglob("report.html")
    said = "the shared prefix of 64 tokens is computed for every request"
    assert (said in page.read_text()) == bool(prefix_tokens)
