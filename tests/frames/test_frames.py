"""Frames of what is stored: types, swept keys, several studies, what cannot be read."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llem_airflow.analysis.aggregate import MERGED_SCHEMA, PowerMerge, aggregate_run
from llem_airflow.frames import (
    FrameError,
    cycles_df,
    experiments_df,
    power_df,
    requests_df,
    runs_df,
)
from llem_airflow.frames.typed import column, kind_of, rows_table, typed
from llem_airflow.results import ResultsRoot, StoredRun
from llem_airflow.results.store import NoSuchRunError
from tests.analysis.conftest import IDS, MakeRun
from tests.results import roots
from tests.results.recorded import EPOCH_NS, Recording, plan_json, provenance

BATCH = "transformers.batch_size"
JITTER = (0.0, 0.4, -0.4)
AXIS = {"batch_size": [1, 4, 16]}

Many = Callable[..., StoredRun]


def whole(make_run: MakeRun, run_id: str = "r1") -> StoredRun:
    run = make_run(
        {(i, k): Recording(power_w=200.0 + JITTER[k - 1]) for i in (0, 1) for k in (1, 2, 3)},
        3,
        run_id=run_id,
    )
    aggregate_run(run)
    return run


def root_of(run: StoredRun) -> Path:
    assert run.path is not None
    return run.path.parents[1]


def measured(
    root: ResultsRoot, folder: Path, study: str, configs: list[dict[str, Any]], run_id: str = "r1"
) -> StoredRun:
    """A run of one cycle for each configuration."""
    run = root.run(study, run_id)
    named = [(f"e{n}-{n:08x}", f"{n:08x}00000000", config) for n, config in enumerate(configs)]
    run.write_plan(
        "task: {model: tiny}\n", plan_json(named, 1), {"dag_id": study, "started_epoch_ns": EPOCH_NS}
    )
    for number, (name, hash_, config) in enumerate(named):
        source = folder / f"{study}-{run_id}-{number}"
        Recording(hash=hash_, config=config, window_s=2.0).write(source)
        run.commit_cycle(name, 1, source, provenance(60.0 * number))
    aggregate_run(run)
    return run


def known(values: Any) -> list[Any]:
    return [None if pd.isna(value) else value for value in values]


def config(**keys: Any) -> dict[str, Any]:
    return {"engine": "transformers", "task": {"model": "tiny"}, "transformers": keys}


def test_a_run_is_a_row_with_its_state_and_counts(make_run: MakeRun) -> None:
    root = root_of(whole(make_run))
    make_run({(0, 1): Recording()}, run_id="r2")
    frame = runs_df(root)
    assert sorted(frame["run"]) == ["nightly/r1", "nightly/r2"]
    told = {row["run_id"]: row for row in frame.to_dict("records")}
    assert {name: row["state"] for name, row in told.items()} == {"r1": "done", "r2": "not aggregated"}
    assert [told["r1"][name] for name in ("planned", "valid", "experiments")] == [6, 6, 2]
    assert [told["r2"][name] for name in ("planned", "experiments")] == [4, 2]
    assert pd.isna(told["r2"]["valid"])
    assert str(frame["started"].dtype) == "datetime64[ns, UTC]"
    assert str(frame["valid"].dtype) == "Int64"


def test_the_numbers_are_those_of_the_summary(make_run: MakeRun) -> None:
    run = whole(make_run)
    summary = run.summary()
    assert summary is not None
    frame = experiments_df(run).set_index("experiment")
    for item in summary["experiments"]:
        for metric in item["metrics"]:
            name, said = metric["name"], metric["all"]
            row = frame.loc[item["id"]]
            assert row[name] == said["mean"]
            assert row[f"{name}_n"] == said["n"]
            assert (row[f"{name}_low"], row[f"{name}_high"]) == (
                said["interval"]["low"],
                said["interval"]["high"],
            )


def test_every_column_has_a_nullable_type_and_times_are_utc(make_run: MakeRun) -> None:
    run = whole(make_run)
    for frame in (
        runs_df(root_of(run)),
        experiments_df(run),
        cycles_df(run),
        requests_df(run),
        power_df(run),
    ):
        plain = {name: str(kind) for name, kind in frame.dtypes.items() if not is_nullable(kind)}
        assert plain == {}
    assert str(experiments_df(run)["energy_j_n"].dtype) == "Int64"
    assert cycles_df(run)["started"].tolist()[0] == pd.Timestamp(
        provenance(120.0)["started_epoch_ns"], tz="UTC"
    )


def is_nullable(kind: Any) -> bool:
    extension = isinstance(kind, (pd.api.extensions.ExtensionDtype, pd.CategoricalDtype))
    return extension and (not isinstance(kind, pd.DatetimeTZDtype) or str(kind.tz) == "UTC")


def test_a_swept_key_is_a_typed_column_of_every_frame_of_experiments(make_run: MakeRun) -> None:
    run = whole(make_run)
    for frame in (experiments_df(run), cycles_df(run), requests_df(run), power_df(run)):
        assert str(frame[BATCH].dtype) == "Int64"
        of_each = frame.groupby("experiment", observed=True)[BATCH].unique()
        assert {name: list(found) for name, found in of_each.items()} == {IDS[0]: [1], IDS[1]: [4]}


def test_several_studies_are_one_frame_and_a_key_of_one_is_not_known_in_another(tmp_path: Path) -> None:
    root = ResultsRoot(tmp_path / "results")
    a = measured(root, tmp_path, "a", [config(batch_size=size, dtype="float32") for size in (1, 8)])
    b = measured(root, tmp_path, "b", [config(batch_size=1, dtype=kind) for kind in ("float32", "bfloat16")])
    frame = cycles_df(runs_df(root))
    assert frame["study"].tolist() == ["a", "a", "b", "b"]
    assert known(frame[BATCH]) == [1, 8, None, None]
    assert known(frame["transformers.dtype"]) == [None, None, "float32", "bfloat16"]
    assert [str(frame[name].dtype) for name in (BATCH, "transformers.dtype")] == ["Int64", "string"]
    assert power_df([a, b])["transformers.dtype"].dtype == "category"
    assert experiments_df([a.url, b]).shape[0] == 4


def test_a_run_of_a_part_of_a_study_has_its_values_too(tmp_path: Path) -> None:
    root = ResultsRoot(tmp_path / "results")
    measured(root, tmp_path, "a", [config(batch_size=size) for size in (1, 8)])
    measured(root, tmp_path, "a", [config(batch_size=8)], run_id="r2")
    frame = experiments_df(runs_df(root))
    assert frame.groupby("run_id")[BATCH].apply(list).to_dict() == {"r1": [1, 8], "r2": [8]}


def test_an_axis_of_one_value_is_a_column(tmp_path: Path) -> None:
    run = measured(ResultsRoot(tmp_path / "results"), tmp_path, "a", [config(batch_size=8)])
    run.folder.write("study.yaml", b"sweep: {transformers.batch_size: [8], nowhere: [1], task: [x]}\n")
    frame = experiments_df(run)
    assert frame[BATCH].tolist() == [8]
    assert not {"nowhere", "task"} & set(frame)


def test_a_swept_engine_is_the_column_of_engines(tmp_path: Path) -> None:
    configs = [{"engine": name, "task": {"model": "tiny"}} for name in ("transformers", "vllm")]
    frame = experiments_df(measured(ResultsRoot(tmp_path / "results"), tmp_path, "a", configs))
    assert list(frame).count("engine") == 1


@pytest.mark.parametrize(
    ("values", "dtype", "found"),
    [
        ([1, None, 4], "Int64", [1, None, 4]),
        ([1, 0.5], "Float64", [1.0, 0.5]),
        ([True, None], "boolean", [True, None]),
        (["auto", None], "string", ["auto", None]),
        ([4, "auto", True, None], "string", ["4", "auto", "true", None]),
        ([True, 1], "string", ["true", "1"]),
        ([[1, 2], {"b": 1, "a": 2}], "string", ["[1, 2]", '{"a": 2, "b": 1}']),
        ([2**60, 0.5], "string", [str(2**60), "0.5"]),
        ([2**64, 1], "string", [str(2**64), "1"]),
        ([None, None], "string", [None, None]),
    ],
)
def test_values_of_a_study_make_a_typed_column(values: list[Any], dtype: str, found: list[Any]) -> None:
    frame = typed(rows_table([{"x": value} for value in values], pa.schema([])))
    assert str(frame["x"].dtype) == dtype
    assert known(frame["x"]) == found


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)


@given(st.lists(SCALARS | st.lists(st.integers(), max_size=2), max_size=6))
def test_no_value_of_a_study_is_lost_in_a_column(values: list[Any]) -> None:
    found = column(values, kind_of(values)).to_pylist()
    for value, one in zip(values, found, strict=True):
        as_text = isinstance(one, str) and not isinstance(value, str)
        assert one == value or (as_text and json.loads(one) == value)


def test_latencies_and_times_of_requests_are_those_of_the_cycle(make_run: MakeRun) -> None:
    run = whole(make_run)
    requests = requests_df(run, IDS[0], 2)
    cycle = cycles_df(run).query("experiment == @IDS[0] and cycle == 2").iloc[0]
    window = requests[requests["phase"] == "measure"]
    for name in ("ttft_s", "tpot_s", "e2el_s"):
        values = window[name].to_numpy(float)
        assert values.mean() == cycle[f"{name[:-2]}_mean_s"]
        assert np.percentile(values, 50) == cycle[f"{name[:-2]}_p50_s"]
    assert len(requests) == 20
    waits = (requests["t_first"] - requests["t_submit"]).dt.total_seconds()
    assert np.allclose(waits, requests["ttft_s"].to_numpy(float))
    power = power_df(run, IDS[0], 2).query("phase == 'measure'")
    assert requests["t_submit"].min() >= power["t_epoch"].min()
    assert requests["t_last"].max() <= power["t_epoch"].max()


def test_power_comes_to_the_joules_of_the_cycle(make_run: MakeRun) -> None:
    run = whole(make_run)
    power = power_df(run, IDS[1], 1).query("phase == 'measure'")
    told = cycles_df(run).query("experiment == @IDS[1] and cycle == 1").iloc[0]
    joules = power["power_instant_mw"].mean() / 1000 * told["window_s"]
    assert joules == pytest.approx(told["energy_j"], rel=1e-9)


def test_one_cycle_of_a_large_run_costs_the_reading_of_its_row_groups_alone(make_run: MakeRun) -> None:
    run = make_run({(0, 1): Recording()}, 20)
    aggregate_run(run)
    assert run.path is not None
    noise, rows = np.random.default_rng(1), 50_000
    with (run.path / "power.parquet").open("wb") as file, PowerMerge(file) as merge:
        for cycle in range(1, 21):
            for name in IDS:
                watts = pa.array(noise.integers(100_000, 400_000, rows), pa.int32())
                told = {"cycle": [cycle] * rows, "experiment": [name] * rows, "power_instant_mw": watts}
                columns = {field.name: pa.nulls(rows, field.type) for field in MERGED_SCHEMA}
                columns |= {
                    key: pa.array(value, MERGED_SCHEMA.field(key).type) for key, value in told.items()
                }
                merge.write(pa.table(columns, schema=MERGED_SCHEMA))
    size = (run.path / "power.parquet").stat().st_size
    assert pq.read_metadata(run.path / "power.parquet").num_row_groups == 8
    code = (
        "import sys; from llem_airflow.frames import power_df; a = sys.argv[1:]\n"
        "def read(): return int(open('/proc/self/io').readline().split()[1])\n"
        "power_df(a[0], a[1], 1); before = read(); n = len(power_df(a[0], a[1], 3)); print(read() - before, n)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, run.url, IDS[1]], capture_output=True, text=True, check=True
    )
    read, found = map(int, out.stdout.split())
    assert found == rows
    assert read < 0.3 * size, f"{read} of {size} bytes were read for one cycle of forty"
    assert len(power_df(run)) == 40 * rows


@pytest.mark.parametrize("kind", ["object-store", "s3"])
def test_runs_on_an_object_store_read_the_same(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    root = roots.new_root(kind, request, tmp_path)
    configs = [config(batch_size=size) for size in (1, 8)]
    measured(root, tmp_path, "a", configs)
    local = measured(ResultsRoot(tmp_path / "results"), tmp_path / "again", "a", configs)
    runs = runs_df(root)
    assert runs["url"].str.startswith(root.url).all()
    pd.testing.assert_frame_equal(cycles_df(runs, root=root), cycles_df(local))
    pd.testing.assert_frame_equal(requests_df("a/r1", root=root), requests_df(local))
    pd.testing.assert_frame_equal(power_df(runs.iloc[0], cycle=1, root=root), power_df(local, cycle=1))


def test_a_damaged_run_is_told_and_hides_no_other(make_run: MakeRun) -> None:
    root = root_of(whole(make_run))
    broken = whole(make_run, "r2")
    broken.folder.write("cycles.parquet", b"PAR1 no more")
    make_run({(0, 1): Recording()}, run_id="r3")
    with pytest.raises(
        FrameError, match=r"r2/cycles.parquet.*\n.*r3: not aggregated yet; `llem-airflow report"
    ):
        cycles_df(runs_df(root))
    frame, problems = cycles_df(runs_df(root), strict=False)
    assert frame["run_id"].unique().tolist() == ["r1"]
    assert sorted(problems["run_id"]) == ["r2", "r3"]
    broken.folder.write("summary.json", b"{")
    with pytest.raises(FrameError, match=r"summary.json: not JSON"):
        runs_df(root)
    runs, problems = runs_df(root, strict=False)
    assert runs.set_index("run_id")["state"].to_dict() == {
        "r1": "done",
        "r2": "damaged",
        "r3": "not aggregated",
    }
    assert problems["run_id"].tolist() == ["r2"]


@pytest.mark.parametrize("name", ["plan.json", "run.json", "study.yaml"])
def test_a_run_whose_question_is_damaged_still_has_its_rows(make_run: MakeRun, name: str) -> None:
    run = whole(make_run)
    run.folder.write(name, b"{[")
    frame, problems = cycles_df(run.url, strict=False)
    assert len(frame) == 6
    assert problems.empty == (name == "run.json")  # nothing of the frame comes from it
    for read in (requests_df, power_df):
        frame, problems = read(run.url, strict=False)
        assert len(frame) > 100
        assert len(problems) == (name != "run.json")
    runs, problems = runs_df(root_of(run), strict=False)
    assert len(runs) == 1
    assert problems.empty == (name == "study.yaml")


def test_a_damaged_cycle_stays_a_row_and_its_samples_are_told_as_absent(make_run: MakeRun) -> None:
    run = make_run({(i, k): Recording() for i in (0, 1) for k in (1, 2)})
    ref = run.cycle(IDS[0], 2)
    assert ref is not None
    ref.folder.write("result.json", b"{")
    aggregate_run(run)
    cycles = cycles_df(run)
    damaged = cycles[cycles["status"] == "damaged"]
    assert damaged[["experiment", "cycle"]].values.tolist() == [[IDS[0], 2]]
    for read in (power_df, requests_df):
        with pytest.raises(FrameError, match=r"result\.json"):
            read(run)
        frame, problems = read(run, strict=False)
        assert problems[["experiment", "cycle"]].values.tolist() == [[IDS[0], 2]]
        assert len(frame.groupby(["experiment", "cycle"], observed=True)) == 3
        assert len(read(run, IDS[1])) > 0


def test_a_cycle_without_a_meter_is_no_problem(make_run: MakeRun) -> None:
    run = make_run({(0, 1): Recording(meter_kind="none"), (1, 1): Recording(meter_kind="none")}, 1)
    aggregate_run(run)
    assert power_df(run).empty
    assert "power_instant_mw" in power_df(run)


def test_requests_are_read_before_the_run_is_aggregated(make_run: MakeRun) -> None:
    run = make_run({(0, 1): Recording()})
    assert len(requests_df(run, IDS[0], [1, 2])) == 20
    assert requests_df(run, IDS[1]).empty


def test_an_experiment_or_cycle_that_there_is_not_is_said_with_those_that_there_are(
    make_run: MakeRun,
) -> None:
    run = whole(make_run)
    for read in (requests_df, power_df):
        with pytest.raises(ValueError, match=rf"no experiment 'typo'; there are: {IDS[0]}, {IDS[1]}"):
            read(run, "typo", strict=False)
        with pytest.raises(ValueError, match="no cycle 4; there are: 1, 2, 3"):
            read(run, None, 4)


def test_runs_are_named_in_every_way(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = whole(make_run)
    root = root_of(run)
    monkeypatch.setenv("LLEM_RESULTS_ROOT", str(root))
    frame = runs_df()
    ways: list[Any] = [
        run,
        run.url,
        run.path,
        "nightly",
        "nightly/r1",
        "latest",
        frame,
        frame["url"],
        frame.iloc[0],
        next(frame.itertuples()),
        [run, "nightly/r1"],
    ]
    for way in ways:
        assert len(cycles_df(way)) == 6, way
    with pytest.raises(NoSuchRunError, match="did you mean 'nightly'"):
        cycles_df("nightyl")
    with pytest.raises(NoSuchRunError, match="does not exist"):
        runs_df(root / "typo")
    with pytest.raises(ValueError, match="column 'url'"):
        cycles_df(frame[["study"]])


def test_no_run_is_an_empty_frame_of_the_same_columns(make_run: MakeRun) -> None:
    run = whole(make_run)
    for read in (experiments_df, cycles_df, requests_df, power_df):
        empty = read([])
        assert empty.empty
        there = read(run)[list(empty)]
        assert empty.dtypes.to_dict().keys() == there.dtypes.to_dict().keys()
        assert str(empty.dtypes.iloc[-1]) == str(there.dtypes.iloc[-1])
    assert str(experiments_df([])["energy_j_n"].dtype) == "Int64"


def test_a_cycle_is_asked_for_by_a_number_of_a_frame(make_run: MakeRun) -> None:
    run = whole(make_run)
    cycle = cycles_df(run)["cycle"].max()
    for read in (requests_df, power_df):
        assert read(run, IDS[0], cycle)["cycle"].unique().tolist() == [3]
        assert read(run, cycle=cycles_df(run)["cycle"].unique())["cycle"].nunique() == 3


def test_a_column_of_another_type_is_a_problem_of_its_run_alone(make_run: MakeRun) -> None:
    run, other = whole(make_run), whole(make_run, "r2")
    assert other.path is not None
    for read, name, changed in (
        (cycles_df, "cycles.parquet", "energy_j"),
        (experiments_df, "experiments.parquet", "energy_j_n"),
        (power_df, "power.parquet", "t_epoch"),
    ):
        table = pq.read_table(other.path / name)
        text = pa.array(["x"] * table.num_rows)
        pq.write_table(table.set_column(table.column_names.index(changed), changed, text), other.path / name)
        frame, problems = read([run, other], strict=False)
        assert frame["run_id"].unique().tolist() == ["r1"]
        assert problems["run_id"].tolist() == ["r2"]
        assert f"column {changed} is of string" in problems["problem"].iloc[0]


@pytest.mark.parametrize("absent", [None, 5, [{}]])
def test_a_summary_that_tells_no_absent_samples_in_its_own_way_hides_none(
    make_run: MakeRun, absent: object
) -> None:
    run = whole(make_run)
    told = json.loads(run.folder.read("summary.json")) | {"power_absent": absent}
    run.folder.write("summary.json", json.dumps(told).encode())
    frame, problems = power_df(run, strict=False)
    assert frame["cycle"].nunique() == 3
    assert len(problems) == 1
    assert problems["problem"].iloc[0].startswith(run.url)


@pytest.mark.parametrize("began", [10**30, -(10**30)])
def test_facts_of_a_run_that_cannot_be_hide_no_other(make_run: MakeRun, began: int) -> None:
    root = root_of(whole(make_run))
    odd = whole(make_run, "r2")
    facts = odd.meta() | {"started_epoch_ns": began, "version": 5, "dag_id": ["x"]}
    odd.folder.write("run.json", json.dumps(facts).encode())
    runs, problems = runs_df(root, strict=False)
    assert sorted(runs["run_id"]) == ["r1", "r2"]
    assert problems.empty
    row = runs.set_index("run_id").loc["r2"]
    assert row["started"] == runs.set_index("run_id").loc["r1"]["started"]  # as their cycles tell
    assert (row["release"], row["dag_id"]) == ("5", '["x"]')


def test_a_column_of_a_newer_release_is_unknown_in_an_older_run(make_run: MakeRun) -> None:
    run, older = whole(make_run), whole(make_run, "old")
    assert older.path is not None
    table = pq.read_table(older.path / "cycles.parquet")
    pq.write_table(table.drop_columns(["energy_uncertainty_j", "doubtful"]), older.path / "cycles.parquet")
    frame = cycles_df([older, run])
    assert frame[frame["run_id"] == "old"]["doubtful"].isna().all()
    assert frame[frame["run_id"] == "r1"]["doubtful"].notna().all()
    assert str(frame["doubtful"].dtype) == "boolean"
