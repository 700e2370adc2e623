"""A study over several hosts: each number stands with how many measured it, each cycle with its host."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from playwright.sync_api import Page

from llem_airflow.analysis.statistics import describe
from llem_airflow.results import layout
from tests.analysis.conftest import IDS
from tests.results.recorded import Recording
from tests.web.conftest import Site
from tests.web.drawn import SHOW
from tests.web.written import ENERGY, written

A, B = "small-aaaaaaaa", "large-bbbbbbbb"
FOUR = [1.0, 1.4, 1.02, 1.43]
RUN = {"dag_id": "nightly", "run_id": "r001"}


def spread(site: Site, hosts: Sequence[str] = ("gpu1", "gpu2"), values: Sequence[float] = FOUR) -> None:
    for night in range(2):
        written(site.root, {A: list(values), B: [2 * one for one in values]}, night=night, hosts=hosts)


def test_each_number_of_a_spread_study_stands_with_its_hosts(site: Site) -> None:
    spread(site)
    told = describe(FOUR, hosts=["gpu1", "gpu2"] * 2)
    assert told is not None
    assert told.interval is not None
    ends = (told.mean, told.interval.low, told.interval.high, 4, 2)
    asked = {"dag_id": "nightly", "study": "nightly"}
    number = site.get("/api/headline", **asked).json()["number"]
    (history,) = site.get("/api/trend", **asked, experiment=A).json()["histories"]
    explored = site.get("/api/explore", **RUN).json()["experiments"][0]
    sides = site.get("/api/pair", **RUN, experiment=A, baseline="r000", baseline_experiment=A).json()["sides"]
    found = [number, explored["metrics"][ENERGY], *(side["metrics"][ENERGY] for side in sides)]
    numbers = [[one[key] for key in ("mean", "low", "high", "n", "hosts")] for one in found]
    for one in (*numbers, *(point[1:6] for point in history["points"])):
        assert one == pytest.approx(ends)
    assert explored["hosts"] == ["gpu1", "gpu2"]
    (cell,) = site.get("/api/compare", **asked).json()["rows"][0]["cells"]
    assert cell["metrics"][ENERGY]["hosts"] == 2
    (board,) = site.get("/api/leaderboard").json()["boards"]
    assert (board["ranked"][0]["n"], board["ranked"][0]["hosts"]) == (4, 2)


def test_an_interval_is_shown_from_as_many_cycles_within_hosts_as_everywhere(site: Site) -> None:
    spread(site, ("gpu1", "gpu2", "gpu3"))
    number = site.get("/api/headline", dag_id="nightly", study="nightly").json()["number"]
    told = describe(FOUR, hosts=["gpu1", "gpu2", "gpu3", "gpu1"])
    assert told is not None
    assert told.shown_interval is None
    assert (number["mean"], number["low"]) == (pytest.approx(told.mean), None)
    (board,) = site.get("/api/leaderboard").json()["boards"]
    assert board["ranked"][0]["low_j"] is None
    side = site.get("/api/pair", **RUN, experiment=A, baseline="r000", baseline_experiment=A).json()["sides"]
    assert side[0]["metrics"][ENERGY]["low"] is None


def test_runs_of_one_host_and_older_tables_say_nothing_of_hosts(site: Site) -> None:
    spread(site, ("gpu1",))
    number = site.get("/api/headline", dag_id="nightly", study="nightly").json()["number"]
    assert (number["n"], number["hosts"], number["low"] is None) == (4, 1, False)
    assert site.get("/api/explore", **RUN).json()["experiments"][0]["hosts"] == []


def test_each_cycle_has_its_host_before_and_after_it_was_measured(site: Site) -> None:
    run = site.stored({(0, 1): Recording(power_w=200.0)}, cycles=2)
    order = [IDS[0], IDS[1], IDS[1], IDS[0]]
    plan = {**run.plan(), "order": order, "hosts": ["gpu1", "gpu2", "gpu1", "gpu2"]}
    run.folder.write(layout.PLAN, json.dumps(plan).encode())
    site.dag_run("nightly", "r1", "running")
    one, other = site.get("/api/run", dag_id="nightly", run_id="r1").json()["experiments"]
    assert [cell["spread_to"] for cell in one["cells"]] == ["gpu1", "gpu2"]
    assert [cell["spread_to"] for cell in other["cells"]] == ["gpu2", "gpu1"]
    measured = site.get("/api/cycle", dag_id="nightly", run_id="r1", experiment=IDS[0], cycle=1).json()[
        "measured"
    ]
    assert one["cells"][0]["host"] == measured["host"] != ""
    assert one["cells"][1]["host"] is None


def test_the_plan_of_a_pasted_study_tells_the_cycles_of_each_host(site: Site) -> None:
    text = """
study_name: s
serving_mode: offline
task: {model: tiny}
sweep: {task.max_output_tokens: [8, 16]}
study_execution: {n_cycles: 4}
airflow: {hosts: [gpu1, gpu2], spread: SPREAD}
"""

    def plan(spread: str) -> Any:
        answer = site.client.post(
            "/api/check", content=text.replace("SPREAD", spread), headers={"x-user": "a"}
        )
        return answer.json()["plan"]

    for spread_by, each in (("cycles", [["gpu1", "gpu2"]] * 2), ("experiments", [["gpu1"], ["gpu2"]])):
        found = plan(spread_by)
        assert found["hosts"] == [{"name": "gpu1", "runs": 4}, {"name": "gpu2", "runs": 4}]
        assert [sorted(one["hosts"]) for one in found["experiments"]] == each
    assert (
        site.client.post(
            "/api/check", content=text.replace("airflow:", "# "), headers={"x-user": "a"}
        ).json()["plan"]["hosts"]
        == []
    )


@pytest.mark.browser
@pytest.mark.timeout(300)
def test_pages_say_on_how_many_hosts(site: Site, page: Page) -> None:
    spread(site)
    for run_id in ("r000", "r001"):
        site.dag_run("nightly", run_id, "success")
    results = "/dags/nightly/runs/r001/plugin/llem-energy?view=results"
    page.evaluate(SHOW, [results, {"dagId": "nightly", "runId": "r001"}])
    table = page.get_by_test_id("llem-experiments")
    table.get_by_text("gpu1, gpu2").first.wait_for()
    for view, where in (("trend", "llem-hover"), ("compare", "llem-pair")):
        address = f"/dags/nightly/plugin/llem-energy?view={view}&open={A}~~0"
        page.evaluate(SHOW, [address, {"dagId": "nightly"}])
        page.get_by_test_id(where).get_by_text("n = 4 on 2 hosts").first.wait_for()
