"""The trend of a study: its values are those of the frames and of the command, of runs that a user may read."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llem_airflow.frames import history_df
from llem_airflow.results import ResultsRoot, layout
from tests.web.conftest import Site
from tests.web.written import ENERGY, FINGERPRINT, GPU, written

A, B = "small-aaaaaaaa", "large-bbbbbbbb"


def nights(root: ResultsRoot, count: int = 14, step_at: int = 8) -> None:
    """So many nights of two experiments; the first gets 20 % dearer, with a new driver some nights before."""
    random = np.random.default_rng(1)
    for night in range(count):
        level = 1.2 if night >= step_at else 1.0
        values = {
            name: list(base * factor * (1 + 0.004 * random.standard_normal(3)))
            for name, base, factor in ((A, 2.0, level), (B, 1.0, 1.0))
        }
        engine = {"engine_version": "0.12" if night >= 5 else "0.11"}
        written(root, values, night=night, fingerprint=engine)


def test_the_trend_has_the_values_of_the_frame_and_its_change_points(site: Site) -> None:
    nights(site.root)
    frame = history_df("nightly", root=site.root)
    found = site.get("/api/trend", dag_id="nightly", metric=ENERGY, experiment=A).json()
    own = frame[frame["experiment"] == A]
    (history,) = found["histories"]
    assert found["chosen"] == [A]
    assert [found["runs"][point[0]]["run_id"] for point in history["points"]] == own["run_id"].tolist()
    assert [point[1] for point in history["points"]] == own[ENERGY].tolist()
    assert all(
        low < mean < high and (n, hosts) == (3, 1) for _, mean, low, high, n, hosts, _ in history["points"]
    )
    told = own[own["change_ratio"].notna()]
    assert [(found["runs"][one["run"]]["run_id"], one["ratio"]) for one in history["changes"]] == list(
        zip(told["run_id"], told["change_ratio"], strict=True)
    )
    assert [found["runs"][one["run"]]["run_id"] for one in history["changes"]] == ["r008"]
    assert {one["experiment"]: one["changes"] for one in found["experiments"]} == {A: 1, B: 0}


def test_the_verdicts_are_those_of_the_command(site: Site) -> None:
    nights(site.root)
    frame = history_df("nightly", root=site.root)
    found = site.get("/api/verdicts", dag_id="nightly", study="nightly", metric=ENERGY).json()["verdicts"]
    newest = frame[frame["verdict"].notna()].set_index("experiment")
    assert len(found) == 2
    for one in found:
        row = newest.loc[one["experiment"]]
        assert (one["verdict"], one["state"], one["note"]) == (row["verdict"], row["state"], row["note"])
        assert one["detectable_ratio"] == row["detectable_ratio"]
    told = frame[frame["told_ratio"].notna()]
    assert [(each["run_id"], each["ratio"]) for one in found for each in one["told"]] == list(
        zip(told["run_id"], told["told_ratio"], strict=True)
    )
    assert len(told) == 1


def test_what_changed_around_an_experiment_stands_at_the_run_where_it_changed(site: Site) -> None:
    values = {A: [1.0, 1.01, 1.02]}
    around: list[dict[str, Any]] = [
        {},
        {"driver": None},
        {"driver": "560.2"},
        {"driver": "560.2", "engine_version": "0.12", "image_digest": "sha256:2"},
        {
            "driver": "560.2",
            "engine_version": "0.12",
            "image_digest": "sha256:2",
            "gpus": [{**GPU, "name": "B200"}],
        },
    ]
    for night, fields in enumerate(around):
        written(
            site.root, values, night=night, fingerprint=fields, meta={"version": "v2" if night > 3 else "v1"}
        )
    found = site.get("/api/trend", dag_id="nightly", experiment=A).json()
    assert [(one["run_id"], one["what"], one["before"], one["after"]) for one in found["around"][A]] == [
        ("r002", "driver", "550.1", "560.2"),
        ("r003", "engine", "vllm 0.11", "vllm 0.12"),
        ("r003", "image", "sha256:1", "sha256:2"),
        ("r004", "release", "v1", "v2"),
        ("r004", "gpu", "NVIDIA H100", "B200"),
    ]
    (history,) = found["histories"]
    assert [compared for *_, compared in history["points"]] == [False, False, False, False, True]


def test_an_experiment_is_followed_over_the_releases_of_its_model(site: Site) -> None:
    for night, (release, hash_) in enumerate((("v1", "a"), ("v2", "c"), ("v1", "a"))):
        run = written(site.root, {A: [1.0, 1.1, 1.05]}, night=night, meta={"version": release})
        _rehash(run, hash_ * 16)
    found = site.get("/api/trend", dag_id="nightly", experiment=A).json()
    assert [(one["release"], len(one["points"])) for one in found["histories"]] == [("v1", 2), ("v2", 1)]
    assert [one["after"] for one in found["around"][A]] == ["v2", "v1"]


def _rehash(run: Any, hash_: str) -> None:
    path = run.path / layout.CYCLES_TABLE
    table = pq.read_table(path)
    place = table.column_names.index("hash")
    pq.write_table(table.set_column(place, "hash", pa.array([hash_] * len(table))), path)


def test_a_study_that_another_dag_measures_too_has_only_this_one_s_runs(site: Site) -> None:
    site.dag("pasted")
    for night, dag_id in enumerate(("nightly", "pasted", "nightly")):
        written(site.root, {A: [1.0, 1.1, 1.2]}, night=night, dag_id=dag_id)
    for user, runs in (("nightly", ["r000", "r002"]), ("pasted", ["r001"])):
        found = site.get("/api/trend", user=user, dag_id=user).json()
        assert [one["run_id"] for one in found["runs"]] == runs
        told = site.get("/api/verdicts", user=user, dag_id=user, study="nightly", metric=ENERGY).json()
        assert len(told["verdicts"]) == 1
    other = site.get("/api/trend", user="nightly", dag_id="nightly", study="secret")
    assert (other.status_code, "no run of a study" in other.json()["detail"]) == (404, True)


def test_missing_empty_half_written_and_damaged_results_are_told(site: Site) -> None:
    assert site.get("/api/trend", dag_id="nightly").json()["studies"] == []
    site.root.run("nightly", "r000").write_plan("", {}, {"dag_id": "nightly", "started_epoch_ns": 1})
    empty = site.get("/api/trend", dag_id="nightly").json()
    assert (empty["histories"], empty["metrics"], empty["folder"]) == ([], [], "nightly")
    written(site.root, {A: [1.0, 1.1, 1.2]}, night=1)
    run = written(site.root, {A: [1.0, 1.1, 1.2]}, night=2)
    run.folder.write(layout.CYCLES_TABLE, b"PAR1")
    found = site.get("/api/trend", dag_id="nightly").json()
    assert [one["run_id"] for one in found["runs"]] == ["r001"]
    assert "cannot be read" in found["problems"][0]
    for metric in ("no such metric", "energy_j"):
        answer = site.get("/api/trend", dag_id="nightly", metric=metric)
        assert (answer.status_code, ENERGY in answer.json()["detail"]) == (409, True)


def test_a_run_that_comes_or_is_written_again_is_seen(site: Site) -> None:
    written(site.root, {A: [1.0, 1.1, 1.2]}, night=0)
    assert len(site.get("/api/trend", dag_id="nightly").json()["runs"]) == 1
    written(site.root, {A: [2.0, 2.1, 2.2]}, night=1)
    os.utime(f"{site.root.url}/nightly")
    assert [one[1] for one in site.get("/api/trend", dag_id="nightly").json()["histories"][0]["points"]] == [
        pytest.approx(1.1),
        pytest.approx(2.1),
    ]
    written(site.root, {A: [3.0, 3.1, 3.2]}, night=1)
    assert site.get("/api/trend", dag_id="nightly").json()["histories"][0]["points"][1][1] == pytest.approx(
        3.1
    )


def test_the_sparkline_of_the_overview_has_the_change_points(site: Site) -> None:
    random = np.random.default_rng(2)
    for night in range(12):
        level = 0.8 if night >= 7 else 1.0
        written(site.root, {A: list(level * (1 + 0.003 * random.standard_normal(3)))}, night=night)
    history = site.get("/api/headline", dag_id="nightly", study="nightly").json()["history"]
    frame = history_df("nightly", root=site.root)
    expected = frame.set_index("run_id")["change_ratio"]
    assert {one["run_id"]: one["change_ratio"] for one in history if one["change_ratio"] is not None} == {
        "r007": expected["r007"]
    }


def test_names_that_are_hostile_are_only_text(site: Site) -> None:
    hostile = "<img src=x onerror=alert(1)>"
    for night, driver in enumerate(("1", hostile)):
        written(site.root, {A: [1.0, 1.1, 1.2]}, night=night, fingerprint={**FINGERPRINT, "driver": driver})
    answer = site.get("/api/trend", dag_id="nightly", experiment=A)
    assert answer.headers["content-type"] == "application/json"
    assert json.loads(answer.text)["around"][A][0]["after"] == hostile
