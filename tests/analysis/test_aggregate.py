from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llem_airflow.analysis.aggregate import aggregate_run
from llem_airflow.analysis.summary import Summary
from llem_airflow.analysis.tables import cycle_rows
from llem_airflow.protocol.result import CycleResult
from llem_airflow.report.page import report_html
from llem_airflow.results import StoredRun
from tests.analysis.conftest import IDS, MakeRun, run_maker
from tests.results import roots
from tests.results.recorded import EPOCH_NS, Recording, S, provenance

ALL = {(index, cycle): Recording() for index in (0, 1) for cycle in (1, 2)}
FILES = ("summary.json", "cycles.parquet", "experiments.parquet", "power.parquet", "report.html")


@pytest.fixture(params=["file", "s3"])
def make_run(request: pytest.FixtureRequest, tmp_path: Path) -> MakeRun:
    """What holds in a folder holds on S3."""
    return run_maker(roots.new_root(request.param, request, tmp_path), tmp_path)


def _table(run: StoredRun, name: str) -> Any:
    with run.folder.open(name) as file:
        return pq.read_table(file)


def _cycles(run: StoredRun) -> dict[tuple[str, int], dict[str, object]]:
    rows = _table(run, "cycles.parquet").to_pylist()
    return {(row["experiment"], row["cycle"]): row for row in rows}


def test_known_power_tokens_and_times_give_hand_computed_metrics(make_run: MakeRun) -> None:
    run = make_run(ALL)
    aggregate_run(run)
    row = _cycles(run)[IDS[0], 1]
    # 200 W for 40 s; 20 requests of 11 tokens out and 16 in; TTFT 0.5 s, then 10 gaps of 0.1 s.
    assert row["status"] == "valid"
    assert row["energy_source"] == "counter"
    assert row["energy_j"] == pytest.approx(8000.0, rel=0.005)
    assert row["average_power_w"] == pytest.approx(200.0, rel=0.005)
    assert row["energy_per_output_token_j"] == pytest.approx(8000 / 220, rel=0.005)
    assert row["energy_per_total_token_j"] == pytest.approx(8000 / 540, rel=0.005)
    assert row["energy_per_request_j"] == pytest.approx(400.0, rel=0.005)
    assert row["output_tokens_per_s"] == pytest.approx(5.5)
    assert row["ttft_mean_s"] == pytest.approx(0.5)
    assert row["tpot_p95_s"] == pytest.approx(0.1)
    assert row["itl_p99_s"] == pytest.approx(0.1)
    assert row["e2el_p50_s"] == pytest.approx(1.5)
    assert (row["load_s"], row["warmup_s"], row["window_s"]) == (5.0, 10.0, 40.0)


def test_the_summary_counts_cycles_and_reads_back(make_run: MakeRun) -> None:
    run = make_run({key: Recording(power_w=200.0 + 10 * key[1]) for key in ALL})
    summary = aggregate_run(run)
    assert (summary.planned, summary.valid, summary.missing) == (4, 4, ())
    assert Summary.from_json(run.summary() or {}) == summary
    energy = summary.experiments[0].metric("average_power_w")
    assert energy is not None
    assert energy.all.n == 2
    assert energy.all.mean == pytest.approx(215.0, rel=0.005)
    assert summary.experiments[0].factors == {"transformers.batch_size": 1}


def test_a_missing_a_failed_and_a_missed_cycle_are_rows_with_a_reason(
    make_run: MakeRun, tmp_path: Path
) -> None:
    run = make_run({(0, 1): Recording()})
    failed = {"category": "crash", "message": "segfault", "hint": "", "retryable": True}
    missed = {"category": "gpu_unavailable", "message": "0 of 1 GPUs free", "hint": "", "retryable": True}
    run.commit_failed(IDS[0], 2, 1, tmp_path / "absent", provenance() | {"failure": failed})
    run.commit_failed(IDS[1], 1, 1, tmp_path / "absent", provenance() | {"failure": missed})
    summary = aggregate_run(run)
    assert [(m["experiment"], m["cycle"], m["status"], m["reason"]) for m in summary.missing] == [
        (IDS[1], 1, "missed", "gpu_unavailable: 0 of 1 GPUs free"),
        (IDS[0], 2, "failed", "crash: segfault"),
        (IDS[1], 2, "missing", "no attempt left a result or an error"),
    ]
    assert len(_cycles(run)) == 4
    assert {row["engine"] for row in _cycles(run).values()} == {"transformers"}


def test_points_that_the_study_left_out_are_rows(make_run: MakeRun) -> None:
    run = make_run(ALL)
    plan = run.plan() | {
        "skipped": [{"rule": "r1", "reason": "no fp8 on this GPU", "point": {"dtype": "fp8"}}]
    }
    run.write_plan("model: tiny\n", plan, {"dag_id": "nightly"})
    aggregate_run(run)
    skipped = [row for row in _table(run, "cycles.parquet").to_pylist() if row["status"] == "skipped"]
    assert [row["reason"] for row in skipped] == ['no fp8 on this GPU ({"dtype": "fp8"})']


def test_the_merged_series_keeps_every_sample_on_absolute_time(make_run: MakeRun) -> None:
    run = make_run({(0, 1): Recording(gpus=("GPU-a", "GPU-b")), (1, 1): Recording()}, cycles=1)
    summary = aggregate_run(run)
    table = _table(run, "power.parquet")
    each = len(Recording().sample_times_s())
    assert summary.power_rows == table.num_rows == 3 * each
    first = table.slice(0, 1).to_pylist()[0]
    assert (first["experiment"], first["cycle"], first["phase"], first["gpu"]) == (IDS[0], 1, "load", "GPU-a")
    assert table.column("t_epoch").cast("int64")[0].as_py() == EPOCH_NS
    assert table.column("t_epoch").cast("int64")[each * 2 - 1].as_py() == EPOCH_NS + 57 * S
    phases = table.column("phase").cast("string").to_pylist()
    assert set(phases) == {"load", "warmup", "measure", "cooldown"}
    assert phases.count("measure") == 3 * 400


@pytest.mark.parametrize("damage", ["absent", "empty", "corrupt"])
def test_a_bad_power_series_of_one_cycle_never_loses_the_others(make_run: MakeRun, damage: str) -> None:
    run = make_run(ALL)
    bad = run.cycles()[0].folder
    if damage == "absent":
        bad.fs.rm(f"{bad.path}/power.parquet")
    else:
        bad.write("power.parquet", b"" if damage == "empty" else b"PAR1" + b"\0" * 400)
    summary = aggregate_run(run)
    assert summary.valid == 3
    assert summary.power_rows == 3 * len(Recording().sample_times_s())
    assert [(item["experiment"], item["cycle"]) for item in summary.power_absent] == [(IDS[0], 1)]
    row = _cycles(run)[IDS[0], 1]
    assert row["status"] == "invalid_energy"
    assert row["energy_j"] is None
    assert row["ttft_mean_s"] == pytest.approx(0.5)


@pytest.mark.parametrize("change", ["backwards", "without a column"])
def test_samples_that_cannot_be_copied_as_they_are_are_merged_all_the_same(
    make_run: MakeRun, change: str
) -> None:
    run = make_run(ALL)
    aggregate_run(run)
    before = _table(run, "power.parquet")
    folder = run.cycles()[0].folder
    with folder.open("power.parquet") as file:
        table = pq.read_table(file)
    table = table.drop(["sm_clock_mhz"]) if change == "without a column" else table[::-1]
    with folder.atomic_write("power.parquet") as file:
        pq.write_table(table, file)
    summary = aggregate_run(run)
    after = _table(run, "power.parquet")
    assert (summary.valid, summary.power_rows) == (4, before.num_rows)
    assert "power_series_changed" in [doubt.code for doubt in summary.experiments[0].doubts]
    assert "power_series_changed" not in [doubt.code for doubt in summary.experiments[1].doubts]
    for name in before.column_names:
        if name != "sm_clock_mhz" or change == "backwards":
            assert after.column(name).cast(pa.string()) == before.column(name).cast(pa.string()), name
    lost = table.num_rows if change == "without a column" else 0
    assert after.column("sm_clock_mhz").null_count == lost


def test_a_result_that_cannot_be_read_is_a_row(make_run: MakeRun) -> None:
    run = make_run(ALL)
    run.cycles()[0].folder.write("result.json", b"{")
    summary = aggregate_run(run)
    assert summary.valid == 3
    assert summary.missing[0]["status"] == "damaged"
    assert "result.json: not JSON" in summary.missing[0]["reason"]
    assert summary.power_absent == (
        {"experiment": IDS[0], "cycle": 1, "reason": summary.missing[0]["reason"]},
    )


def test_requests_that_disagree_with_the_result_are_flagged(make_run: MakeRun) -> None:
    run = make_run(ALL)
    ref = run.cycles()[0]
    data = json.loads(ref.folder.read("result.json"))
    data["window"]["output_tokens"] = 999
    ref.folder.write("result.json", json.dumps(data).encode())
    assert CycleResult.loads(json.dumps(data)).window.output_tokens == 999
    assert "requests_disagree" in {doubt.code for doubt in aggregate_run(run).experiments[0].doubts}


def test_times_that_run_backwards_are_no_latency_but_a_flag(make_run: MakeRun) -> None:
    run = make_run({(0, 1): Recording(ttft_s=-0.2), (0, 2): Recording()}, cycles=2)
    summary = aggregate_run(run)
    doubt = next(one for one in summary.experiments[0].doubts if one.code == "clock_backwards")
    assert doubt.cycles == (1,)
    assert "the times of 20 of 20 requests run backwards" in doubt.message
    first, second = (row for row in cycle_rows(run) if row["experiment"] == IDS[0])
    assert [first[name] for name in ("ttft_mean_s", "tpot_mean_s", "itl_mean_s", "e2el_mean_s")] == [None] * 4
    assert second["ttft_mean_s"] == pytest.approx(0.5)
    assert first["output_tokens_per_s"] == second["output_tokens_per_s"]


def test_percentiles_are_absent_from_the_tables_below_their_smallest_number(make_run: MakeRun) -> None:
    run = make_run({(0, 1): Recording(requests=19), (0, 2): Recording(requests=20)}, cycles=2)
    aggregate_run(run)
    few, enough = (row for row in cycle_rows(run) if row["experiment"] == IDS[0])
    assert (few["ttft_p50_s"], few["ttft_p95_s"], few["ttft_p99_s"]) == (pytest.approx(0.5), None, None)
    assert (enough["ttft_p95_s"], enough["ttft_p99_s"]) == (pytest.approx(0.5), None)
    assert enough["itl_p99_s"] == pytest.approx(0.1)  # 200 gaps


def test_aggregating_again_gives_the_same_bytes(make_run: MakeRun) -> None:
    run = make_run(ALL)
    aggregate_run(run, page=report_html)
    first = {name: run.folder.read(name) for name in FILES}
    aggregate_run(run, page=report_html)
    assert {name: run.folder.read(name) for name in FILES} == first


def test_nothing_is_left_beside_the_documented_files(make_run: MakeRun) -> None:
    run = make_run(ALL)
    aggregate_run(run, page=report_html)
    assert {*run.folder.files(), *run.folder.folders()} == {
        *FILES,
        "experiments",
        "study.yaml",
        "plan.json",
        "run.json",
    }


def test_no_meter_is_valid_and_has_no_energy(make_run: MakeRun) -> None:
    run = make_run(dict.fromkeys(ALL, Recording(meter_kind="none")))
    summary = aggregate_run(run)
    assert (summary.valid, summary.energy_kind) == (4, "none")
    assert summary.experiments[0].metric("energy_j") is None


def test_cycles_with_warnings_are_counted_and_shown_apart(make_run: MakeRun) -> None:
    short = Recording(window_s=12, requests=6)
    run = make_run({(0, 1): Recording(), (0, 2): short, (0, 3): Recording(), (1, 1): Recording()}, cycles=3)
    energy = aggregate_run(run).experiments[0].metric("energy_per_output_token_j")
    assert energy is not None
    assert energy.undoubted is not None
    assert (energy.all.n, energy.undoubted.n) == (3, 2)


def test_a_run_without_any_result_still_has_a_report(make_run: MakeRun) -> None:
    run = make_run({})
    summary = aggregate_run(run, page=report_html)
    assert (summary.valid, len(summary.missing)) == (0, 4)
    page = run.folder.read("report.html").decode()
    assert summary.answer is not None
    assert summary.answer in page
    assert "nothing" in summary.answer.lower()
