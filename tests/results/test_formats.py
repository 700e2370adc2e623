"""Formats stay: what was stored is read as it was then, and what is stored now has the same files and columns.

They grow by fields that are null where there is nothing to say; none goes and none changes its type.
"""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from llem_airflow.analysis.aggregate import aggregate_run
from llem_airflow.analysis.integrity import check_run
from llem_airflow.analysis.summary import load_summary
from llem_airflow.analysis.tables import cycle_rows
from llem_airflow.frames.tables import export_table
from llem_airflow.report.page import report_html
from llem_airflow.results import ResultsRoot, StoredRun
from llem_airflow.results.store import locate_run
from tests.results.recorded import EPOCH_NS, S
from tests.results.stored import FROZEN, IDS, make

EXPORTS = FROZEN.parent / "stored_exports"
RUN_ID = "manual__2026-01-02T03:04:05+00:00"
PARQUET = sorted(path.relative_to(FROZEN).as_posix() for path in FROZEN.rglob("*.parquet"))
JSON = sorted(
    path.relative_to(FROZEN).as_posix() for path in FROZEN.rglob("*.json") if path.name != "summary.json"
)
TABLES = ("cycles.parquet", "experiments.parquet")
"""Their columns grow with the metrics; none goes and none changes its type."""


@pytest.fixture
def frozen(tmp_path: Path) -> StoredRun:
    shutil.copytree(FROZEN, tmp_path / "frozen")
    (run,) = ResultsRoot(tmp_path / "frozen").runs()
    return run


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same evidence as the release of today stores it."""
    root = tmp_path_factory.mktemp("written")
    make(root)
    return root


def test_a_run_of_then_is_listed_and_found(frozen: StoredRun) -> None:
    assert (frozen.study, frozen.run_id) == ("nightly", RUN_ID)
    assert frozen.study_text() == "model: tiny\n"
    assert frozen.meta()["dag_id"] == "nightly"
    assert (frozen.plan()["cycles"], [item["id"] for item in frozen.plan()["experiments"]]) == (3, list(IDS))
    assert (frozen.started_epoch_ns(), frozen.last_finished_epoch_ns()) == (EPOCH_NS, EPOCH_NS + 300 * S)
    root = ResultsRoot(frozen.folder.path.rsplit("/", 2)[0])
    assert locate_run("latest", root) == locate_run(f"nightly/{RUN_ID}", root) == frozen
    assert root.find_run("nightly", RUN_ID) == frozen


def test_its_cycles_failures_and_reasons_read_back(frozen: StoredRun) -> None:
    refs = frozen.cycles(repeats=True)
    assert [(ref.experiment_id, ref.cycle, ref.repeat) for ref in refs] == [
        (IDS[0], 1, 0),
        (IDS[0], 1, 1),
        (IDS[0], 2, 0),
        (IDS[1], 1, 0),
    ]
    for ref in refs:
        folder = Path(ref.folder.path)
        for record, name in ((ref.result(), "result.json"), (ref.config(), "config.json")):
            then = json.loads((folder / name).read_text())
            assert _without_new(json.loads(record.dumps()), then) == then
        assert ref.requests().equals(pq.read_table(folder / "requests.parquet"))
        assert len(ref.events()) == 8
        assert ref.environment()["python"] == "3.11.9"
    repeated = refs[1]
    assert repeated.power().equals(pq.read_table(Path(repeated.folder.path) / "power.parquet"))
    assert repeated.power(["gpu"]).column_names == ["gpu"]
    check = repeated.check()
    assert check is not None
    assert (check[0].devices, check[1].num_rows) == (("GPU-1", "GPU-2"), 62)
    (failure,) = frozen.failures()
    assert (failure.experiment_id, failure.cycle, failure.attempt) == (IDS[1], 1, 1)
    assert failure.reason() == ("engine", "boom")
    assert frozen.skipped(needed=False) == {(IDS[1], 2): "not needed: half width 0.1 % after 1 cycle"}
    assert frozen.skipped(needed=True) == {(IDS[1], 3): "not begun: outside the time-of-day window"}


def test_its_evidence_is_whole_and_its_summary_is_shown(frozen: StoredRun) -> None:
    unreadable, noted = check_run(frozen)
    assert unreadable.what.startswith(f"{unreadable.where}/power.parquet: cannot be read: ")
    assert (unreadable.where.rsplit("/", 1)[1], noted.where.rsplit("/", 2)[1]) == ("cycle-2", "cycle-2")
    assert noted.what.startswith("power.csv: kept as it is, because it could not be converted: ")
    summary = load_summary(frozen)
    assert summary is not None
    assert (summary.valid, summary.planned, summary.power_rows) == (2, 5, 93)
    assert [experiment.id for experiment in summary.experiments] == list(IDS)


@pytest.mark.parametrize("table", ["cycles", "experiments", "power", "reliability"])
def test_its_tables_are_exported_as_they_were_then(frozen: StoredRun, table: str) -> None:
    target = io.BytesIO()
    export_table(frozen, table, "csv", target)
    assert target.getvalue().decode() == (EXPORTS / f"{table}.csv").read_text()


def test_aggregated_again_it_has_the_same_numbers_and_samples(frozen: StoredRun) -> None:
    before, power = cycle_rows(frozen), _rows(frozen, "power.parquet")
    aggregate_run(frozen, page=report_html)
    kept = ("experiment", "cycle", "status", "energy_j", "energy_source", "output_tokens_per_s", "ttft_p50_s")
    assert [[row[name] for name in kept] for row in cycle_rows(frozen)] == [
        [row[name] for name in kept] for row in before
    ]
    assert _rows(frozen, "power.parquet") == power


def test_what_is_stored_now_has_the_same_files(written: Path) -> None:
    assert _files(written) == _files(FROZEN)


@pytest.mark.parametrize("name", PARQUET)
def test_what_is_stored_now_has_the_same_columns_types_and_metadata(written: Path, name: str) -> None:
    then, now = pq.read_table(FROZEN / name), pq.read_table(written / name)
    assert now.schema.metadata == then.schema.metadata
    if name.endswith(TABLES):
        assert [field for field in then.schema if field not in list(now.schema)] == []
    else:
        assert now.select(then.column_names).schema.equals(then.schema)
        assert now.select(then.column_names).to_pylist() == then.to_pylist()
        new = [name for name in now.column_names if name not in then.column_names]
        assert {name: now[name].null_count for name in new} == dict.fromkeys(new, now.num_rows)


@pytest.mark.parametrize("name", JSON)
def test_what_is_stored_now_says_the_same(written: Path, name: str) -> None:
    then = _said(FROZEN / name)
    assert _without_new(_said(written / name), then) == then


def _files(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def _rows(run: StoredRun, name: str) -> Any:
    return pq.read_table(Path(run.folder.path) / name).to_pylist()


def _without_new(now: Any, then: Any) -> Any:
    """What is stored now, without the fields that were not known then and are null."""
    if not isinstance(now, dict) or not isinstance(then, dict):
        return now
    return {
        key: _without_new(value, then.get(key))
        for key, value in now.items()
        if key in then or value is not None
    }


def _said(file: Path) -> Any:
    """Without the release's version and the hashes of what grows (results) or depends on pyarrow (Parquet)."""
    text = re.sub(r"llem-airflow [\w.+-]+", "llem-airflow", file.read_text())
    return json.loads(re.sub(r'((?:\.parquet|result\.json)": )"[0-9a-f]{64}"', r"\1null", text))
