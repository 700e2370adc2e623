"""What the check of a run says of files that are gone, changed or do not agree, and what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llem_airflow.analysis.aggregate import aggregate_run
from llem_airflow.analysis.cycle import Cycle
from llem_airflow.analysis.flags import Flag
from llem_airflow.analysis.integrity import Problem, check_run
from llem_airflow.analysis.rate_search import _answer, stored_answer
from llem_airflow.results import StoredRun, layout
from tests.analysis.conftest import IDS, MakeRun
from tests.results.recorded import Recording

BACKUP = "restore it from a backup or measure the cycle again"


@pytest.fixture
def run(make_run: MakeRun) -> StoredRun:
    made = make_run({(0, 1): Recording(), (1, 1): Recording()}, cycles=1)
    aggregate_run(made)
    assert check_run(made) == []
    return made


def folder(run: StoredRun, experiment: int = 0) -> Path:
    ref = run.cycle(IDS[experiment], 1)
    assert ref is not None
    assert ref.folder.local is not None
    return ref.folder.local


def changed(run: StoredRun, column: str, values: list[object], table: str = layout.CYCLES_TABLE) -> None:
    with run.folder.open(table) as file:
        read = pq.read_table(file)
    at = read.schema.get_field_index(column)
    field = read.schema.field(at)
    write(run, table, read.set_column(at, field, pa.array(values, field.type)))


def write(run: StoredRun, name: str, table: pa.Table) -> None:
    with run.folder.atomic_write(name) as file:
        pq.write_table(table, file)


def test_a_run_that_was_not_aggregated_is_told_beside_its_files(make_run: MakeRun) -> None:
    run = make_run({(0, 1): Recording()}, cycles=1)
    (folder(run) / "power.parquet").unlink()
    assert check_run(run) == [
        Problem(f"{run.cycle(IDS[0], 1).folder.url}/power.parquet", "is missing", BACKUP),  # type: ignore[union-attr]
        Problem(run.url, "the run was not aggregated", f"`llem-airflow report {run.url}` does it"),
    ]


def test_files_that_changed_or_are_gone_or_have_no_hashes_are_told(run: StoredRun) -> None:
    one, other = folder(run), folder(run, 1)
    environment = one / "environment.json"
    environment.write_text(environment.read_text() + " ")
    provenance = json.loads((other / layout.PROVENANCE).read_text())
    (other / layout.PROVENANCE).write_text(json.dumps({**provenance, "sha256": None}))
    first, second = check_run(run)
    assert first == Problem(str(environment), "was changed after it was stored", BACKUP)
    assert (second.where, second.what) == (str(other / layout.PROVENANCE), "has no hashes")
    assert second.next_step == "the commit was made by another program; nothing vouches for these files"


def test_notes_of_the_commit_are_told(run: StoredRun) -> None:
    path = folder(run) / layout.PROVENANCE
    told = json.loads(path.read_text())
    path.write_text(json.dumps({**told, "storage_notes": ["power.csv: kept as it is"]}))
    assert check_run(run) == [
        Problem(str(path), "power.csv: kept as it is", "look at the stream that it names")
    ]
    path.write_text(json.dumps({**told, "storage_notes": "odd"}))
    assert check_run(run) == []


def test_joules_that_do_not_come_out_again_are_told(run: StoredRun) -> None:
    """200 W for 40 s; a millionth of it is the rounding of another machine."""
    changed(run, "energy_j", [8000.0 * (1 + 9e-7), 8000.0 * (1 - 2e-6)])
    (problem,) = check_run(run)
    assert problem.what.startswith("integrates to 8000.0")
    assert problem.what.endswith(" J, the table says 7999.984 J")
    assert problem.next_step == "aggregate again: `llem-airflow report RUN --again`"
    changed(run, "energy_j", [None, 8000.0])
    assert [one.what.rpartition(", ")[2] for one in check_run(run)] == ["the table says None J"]


def test_a_table_that_does_not_open_or_has_other_rows_is_told(run: StoredRun) -> None:
    step = f"aggregate again: `llem-airflow report {run.url} --again`"
    with run.folder.open(layout.POWER_TABLE) as file:
        rows = pq.read_table(file)
    write(run, layout.POWER_TABLE, rows.slice(0, 1))
    assert check_run(run) == [
        Problem(f"{run.url}/{layout.POWER_TABLE}", f"has 1 row, the summary says {len(rows)}", step)
    ]
    write(run, layout.POWER_TABLE, rows)
    run.folder.write(layout.EXPERIMENTS_TABLE, b"PAR1")
    (problem,) = check_run(run)
    assert (problem.where, problem.next_step) == (f"{run.url}/{layout.EXPERIMENTS_TABLE}", step)
    assert problem.what.startswith("does not open: ")
    assert "\n" not in problem.what
    run.folder.write(layout.CYCLES_TABLE, b"PAR1")  # then no number is looked at
    assert [one.where for one in check_run(run)] == [
        f"{run.url}/{layout.CYCLES_TABLE}",
        f"{run.url}/{layout.EXPERIMENTS_TABLE}",
    ]


def test_evidence_that_is_gone_and_rows_that_are_missing_are_told(run: StoredRun) -> None:
    changed(run, "experiment", [IDS[0], "gone"])
    lost, rowless = check_run(run)
    assert lost == Problem(f"{run.url}: gone cycle 1", "its evidence is gone", "restore it from a backup")
    assert rowless.what == f"has no row in {layout.CYCLES_TABLE}"
    changed(run, "status", ["valid", "missing"])
    assert check_run(run) == [rowless]  # nothing was there to be lost


def test_a_fingerprint_that_lacks_conditions_is_told(run: StoredRun) -> None:
    """The runner is the worker's to tell: a program that did not makes a cycle less comparable."""
    path = folder(run) / layout.PROVENANCE
    told = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in told.items() if name != "runner"}))
    (problem,) = check_run(run)
    assert problem == Problem(
        str(folder(run)),
        "its fingerprint lacks runner",
        "comparisons with this cycle see less than they should",
    )


# the answer of stored cycles to a search


def served(met: float | None, *codes: str) -> Cycle:
    flags = tuple(Flag(code, "", "", "", "warning") for code in codes)
    return Cycle("a", 1, "valid", measures={"slo_met_ratio": met}, flags=flags)


@pytest.mark.parametrize(
    ("rows", "answer"),
    [
        ([], None),
        ([served(None)], None),
        ([served(None), served(1.0)], True),
        ([served(1.0, "gap"), served(1.0)], True),
        ([served(1.0), served(0.0)], False),
        ([served(1.0), served(1.0, "gap", "saturated")], False),
    ],
)
def test_a_rate_meets_the_slo_where_every_cycle_does_and_none_was_saturated(
    rows: list[Cycle], answer: bool | None
) -> None:
    assert _answer(rows) is answer


def test_cycles_of_batches_and_absent_ones_answer_nothing(run: StoredRun) -> None:
    assert stored_answer(run, IDS[0], [1, 2]) is None
