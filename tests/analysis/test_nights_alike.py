"""Runs that are read one after the other take from each other only what is the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llem_airflow.analysis.nights import Alike, Measured, measured
from llem_airflow.results import ResultsRoot, StoredRun, layout

METRIC = "energy_j"
TABLE: Mapping[str, list[Any]] = {
    "experiment": ["a-1", "a-1", "b-2", "b-2"],
    "hash": ["1", "1", "2", "2"],
    "status": ["valid"] * 4,
    "fingerprint": ['{"engine": "vllm"}'] * 4,
    "host": ["gpu1"] * 4,
    METRIC: [1.0, 2.0, 3.0, 4.0],
}
OTHER: Mapping[str, list[Any]] = {
    "experiment": ["a-1", "a-1", "c-2", "c-2"],
    "hash": ["1", "1", "3", "3"],
    "status": ["valid", "failed", "valid", "valid"],
    "fingerprint": ['{"engine": "vllm"}', None, '{"engine": "other"}', '{"engine": "vllm"}'],
    "host": ["gpu1", "gpu2", None, "gpu1"],
    METRIC: [None, 2.0, 3.0, 4.0],
}


def run(root: ResultsRoot, name: str, **changes: list[Any]) -> StoredRun:
    made = root.run("nightly", name)
    Path(made.folder.path).mkdir(parents=True)
    pq.write_table(pa.table({**TABLE, **changes}), f"{made.folder.path}/{layout.CYCLES_TABLE}")
    return made


def test_of_runs_that_differ_in_values_alone_only_the_values_are_read(tmp_path: Path) -> None:
    root, alike = ResultsRoot(tmp_path), Alike()
    (a, b) = measured(run(root, "r1"), METRIC, alike)
    (c, d) = measured(run(root, "r2", **{METRIC: [5.0, 6.0, 7.0, 8.0]}), METRIC, alike)
    assert len(alike) == 1
    assert [a.values, b.values, c.values, d.values] == [(1.0, 2.0), (3.0, 4.0), (5.0, 6.0), (7.0, 8.0)]
    assert c == Measured("a-1", "1", (5.0, 6.0), a.conditions, {"engine": "vllm"})
    assert d._replace(values=b.values) == b


@pytest.mark.parametrize("column", OTHER)
def test_a_run_that_differs_in_something_else_is_read_for_itself(tmp_path: Path, column: str) -> None:
    root, alike = ResultsRoot(tmp_path), Alike()
    other = run(root, "r2", **{column: OTHER[column]})
    before = measured(run(root, "r1"), METRIC, alike)
    after = measured(other, METRIC, alike)
    assert after == measured(other, METRIC)
    assert after != before
    assert measured(run(root, "r3"), METRIC, alike) == before


def test_nights_that_all_differ_do_not_fill_the_memory(tmp_path: Path) -> None:
    root, alike = ResultsRoot(tmp_path), Alike()
    for night in range(40):
        (one, _) = measured(run(root, f"r{night}", host=[f"gpu{night}"] * 4), METRIC, alike)
        assert one.values == (1.0, 2.0)
    assert len(alike) <= 16
