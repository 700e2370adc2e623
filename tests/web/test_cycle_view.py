"""The page of a cycle: its values are those of the stored files, and a zoom loses no extreme."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llem_airflow.analysis.cycle import read_cycle
from llem_airflow.frames import requests_df
from llem_airflow.results import CycleRef, ResultReadError, layout
from llem_airflow.results.parquet import POWER_SCHEMA
from llem_airflow.web.cycle_view import POINTS, PowerSeries, cycle_requests, cycle_view
from llem_airflow.web.kept import Kept
from tests.analysis.conftest import IDS, MakeRun, make_run
from tests.results.recorded import GPU, Recording
from tests.web.conftest import Site

__all__ = ["make_run"]

ASKED: dict[str, Any] = {"dag_id": "nightly", "run_id": "r1", "experiment": IDS[0], "cycle": 1}


def spike(t_s: float) -> float:
    return 777.0 if 30.0 <= t_s % 1000 < 30.1 else 200.0


def cycle_of(make: MakeRun, recording: Recording) -> CycleRef:
    ref = make({(0, 1): recording}, cycles=1).cycle(IDS[0], 1)
    assert ref is not None
    return ref


def samples(ref: CycleRef, count: int, watts: Any) -> None:
    """Power of a cycle replaced by so many samples over its 57 s."""
    t_ns = (1000 * 10**9 + np.linspace(0, 57e9, count)).astype(np.int64)
    values: dict[str, Any] = {
        name: pa.nulls(count, kind) for name, kind in zip(POWER_SCHEMA.names, POWER_SCHEMA.types, strict=True)
    }
    values |= {
        "t_before_mono_ns": t_ns,
        "t_after_mono_ns": t_ns,
        "gpu": pa.array([GPU] * count).dictionary_encode(),
    }
    values["power_instant_mw"] = pa.array((watts * 1000).astype(np.int32))
    with ref.folder.atomic_write(layout.POWER) as file:
        pq.write_table(pa.table(values).cast(POWER_SCHEMA), file)


def test_the_numbers_flags_and_files_are_those_of_the_stored_cycle(make_run: MakeRun) -> None:
    ref = cycle_of(make_run, Recording())
    run = make_run({}, cycles=1)
    found = cycle_view(run, IDS[0], 1, Kept(), with_tails=True)["measured"]
    row, _ = read_cycle(ref, position=None, failed_attempts=0)
    told = {metric["name"]: metric["value"] for metric in found["metrics"]}
    assert told == {name: value for name, value in row.measures.items() if value is not None}
    assert [flag["code"] for flag in found["flags"]] == [flag.code for flag in row.flags]
    assert {file["name"] for file in found["files"]} >= {"result.json", "power.parquet", "container.log"}
    assert found["environment"]["driver"] == "580.65.06"
    assert found["characterised"] == row.characterised == "not characterised"
    assert cycle_view(run, IDS[1], 1, Kept(), with_tails=True)["measured"] is None


def test_what_was_measured_is_worked_out_again_only_when_the_result_has_changed(make_run: MakeRun) -> None:
    ref = cycle_of(make_run, Recording())
    run, kept = make_run({}, cycles=1), Kept()
    first = cycle_view(run, IDS[0], 1, kept, with_tails=True)["measured"]
    ref.folder.write(layout.POWER, b"damaged")
    assert cycle_view(run, IDS[0], 1, kept, with_tails=True)["measured"] == first
    result = json.loads(ref.folder.read(layout.RESULT))
    ref.folder.write(layout.RESULT, json.dumps(result, indent=3).encode())
    assert cycle_view(run, IDS[0], 1, kept, with_tails=True)["measured"] != first


def test_a_zoom_keeps_the_extremes_and_tells_every_sample_when_it_is_close(make_run: MakeRun) -> None:
    ref = cycle_of(make_run, Recording(power_w=spike))
    count = 200_000
    watts = 200 + np.random.default_rng(1).normal(0, 5, count)
    watts[123_456], watts[77_777] = 999.0, 3.0
    samples(ref, count, watts)
    series = PowerSeries()
    whole = series.between(ref, None, None)
    (gpu,) = whole["gpus"]
    shown = gpu["series"]["power_w"]
    assert len(shown["values"]) <= POINTS + 2
    assert (max(shown["values"]), min(shown["values"])) == (999.0, 3.0)
    assert whole["samples"] == count
    at_s = 123_456 / (count - 1) * 57
    near = series.between(ref, at_s - 0.05, at_s + 0.05)
    assert 300 < near["samples"] == len(near["gpus"][0]["series"]["power_w"]["values"]) < POINTS
    assert max(near["gpus"][0]["series"]["power_w"]["values"]) == 999.0
    assert [phase["name"] for phase in whole["phases"]] == ["load", "warmup", "measure", "cooldown"]
    assert (whole["phases"][2]["begin_s"], whole["phases"][2]["end_s"]) == (15.0, 55.0)


def test_a_stretch_outside_of_the_series_is_cut_to_it_and_an_empty_one_is_empty(make_run: MakeRun) -> None:
    ref = cycle_of(make_run, Recording())
    found = PowerSeries().between(ref, -50.0, 1e9)
    assert (found["begin_s"], found["end_s"]) == (found["first_s"], found["last_s"])
    assert PowerSeries().between(ref, 500.0, 600.0)["samples"] == 0
    assert PowerSeries().between(ref, 9.0, 5.0)["samples"] == 0


def test_decoded_samples_are_kept_within_the_limit_and_read_again_when_the_file_changes(
    make_run: MakeRun,
) -> None:
    ref = cycle_of(make_run, Recording())
    series = PowerSeries(largest_samples=1)
    before = series.between(ref, None, None)["samples"]
    samples(ref, 10, np.full(10, 100.0))
    assert series.between(ref, None, None)["samples"] == 10 != before
    assert len(series._kept) == 1


def test_requests_stand_on_the_time_axis_of_the_power(make_run: MakeRun) -> None:
    ref = cycle_of(make_run, Recording(requests=20, ttft_s=0.5))
    run = make_run({}, cycles=1)
    found = cycle_requests(ref)
    frame = requests_df(run).query("phase == 'measure'")
    assert found["requests"] == len(frame) == 20
    assert found["shown"][0][0] == pytest.approx(15.0)
    assert sorted(found["latencies"]["ttft"]["values_s"]) == pytest.approx(sorted(frame["ttft_s"]))
    assert sorted(found["latencies"]["e2el"]["values_s"]) == pytest.approx(sorted(frame["e2el_s"]))


def test_what_cannot_be_read_is_told_by_its_name(make_run: MakeRun) -> None:
    ref = cycle_of(make_run, Recording())
    ref.folder.write(layout.POWER, b"PAR1")
    with pytest.raises(ResultReadError, match=r"power\.parquet"):
        PowerSeries().between(ref, None, None)


def test_files_of_a_cycle_are_downloads_under_their_own_names_alone(site: Site) -> None:
    run = site.stored({(0, 1): Recording()}, cycles=1)
    ref = run.cycle(IDS[0], 1)
    answer = site.get("/download/cycle", **ASKED, name="power.parquet")
    assert answer.content == ref.folder.read(layout.POWER)
    assert answer.headers["content-disposition"].startswith("attachment; ")
    rows = list(csv.DictReader(io.StringIO(site.get("/download/cycle", **ASKED, name="power.csv").text)))
    assert len(rows) == ref.power().num_rows
    assert float(rows[0]["power_instant_mw"]) == ref.power().column("power_instant_mw")[0].as_py()
    assert site.get("/download/cycle", **ASKED, name="result.json").json() == json.loads(
        ref.folder.read("result.json")
    )
    for name in ("../../run.json", "/etc/passwd", "result.csv", "", "cycle-1", "power.parquet.csv"):
        assert site.get("/download/cycle", **ASKED, name=name).status_code == 404
    assert site.get("/download/cycle", user="nightly-logs", **ASKED, name="container.log").status_code == 403
    assert site.get("/download/cycle", **ASKED, name="container.log").status_code == 200


def test_the_button_of_a_task_leads_to_the_page_of_its_cycle(site: Site) -> None:
    answer = site.client.get(
        "/cycle",
        params=ASKED | {"run_id": "m__2026-01-02T00:00:00+00:00"},
        headers={"x-user": "nightly"},
        follow_redirects=False,
    )
    assert answer.status_code == 307
    assert answer.headers["location"].endswith(
        f"/dags/nightly/runs/m__2026-01-02T00%3A00%3A00%2B00%3A00/plugin/llem-energy?view=cycle&cell={IDS[0]}.1"
    )
