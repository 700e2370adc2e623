"""The comparison of runs and releases: verdicts and numbers are those of the frame and of the command."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from llem_airflow.analysis.aggregate import aggregate_run
from llem_airflow.frames import compare_df, experiments_df
from llem_airflow.results import ResultsRoot, layout
from tests.analysis.conftest import IDS
from tests.results.recorded import Recording
from tests.web.conftest import Site
from tests.web.written import ENERGY, written

NAMES = [f"b{index}-{index}aaaaaaa" for index in range(5)]


def releases(root: ResultsRoot, factors: Any = (1.0, 1.1, 0.8)) -> None:
    random = np.random.default_rng(3)
    for night, factor in enumerate(factors):
        values = {
            name: list((1 + place) * factor * (1 + 0.005 * random.standard_normal(4)))
            for place, name in enumerate(NAMES[: 5 - night])
        }
        written(root, values, night=night, meta={"version": f"v{night}"})


def test_the_cells_are_those_of_the_command(site: Site) -> None:
    releases(site.root)
    found = site.get("/api/compare", dag_id="nightly").json()
    assert found["names"] == {"baseline": "@v0", "of": "nightly", "candidates": ["@v1", "@v2"]}
    frame = compare_df("nightly@v0", "nightly@*", root=site.root)
    compared = frame[frame["metric"].notna()]
    cells = {
        (f"nightly/r000#{row['experiment']}", f"nightly/r00{place + 1}#{cell['experiment']}"): cell
        for row in found["rows"]
        for place, cell in enumerate(row["cells"])
        if cell
    }
    assert len(cells) == 4 + 3
    for _, row in compared.iterrows():
        cell = cells[row["baseline"], row["candidate"]]
        told = cell["metrics"][row["metric"]]
        for name in (
            "difference_ratio",
            "low_ratio",
            "high_ratio",
            "p_adjusted",
            "mean_baseline",
            "mean_candidate",
        ):
            assert told[name] == pytest.approx(row[name], rel=1e-12)
        assert told["verdict"] == row["verdict"]
        if row["decides"]:
            assert (cell["verdict"], row["metric"]) == (row["verdict"], ENERGY)
    assert {cell["verdict"] for cell in cells.values()} == {"regression", "improvement"}
    assert (found["only_baseline"], found["only_candidate"]) == ([NAMES[4]], [])
    assert found["rows"][3]["cells"][1] is None


def test_two_runs_are_the_default_where_there_are_no_releases(site: Site) -> None:
    for night in range(3):
        written(site.root, {NAMES[0]: [1.0, 1.1, 1.05]}, night=night)
    found = site.get("/api/compare", dag_id="nightly").json()
    assert found["names"] == {"baseline": "r001", "of": "nightly", "candidates": ["r002"]}
    chosen = site.get("/api/compare", dag_id="nightly", baseline="r000", candidate=["r001", "r002"]).json()
    assert [one["run_id"] for one in chosen["candidates"]] == ["r001", "r002"]
    own = site.get("/api/compare", dag_id="nightly", baseline="r000", candidate="r000").json()
    assert "both sides are the same run" in own["notes"][0]


def test_conditions_that_differ_are_told_and_may_be_ignored(site: Site) -> None:
    for night, driver in enumerate(("550.1", "560.2")):
        engine = {"driver": driver, "engine_version": f"0.{night}"}
        written(site.root, {NAMES[0]: [1.0, 1.01, 1.02]}, night=night, fingerprint=engine)
    (row,) = site.get("/api/compare", dag_id="nightly").json()["rows"]
    (cell,) = row["cells"]
    assert (cell["verdict"], cell["metrics"]) == ("not comparable", {})
    assert cell["differences"] == {"driver": ["550.1", "560.2"]}
    assert cell["factors"] == {"engine_version": ["0.0", "0.1"]}
    ignoring = site.get("/api/compare", dag_id="nightly", ignore="driver").json()
    assert ignoring["rows"][0]["cells"][0]["verdict"] != "not comparable"
    assert ignoring["ignored"] == ["driver"]


def test_a_run_of_another_dag_is_a_baseline_only_for_those_who_may_read_its_runs(site: Site) -> None:
    site.dag("other")
    written(site.root, {NAMES[0]: [1.0, 1.1, 1.05]}, night=0, study="secret", dag_id="other")
    written(site.root, {NAMES[0]: [2.0, 2.1, 2.05]}, night=1)
    asked = {"dag_id": "nightly", "baseline_dag": "other", "baseline": "r000"}
    pair = {"run_id": "r001", "experiment": NAMES[0], "baseline_experiment": NAMES[0]}
    for user, status in (
        ("nightly", 403),
        ("nightly+other", 200),
        ("other", 403),
        ("nightly+other-runs", 403),
    ):
        assert site.get("/api/compare", user=user, candidate="r001", **asked).status_code == status
        assert site.get("/api/pair", user=user, **pair, **asked).status_code == status
    found = site.get("/api/compare", user="nightly+other", candidate="r001", **asked).json()
    assert found["baseline"]["dag_id"] == "other"
    assert found["rows"][0]["cells"][0]["verdict"] == "regression"
    for name in ("r000", "@v1", "../secret"):
        answer = site.get("/api/compare", dag_id="nightly", baseline=name, candidate="r001")
        assert (answer.status_code, "names no run of the DAG nightly" in answer.json()["detail"]) == (
            409,
            True,
        )


def test_what_lies_behind_a_cell(site: Site) -> None:
    run = site.stored(
        {(index, cycle): Recording(power_w=200.0 + cycle) for index in (0, 1) for cycle in (1, 2, 3)},
        cycles=3,
    )
    aggregate_run(run)
    asked = {"dag_id": "nightly", "run_id": "r1", "experiment": IDS[1], "baseline": "r1"}
    found = site.get("/api/pair", **asked, baseline_experiment=IDS[0]).json()
    frame = experiments_df(run).set_index("experiment")
    for side, name in zip(found["sides"], IDS[:2], strict=True):
        assert (side["experiment"], side["cycles"]) == (name, [1, 2, 3])
        numbers = side["metrics"][ENERGY]
        for key in ("", "_low", "_high", "_n"):
            assert numbers[key.strip("_") or "mean"] == frame.loc[name, f"{ENERGY}{key}"]
    assert found["answers"]["finding"]
    missing = site.get("/api/pair", **{**asked, "experiment": "none"}, baseline_experiment=IDS[0])
    assert (missing.status_code, "no experiment 'none'" in missing.json()["detail"]) == (409, True)


def test_nothing_to_compare_and_what_cannot_be_read_are_told(site: Site) -> None:
    assert site.get("/api/compare", dag_id="nightly").json()["rows"] is None
    written(site.root, {NAMES[0]: [1.0, 1.1, 1.05]})
    assert site.get("/api/compare", dag_id="nightly").json()["rows"] is None
    run = written(site.root, {NAMES[0]: [1.0, 1.1, 1.05]}, night=1)
    bad = site.get("/api/compare", dag_id="nightly", metric="energy_j")
    assert (bad.status_code, "cannot decide a comparison" in bad.json()["detail"]) == (409, True)
    run.folder.write(layout.CYCLES_TABLE, b"PAR1")
    damaged = site.get("/api/compare", dag_id="nightly")
    assert (damaged.status_code, "cannot be read" in damaged.json()["detail"]) == (409, True)
