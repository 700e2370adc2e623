"""History and comparison as frames: what the command prints, number by number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner

from llem_airflow.analysis.aggregate import aggregate_run
from llem_airflow.cli import main
from llem_airflow.frames import FrameError, compare_df, history_df
from llem_airflow.results import ResultReadError, ResultsRoot, StoredRun
from llem_airflow.results.store import NoSuchRunError
from tests.analysis.conftest import IDS, MakeRun, run_maker
from tests.results import roots
from tests.results.recorded import EPOCH_NS, Recording, S

JOULES = "energy_per_output_token_j"
JITTER = (0.0, 0.4, -0.4)


def nights(make_run: MakeRun, watts: list[float], **changes: Any) -> StoredRun:
    """A run for each night, the newest returned."""
    made = []
    for night, power_w in enumerate(watts):
        recordings = {
            (i, k): Recording(power_w=power_w + JITTER[k - 1], **changes) for i in (0, 1) for k in (1, 2, 3)
        }
        run = make_run(recordings, 3, run_id=f"n{night:02}")
        began = EPOCH_NS + night * 86_400 * S
        run.folder.write("run.json", json.dumps({**run.meta(), "started_epoch_ns": began}).encode())
        aggregate_run(run)
        made.append(run)
    return made[-1]


def root_of(run: StoredRun) -> str:
    return run.url.rsplit("/", 2)[0]


def said(run: StoredRun, *arguments: str) -> Any:
    done = CliRunner().invoke(main, [*arguments, "--json"], env={"LLEM_RESULTS_ROOT": root_of(run)})
    assert done.exit_code == 0, done.output
    return json.loads(done.output)


def plain(value: Any) -> Any:
    return None if pd.isna(value) else value


def test_a_history_is_what_the_command_tells(make_run: MakeRun) -> None:
    run = nights(make_run, [200.0, 200.8, 199.4, 200.3, 240.0, 240.9])
    told = said(run, "history", "nightly")
    frame = history_df("nightly", root=root_of(run))
    assert len(frame) == 12
    assert str(frame["started"].dtype) == "datetime64[ns, UTC]"
    for item in told["experiments"]:
        rows = frame[frame["experiment"] == item["id"]]
        assert rows["run_id"].tolist() == [point["run_id"] for point in item["points"]]
        means = [sum(point["values"]) / len(point["values"]) for point in item["points"]]
        assert rows[JOULES].tolist() == pytest.approx(means)
        assert rows["compared"].all()
        newest = rows.iloc[-1]
        for name in ("verdict", "began", "outlier", "newest_ratio", "detectable_ratio", "note"):
            assert plain(newest[name]) == item[name], name
        assert rows["verdict"].notna().tolist() == [False] * 5 + [True]
        changes = rows.dropna(subset=["change_ratio"])
        assert changes[["run_id", "change_ratio", "change_p", "change_verdict"]].values.tolist() == [
            [change["run_id"], change["ratio"], change["p"], change["verdict"]] for change in item["changes"]
        ]
        alarms = [[item["points"][alarm["told"]]["run_id"], alarm["ratio"]] for alarm in item["alarms"]]
        assert alarms
        assert rows.dropna(subset=["told_ratio"])[["run_id", "told_ratio"]].values.tolist() == alarms
    assert frame.groupby("experiment")["transformers.batch_size"].unique().map(list).to_dict() == {
        IDS[0]: [1],
        IDS[1]: [4],
    }


def test_runs_under_other_conditions_are_shown_and_not_compared(make_run: MakeRun) -> None:
    run = nights(make_run, [200.0, 200.5])
    other = Recording(power_w=300.0, gpus=("GPU-other",), meter_kind="rapl")
    newest = make_run({(0, k): other for k in (1, 2)}, 2, "n02")
    newest.folder.write(
        "run.json", json.dumps({**newest.meta(), "started_epoch_ns": EPOCH_NS + 9 * 86_400 * S}).encode()
    )
    aggregate_run(newest)
    frame = history_df("nightly", root=root_of(run)).query("experiment == @IDS[0]")
    assert frame["compared"].tolist() == [False, False, True]
    assert frame["note"].iloc[-1] == said(run, "history", "nightly")["experiments"][0]["note"]


def test_a_run_that_a_history_leaves_out_is_told(make_run: MakeRun) -> None:
    run = nights(make_run, [200.0, 200.5, 201.0])
    ResultsRoot(root_of(run)).run("nightly", "n01").folder.write("cycles.parquet", b"no table")
    make_run({(0, 1): Recording()}, run_id="tonight")
    with pytest.raises(
        FrameError, match=r"tonight: not aggregated yet[\s\S]*n01/cycles.parquet: cannot be read"
    ):
        history_df("nightly", root=root_of(run))
    frame, problems = history_df("nightly", root=root_of(run), strict=False)
    assert sorted(problems["run_id"]) == ["n01", "tonight"]
    assert set(frame["run_id"]) == {"n00", "n02"}


def test_a_damaged_run_json_hides_no_other_night(make_run: MakeRun) -> None:
    run = nights(make_run, [200.0, 201.0])
    run.folder.write("run.json", b"{[")
    frame, problems = history_df("nightly", root=run.root.local, strict=False)
    assert frame["run_id"].unique().tolist() == ["n00"]
    assert problems["problem"].str.contains("run.json: not JSON").all()
    assert len(problems) > 0


def test_a_history_of_nothing_says_what_there_is(make_run: MakeRun) -> None:
    run = nights(make_run, [200.0])
    with pytest.raises(NoSuchRunError, match="did you mean 'nightly'"):
        history_df("nightyl", root=root_of(run))
    with pytest.raises(ValueError, match="'joules' is no metric; there are: energy_per_output_token_j"):
        history_df("nightly", root=root_of(run), metric="joules")
    assert history_df("nightly", root=root_of(run), metric="energy_active_j").empty


@pytest.mark.parametrize("options", [{}, {"threshold_ratio": 0.5}, {"metric": "ttft_mean_s"}])
def test_a_comparison_is_what_the_command_tells(make_run: MakeRun, options: dict[str, Any]) -> None:
    run = nights(make_run, [200.0, 240.0])
    given = [
        text for name, value in options.items() for text in (f"--{name.removesuffix('_ratio')}", str(value))
    ]
    reports = said(run, "compare", "nightly/n00", "nightly/n01", *given)
    frame = compare_df("nightly/n00", "nightly/n01", root=root_of(run), **options)
    rows = iter(frame.to_dict("records"))
    for report in reports:
        for place, (metric, found) in enumerate(report["metrics"].items()):
            row = next(rows)
            assert (row["baseline"], row["candidate"]) == (report["baseline"], report["candidate"])
            assert (row["metric"], row["decides"]) == (metric, place == 0)
            assert {name: plain(row[name]) for name in found} == found
            assert row["caution"] == report["caution"]
        assert frame.query("decides and baseline == @report['baseline']")["verdict"].tolist() == [
            report["verdict"]
        ]
    assert next(rows, None) is None
    assert len(reports) == 2
    ways: list[tuple[Any, Any]] = [
        (ResultsRoot(root_of(run)).run("nightly", "n00"), run),
        (f"{root_of(run)}/nightly/n00", [run.url]),
    ]
    for a, b in ways:
        pd.testing.assert_frame_equal(compare_df(a, b, root=root_of(run), **options), frame)


def test_two_experiments_of_a_run_have_what_is_under_study_in_two_typed_columns(make_run: MakeRun) -> None:
    run = nights(make_run, [200.0])
    frame = compare_df(f"nightly/n00#{IDS[0]}", f"nightly/n00#{IDS[1]}", root=root_of(run))
    assert str(frame["transformers.batch_size_baseline"].dtype) == "Int64"
    assert frame["transformers.batch_size_baseline"].unique().tolist() == [1]
    assert frame["transformers.batch_size_candidate"].unique().tolist() == [4]
    assert frame["unit"].iloc[0] == "J/token"


def test_what_cannot_be_compared_is_a_row_that_says_so(make_run: MakeRun) -> None:
    run = nights(make_run, [200.0])
    other = make_run({(0, k): Recording(gpus=("GPU-other",)) for k in (1, 2)}, 2, "x")
    aggregate_run(other)
    plan = other.plan()
    plan["experiments"], plan["order"] = plan["experiments"][:1], plan["order"][::2]
    other.folder.write("plan.json", json.dumps(plan).encode())
    aggregate_run(other)
    frame = compare_df("nightly/n00", "nightly/x", root=root_of(run))
    assert frame["verdict"].tolist()[0] == said(run, "compare", "nightly/n00", "nightly/x")[0]["verdict"]
    alone = frame[frame["candidate"].isna()]
    assert alone["baseline"].str.endswith(IDS[1]).all()
    assert alone["reason"].tolist() == ["only the reference run has it"]
    first = compare_df("previous", "nightly/n00", root=root_of(run))
    assert first["reason"].tolist() == ["no earlier run of this study and release"]
    itself = compare_df("nightly/n00", "nightly/n00", root=root_of(run))
    assert itself["caution"].str.contains("both sides are the same run").all()


def test_a_run_that_cannot_be_compared_is_an_error_or_a_problem(make_run: MakeRun) -> None:
    run = nights(make_run, [200.0])
    make_run({(0, 1): Recording()}, run_id="tonight")
    with pytest.raises(FrameError, match="not aggregated yet"):
        compare_df("nightly/n00", "nightly/tonight", root=root_of(run))
    frame, problems = compare_df("nightly/n00", "nightly/tonight", root=root_of(run), strict=False)
    assert frame.empty
    assert "verdict" in frame
    assert problems["problem"].str.contains("not aggregated yet").tolist() == [True]
    with pytest.raises(ValueError, match="threshold"):
        compare_df("nightly/n00", "nightly/n00", root=root_of(run), threshold_ratio=0, strict=False)
    with pytest.raises(ResultReadError, match="no experiment 'typo'"):
        compare_df("nightly/n00#typo", "nightly/n00#typo", root=root_of(run))


@pytest.mark.parametrize("kind", ["object-store", "s3"])
def test_an_object_store_tells_the_same(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    frames: list[tuple[pd.DataFrame, pd.DataFrame]] = []
    for root in (roots.new_root(kind, request, tmp_path), ResultsRoot(tmp_path / "results")):
        folder = tmp_path / str(len(frames))
        run = nights(run_maker(root, folder), [200.0, 240.0])
        frames.append((history_df("nightly", root=root), compare_df("nightly/n00", run, root=root)))
    for remote, local in zip(*frames, strict=True):
        pd.testing.assert_frame_equal(remote, local)
