"""The JSON API: its values are those of summary.json and the tables, and each route shows only what a user may read."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from fastapi.dependencies.utils import get_flat_dependant
from fastapi.routing import APIRoute

from llem_airflow.analysis.aggregate import aggregate_run
from llem_airflow.analysis.compare_named import against_previous
from llem_airflow.frames import cycles_df, experiments_df
from llem_airflow.operators.live import LiveSeries
from llem_airflow.protocol.live import DevicePower, LivePhase, LivePower
from llem_airflow.results import ResultsRoot, StoredRun, layout
from llem_airflow.results.records import end_live, write_live
from llem_airflow.web.access import READS_DAG, READS_RUN
from llem_airflow.web.app import create_app
from llem_airflow.web.modules import MODULES, release
from tests.analysis.conftest import IDS, run_maker
from tests.results.recorded import Recording
from tests.web.conftest import Site

ROUTES = {route.path: route for route in create_app().routes if isinstance(route, APIRoute)}
"""All that there are: one that comes later is held to the same."""


def _needs(*dependencies: Any) -> tuple[str, ...]:
    """The routes that depend on all of these."""
    calls = {one.dependency for one in dependencies}
    return tuple(
        path for path, route in ROUTES.items() if calls <= {one.dependency for one in route.dependencies}
    )


ABOUT_A_RUN = _needs(*READS_RUN)
ABOUT_A_DAG = tuple(path for path in _needs(*READS_DAG) if path not in ABOUT_A_RUN)
OF_EVERY_USER = ("/api/studies", "/api/leaderboard", "/api/new-study", "/api/check")
"""They have no DAG in their address: they show what the user may read, or nothing of any run."""
MODULES_TOO = ("/static/app.js", "/static/0-1/pages.js")
ALL = (*ABOUT_A_RUN, *ABOUT_A_DAG, *OF_EVERY_USER, *MODULES_TOO)
ASKED: dict[str, Any] = {
    "dag_id": "nightly",
    "run_id": "r1",
    "study": "nightly",
    "metric": "energy_per_output_token_j",
    "table": "cycles",
    "format": "csv",
    "name": "summary.json",
    "experiment": IDS[0],
    "cycle": 1,
    "task_id": f"{IDS[0]}.cycle_1",
    "baseline": "r1",
    "baseline_experiment": IDS[0],
    "candidate": "r1",
}
Make = Callable[..., StoredRun]


def asked(site: Site, path: str, user: str | None = "nightly", **more: Any) -> Any:
    """The answer of a route to a request that lacks nothing."""
    headers = {"x-user": user} if user else {}
    method = "POST" if path == "/api/check" else "GET"
    return site.client.request(method, path, params={**ASKED, **more}, headers=headers)


MEASURED = {
    (index, cycle): Recording(power_w=200.0 + 50 * index + cycle) for index in (0, 1) for cycle in (1, 2, 3)
}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> StoredRun:
    """A run of two experiments in three cycles, aggregated once: reading power series takes half a second."""
    folder = tmp_path_factory.mktemp("template")
    run = run_maker(ResultsRoot(folder / "results"), folder)(MEASURED, cycles=3)
    aggregate_run(run)
    return run


@pytest.fixture
def measured(site: Site, template: StoredRun) -> Callable[..., StoredRun]:
    def copied(run_id: str = "r1") -> StoredRun:
        run = site.root.run("nightly", run_id)
        shutil.copytree(template.folder.path, run.folder.path)
        meta = json.loads(run.folder.read(layout.RUN))
        run.folder.write(layout.RUN, json.dumps({**meta, "run_id": run_id}).encode())
        return run

    return copied


def test_every_route_is_about_a_dag_or_one_of_those_that_are_known_not_to_be() -> None:
    about = {*ABOUT_A_RUN, *ABOUT_A_DAG}
    assert len(about) >= 19
    assert ROUTES.keys() - about == {*OF_EVERY_USER, "/static/{name}", "/static/{below}/{name}"}


@pytest.mark.parametrize("path", ALL)
def test_nothing_answers_an_anonymous_visitor(site: Site, measured: Make, path: str) -> None:
    measured()
    site.dag_run("nightly", "r1")
    assert asked(site, path, None).status_code == 401


@pytest.mark.parametrize("path", [*ABOUT_A_RUN, *ABOUT_A_DAG])
@pytest.mark.parametrize("user", ["other", "", "nightl", "Nightly"])
def test_a_user_who_may_not_read_the_dag_is_refused(site: Site, measured: Make, path: str, user: str) -> None:
    measured()
    site.dag_run("nightly", "r1")
    assert site.get(path, user=user or "nobody", **ASKED).status_code == 403


@pytest.mark.parametrize("path", ABOUT_A_RUN)
def test_a_user_who_may_not_read_the_dag_s_runs_is_refused(site: Site, measured: Make, path: str) -> None:
    measured()
    assert site.get(path, user="nightly-runs", **ASKED).status_code == 403


@pytest.mark.parametrize("path", [*ABOUT_A_RUN, *ABOUT_A_DAG])
def test_the_word_for_all_dags_is_no_dag(site: Site, path: str) -> None:
    assert site.get(path, user="nightly+~", **{**ASKED, "dag_id": "~"}).status_code in {403, 404}


@pytest.mark.parametrize("path", ["/api/explore", "/download/file", "/cycle"])
def test_the_dag_that_is_checked_is_the_dag_that_is_shown(site: Site, measured: Make, path: str) -> None:
    measured()
    query = "&".join(f"{key}={value}" for key, value in ASKED.items() if key != "dag_id")
    for first, second in (("nightly", "other"), ("other", "nightly")):
        both = f"{path}?dag_id={first}&dag_id={second}&{query}"
        answer = site.client.get(both, headers={"x-user": "other"})
        assert answer.status_code != 200


def test_only_get_is_answered_but_for_the_check_of_a_text(site: Site) -> None:
    for route in site.client.app.routes:  # type: ignore[attr-defined]  # of FastAPI
        allowed = {"POST"} if route.path == "/api/check" else {"GET", "HEAD"}
        assert route.methods <= allowed, route.path
    assert site.client.post("/api/run", headers={"x-user": "nightly"}).status_code == 405


def test_a_run_of_another_dag_is_not_found_by_its_id(site: Site, measured: Make) -> None:
    measured()
    site.dag("other")
    site.dag_run("other", "r1")
    answer = site.get("/api/explore", user="other", **{**ASKED, "dag_id": "other"})
    assert answer.status_code == 404
    assert "There are no results of the run r1 of other" in answer.json()["detail"]


def test_the_overview_has_only_studies_whose_dag_the_user_may_read(site: Site, measured: Make) -> None:
    measured()
    site.dag("hidden")
    run = site.root.run("secret study", "r9")
    run.write_plan("", {}, {"dag_id": "hidden"})
    nobody = site.root.run("imported", "r8")
    nobody.write_plan("", {}, {})
    for user, shown in (("nightly", ["nightly"]), ("hidden", ["secret study"]), ("none", [])):
        found = site.get("/api/studies", user=user).json()["studies"]
        assert [row["study"] for row in found] == shown
    assert len(site.get("/api/studies", user="nightly+hidden").json()["studies"]) == 2


def test_a_study_that_two_dags_measure_shows_each_user_the_runs_of_its_own(
    site: Site, measured: Make
) -> None:
    measured()
    run = measured("r2")
    site.dag("pasted")
    meta = json.loads(run.folder.read(layout.RUN))
    run.folder.write(layout.RUN, json.dumps({**meta, "dag_id": "pasted"}).encode())
    for user, runs in (("nightly", ["r1"]), ("pasted", ["r2"])):
        found = site.get("/api/headline", user=user, dag_id=user, study="nightly").json()
        assert [one["run_id"] for one in found["history"]] == runs
        assert [one["run_id"] for one in site.get("/api/runs", user=user, dag_id=user).json()["runs"]] == runs


def test_power_of_a_cycle_at_work_is_shown_until_it_has_ended(site: Site) -> None:
    run = site.stored({}, cycles=1)
    site.dag_run("nightly", "r1", "running")
    assert site.get("/api/live", **ASKED).json()["live"] is None
    assert site.get("/api/cycle", **ASKED).json()["live"] is False
    series = LiveSeries()
    series.add(LivePhase(10**9, "<script>"))
    series.add(LivePower(3 * 10**9, "estimate", {"GPU-a": DevicePower(90.0, 100.0, 120.0, 20)}))
    told = series.told(2)
    assert told is not None
    write_live(run, IDS[0], 1, told)
    live = site.get("/api/live", **ASKED).json()["live"]
    assert (live["try_number"], live["energy_kind"], live["last_s"]) == (2, "estimate", 2.0)
    assert live["phases"] == [{"name": "<script>", "begin_s": 0.0, "end_s": None}]
    assert live["gpus"][0] == {
        "gpu": "GPU-a",
        "t_s": [2.0],
        "low_w": [90.0],
        "mean_w": [100.0],
        "high_w": [120.0],
        "now_w": 100.0,
    }
    assert site.get("/api/cycle", **ASKED).json()["live"] is True
    run.folder.child("live", IDS[0]).write("cycle-1.json", b"{}")
    assert "cycle-1.json" in site.get("/api/live", **ASKED).json()["detail"]
    end_live(run, IDS[0], 1)
    assert site.get("/api/live", **ASKED).json()["live"] is None


def test_a_task_is_the_cycle_that_it_measures(site: Site) -> None:
    site.stored({}, cycles=2)
    site.dag_run("nightly", "r1", "running")
    site.task("nightly", "r1", f"{IDS[1]}.cycle_2", state="running")
    site.task("nightly", "r1", "aggregate")
    own = site.get("/api/task", **{**ASKED, "task_id": f"{IDS[1]}.cycle_2"}).json()
    assert own == {"experiment": IDS[1], "cycle": 2}
    for other in ("aggregate", f"{IDS[0]}.cycle_1", "x.cycle_1<script>"):
        assert site.get("/api/task", **{**ASKED, "task_id": other}).json()["cycle"] is None


def test_output_is_shown_only_to_those_who_may_read_logs(site: Site, tmp_path: Path) -> None:
    run = site.stored({}, cycles=1)
    site.dag_run("nightly", "r1", "failed")
    (tmp_path / "left").mkdir()
    (tmp_path / "left" / "container.log").write_text("one\na secret line\n")
    record = {"failure": {"category": "image_pull", "message": "no such image", "hint": "pull it"}}
    run.commit_failed(IDS[0], 1, 1, tmp_path / "left", record)
    for user, shown in (("nightly", True), ("nightly-logs", False)):
        for path in ("/api/run", "/api/cycle"):
            answer = site.get(path, user=user, **ASKED)
            assert answer.status_code == 200
            assert ("a secret line" in answer.text) == shown
            assert "o such image" in answer.text


@pytest.mark.parametrize(
    "name",
    [
        "..",
        "../..",
        "%2e%2e",
        "../secret",
        "/etc",
        "..\\x",
        "nightly/../secret",
        "\0",
        "r1/../../x",
        "a" * 240,
        "C:\\x",
    ],
)
def test_no_parameter_leaves_the_results_root(site: Site, measured: Make, tmp_path: Path, name: str) -> None:
    measured()
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "run.json").write_text(json.dumps({"dag_id": "nightly", "run_id": name, "study": "secret"}))
    (secret / "summary.json").write_text('"never shown"')
    for path, route in ROUTES.items():
        for key in sorted(one.alias for one in get_flat_dependant(route.dependant).query_params):
            answer = asked(site, path, **{key: name})
            assert answer.status_code < 500, (path, key, answer.text)
            assert "never shown" not in answer.text
    for place in (name, f"0-1/{name}"):
        assert site.get(f"/static/{urllib.parse.quote(place)}").status_code in {404, 307, 400}


def test_a_module_is_served_by_its_exact_name_alone(site: Site) -> None:
    below = f"/static/{release()}-1"
    for name in MODULES:
        answer = site.get(f"/static/{name}" if name == "app.js" else f"{below}/{name}")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/javascript")
        assert answer.headers["x-content-type-options"] == "nosniff"
    for name in ("app.py", "__init__.py", "..%2fapp.py", "%2e%2e/plugin.py", ""):
        assert site.get(f"/static/{name}").status_code == 404
        assert site.get(f"{below}/{name or 'app.js'}").status_code == 404


def test_a_browser_keeps_the_modules_of_one_release_and_asks_for_the_entry_again(site: Site) -> None:
    entry = site.get("/static/app.js")
    assert entry.headers["cache-control"] == "no-cache"
    assert f'"{release()}"' in entry.text
    assert site.get(f"/static/{release()}-3/pages.js").headers["cache-control"].endswith("immutable")
    assert site.get("/static/0123456789ab-1/pages.js").headers["cache-control"] == "no-cache"
    assert site.get(f"/static/{release()}-1/app.js").status_code == 404
    assert site.get("/static/pages.js").status_code == 404


@pytest.mark.parametrize("path", ALL)
def test_every_answer_keeps_the_browser_from_running_it(site: Site, measured: Make, path: str) -> None:
    measured()
    site.dag_run("nightly", "r1")
    refused = asked(site, path, "other"), asked(site, path, None), asked(site, path, cycle="x")
    for answer in (asked(site, path), *refused):
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_explorer_has_the_values_of_summary_json(site: Site, measured: Make) -> None:
    run = measured()
    summary = json.loads(run.folder.read(layout.SUMMARY))
    found = site.get("/api/explore", **ASKED).json()
    assert found["answer"] == summary["answer"]
    assert (found["planned"], found["valid"]) == (summary["planned"], summary["valid"])
    for ours, stored in zip(found["experiments"], summary["experiments"], strict=True):
        assert (ours["id"], ours["valid"]) == (stored["id"], stored["valid"])
        by_name = {metric["name"]: metric["all"] for metric in stored["metrics"]}
        assert ours["metrics"].keys() == by_name.keys()
        for name, numbers in ours["metrics"].items():
            stated = by_name[name]
            assert (numbers["mean"], numbers["n"], numbers["sd"]) == (
                stated["mean"],
                stated["n"],
                stated["sd"],
            )
            interval = stated["interval"]
            assert (numbers["low"], numbers["high"]) == (interval["low"], interval["high"])
    assert found["fronts"]["output_tokens_per_s"] == [IDS[0]]


def test_the_explorer_has_the_values_of_the_frames(site: Site, measured: Make) -> None:
    run = measured()
    found = site.get("/api/explore", **ASKED).json()
    frame = experiments_df(run)
    keys = [name for name in frame.columns if "." in name]
    assert found["factors"] == keys == ["transformers.batch_size"]
    for ours, row in zip(found["experiments"], frame.to_dict("records"), strict=True):
        assert ours["factors"]["transformers.batch_size"] == row["transformers.batch_size"]
        assert ours["metrics"]["energy_j"]["mean"] == row["energy_j"]
    cycles = cycles_df(run)
    told = site.get("/api/values", **ASKED).json()["cycles"]
    assert [one["value"] for one in told] == cycles["energy_per_output_token_j"].tolist()
    assert [(one["experiment"], one["cycle"]) for one in told] == list(
        zip(cycles["experiment"], cycles["cycle"], strict=True)
    )


def test_an_interval_that_two_cycles_cannot_give_is_not_shown(site: Site) -> None:
    run = site.stored({key: one for key, one in MEASURED.items() if key[1] < 3}, cycles=2)
    aggregate_run(run)
    (one, _) = site.get("/api/explore", **ASKED).json()["experiments"]
    assert one["metrics"]["energy_j"]["n"] == 2
    assert one["metrics"]["energy_j"]["low"] is None
    number = site.get("/api/headline", **ASKED).json()["number"]
    assert (number["n"], number["low"]) == (2, None)


def test_the_headline_follows_the_best_experiment_through_the_runs(site: Site, measured: Make) -> None:
    runs = [measured(name) for name in ("r1", "r2")]
    found = site.get("/api/headline", **ASKED).json()
    frame = experiments_df(runs[1])
    best = frame.sort_values("energy_per_output_token_j").iloc[0]
    number = found["number"]
    assert number["experiment"] == best["experiment"]
    assert (number["mean"], number["low"], number["high"], number["n"]) == (
        best["energy_per_output_token_j"],
        best["energy_per_output_token_j_low"],
        best["energy_per_output_token_j_high"],
        3,
    )
    assert [one["mean"] for one in found["history"]] == [number["mean"]] * 2
    assert (found["planned"], found["valid"]) == (6, 6)
    rows = site.get("/api/runs", **ASKED).json()["runs"]
    assert [(row["valid"], row["planned"], row["number"]["mean"]) for row in rows] == [
        (6, 6, number["mean"])
    ] * 2


@pytest.mark.parametrize("form", ["csv", "json", "jsonl", "parquet"])
def test_downloads_are_attachments_with_the_rows_of_the_table(site: Site, measured: Make, form: str) -> None:
    run = measured()
    answer = site.get("/download/table", **{**ASKED, "format": form})
    assert answer.status_code == 200
    assert answer.headers["content-disposition"] == f'attachment; filename="nightly-r1-cycles.{form}"'
    if form == "parquet":
        rows = pq.read_table(io.BytesIO(answer.content)).to_pylist()
        assert [row["energy_j"] for row in rows] == cycles_df(run)["energy_j"].tolist()
    stored = site.get("/download/file", **ASKED)
    assert stored.content == run.folder.read(layout.SUMMARY)
    assert stored.headers["content-disposition"] == 'attachment; filename="nightly-r1-summary.json"'


def test_a_name_in_a_header_is_only_a_name(site: Site) -> None:
    run = site.root.run('a"\r\nX-Evil: 1', "r1")
    run.write_plan("", {}, {"dag_id": "nightly"})
    answer = site.get("/download/file", **{**ASKED, "name": "plan.json"})
    assert answer.status_code == 200
    assert "x-evil" not in answer.headers
    assert answer.headers["content-disposition"].count('"') == 2


def test_a_run_that_is_not_aggregated_or_damaged_or_newer_says_so(site: Site) -> None:
    run = site.stored(MEASURED, cycles=3)
    site.dag_run("nightly", "r1")
    assert "not aggregated yet" in site.get("/api/explore", **ASKED).json()["detail"]
    aggregate_run(run)
    summary = json.loads(run.folder.read(layout.SUMMARY))
    for stored, said in (
        (b'{"schema_version": 1', "not JSON"),
        (b"[]", "expected an object"),
        (json.dumps({**summary, "schema_version": 99, "new": 1}).encode(), "newer llem-airflow"),
        (json.dumps({**summary, "planned": "six"}).encode(), "planned"),
    ):
        run.folder.write(layout.SUMMARY, stored)
        answer = site.get("/api/explore", **ASKED)
        assert (answer.status_code, said in answer.json()["detail"]) == (409, True), answer.text
    run.folder.write(layout.PLAN, b'{"experiments": 3}')
    view = site.get("/api/run", **ASKED)
    assert view.status_code == 200
    assert "experiments: expected list" in view.json()["problem"]
    run.folder.write(layout.CYCLES_TABLE, b"PAR1")
    assert site.get("/api/values", **ASKED).status_code == 409
    run.folder.write(layout.EXPERIMENTS_TABLE, b"PAR1")
    assert site.get("/api/headline", **ASKED).json()["number"] is None
    assert site.get("/api/runs", **ASKED).json()["runs"][0]["number"] is None


def test_a_root_that_is_missing_empty_or_half_written_is_no_error(site: Site) -> None:
    site.dag_run("nightly", "r1")
    half = Path(site.root.url) / "nightly" / "r1" / "experiments"
    for _ in range(2):
        assert site.get("/api/studies").json()["studies"] == []
        assert site.get("/api/runs", **ASKED).json()["runs"] == []
        assert site.get("/api/run", **ASKED).json()["said"] == "No cycle was measured."
        half.mkdir(parents=True, exist_ok=True)
    (half.parent / "run.json").write_text('{"dag_id": "nigh')
    assert site.get("/api/studies").json()["studies"] == []


def test_the_index_sees_runs_that_come_and_go(site: Site, measured: Make) -> None:
    run = measured()
    assert len(site.get("/api/runs", **ASKED).json()["runs"]) == 1
    measured("r2")
    assert len(site.get("/api/runs", **ASKED).json()["runs"]) == 2
    shutil.rmtree(run.folder.path)
    assert [row["run_id"] for row in site.get("/api/runs", **ASKED).json()["runs"]] == ["r2"]


def test_a_file_that_is_written_again_is_read_again(site: Site, measured: Make) -> None:
    run = measured()
    before = site.get("/api/explore", **ASKED).json()
    text = run.folder.read(layout.SUMMARY).decode().replace(before["answer"], "Another answer.")
    run.folder.write(layout.SUMMARY, text.encode())
    assert site.get("/api/explore", **ASKED).json()["answer"] == "Another answer."


def test_the_change_against_the_run_before_is_what_the_aggregate_told(site: Site) -> None:
    make = run_maker(site.root, site.tmp_path)
    runs = []
    for place, factor in enumerate((1.0, 2.0)):
        recordings = {
            key: dataclasses.replace(one, power_w=float(one.power_w) * factor)  # type: ignore[arg-type]
            for key, one in MEASURED.items()
        }
        run = make(recordings, cycles=3, run_id=f"r{place}")
        meta = json.loads(run.folder.read(layout.RUN))
        run.folder.write(layout.RUN, json.dumps({**meta, "started_epoch_ns": place + 1}).encode())
        aggregate_run(run, page=lambda _: "")
        runs.append(run)
    told = against_previous(runs[1])
    assert told is not None
    stored = json.loads(runs[1].folder.read(layout.PREVIOUS))
    assert stored == told.told()
    since = site.get("/api/headline", **ASKED).json()["since"]
    report = next(one for one in told.reports if one.candidate.endswith(IDS[0]))
    assert (since["run_id"], since["verdict"]) == ("r0", "regression")
    assert (
        since["ratio"]
        == report.metrics["energy_per_output_token_j"].difference_ratio
        == pytest.approx(1.0, abs=0.02)
    )
    assert since["verdicts"] == {"regression": 2}
    first = json.loads(runs[0].folder.read(layout.RUN))
    runs[0].folder.write(layout.RUN, json.dumps({**first, "dag_id": "hidden"}).encode())
    os.utime(f"{site.root.url}/nightly")  # writing a file into a run changes that run's folder
    assert site.get("/api/headline", **ASKED).json()["since"] is None
