"""Power of a cycle at work in a real Chromium: Airflow's own bundle gives what pages are made of, no Airflow runs."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

import pytest
from playwright.sync_api import Page

from llem_airflow.operators.live import LiveSeries
from llem_airflow.protocol.live import DevicePower, LivePhase, LivePower
from llem_airflow.results import StoredRun
from llem_airflow.results.records import end_live, write_live
from tests.analysis.conftest import IDS
from tests.results.recorded import Recording
from tests.web.conftest import Site
from tests.web.drawn import SHOW

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

HOSTILE = '<img src=x onerror="window.hacked=1">'
RUN = "/dags/nightly/runs/r1/plugin/llem-energy"


class Worker:
    """Tells power of two GPUs every two seconds of its own time."""

    def __init__(self, run: StoredRun) -> None:
        self._run, self._series, self._now_s = run, LiveSeries(), 0
        self._series.add(LivePhase(0, "measure"))

    def go_on(self, records: int) -> None:
        for _ in range(records):
            self._now_s += 2
            power = DevicePower(200.0, 220.0 + self._now_s, 400.0, 20)
            devices = {f"GPU-{n}{HOSTILE}": power for n in (0, 1)}
            self._series.add(LivePower(self._now_s * 10**9, "estimate", devices))
        told = self._series.told(1)
        assert told is not None
        write_live(self._run, IDS[0], 2, told)


def saved(page: Page, where: str, form: str) -> bytes:
    with page.expect_download() as started:
        page.get_by_test_id(where).get_by_role("button", name=f"Save as {form}").click()
    return started.value.path().read_bytes()


def test_the_plot_moves_while_a_cycle_is_measured_ends_with_it_and_is_saved(site: Site, page: Page) -> None:
    run = site.stored({(0, 1): Recording(power_w=200.0)}, cycles=2)
    site.dag_run("nightly", "r1", "running")
    for cycle, state in ((1, "success"), (2, "running")):
        values: dict[str, Any] = {"state": state, "try_number": 1, "operator": "LLEMExperimentOperator"}
        site.task("nightly", "r1", f"{IDS[0]}.cycle_{cycle}", **values)
    worker = Worker(run)
    worker.go_on(20)
    page.evaluate(SHOW, [RUN, {"dagId": "nightly", "runId": "r1"}])
    live = page.get_by_test_id("llem-live")
    live.locator("polyline").first.wait_for(state="attached")
    for text in ("preliminary", "estimate", "measure", "520 W now, 2 devices", HOSTILE):
        assert text in live.inner_text()
    worker.go_on(3)
    page.locator("[data-testid=llem-live][data-last='46']").wait_for()
    page.get_by_test_id("llem-matrix").get_by_role("button", name=re.compile("running")).click()
    cell = page.get_by_test_id("llem-cell")
    cell.get_by_test_id("llem-live").wait_for()
    cell.get_by_role("link", name="Power, requests").click()
    page.get_by_test_id("llem-cycle").get_by_test_id("llem-live").locator("polyline").first.wait_for(
        state="attached"
    )
    picture = ElementTree.fromstring(saved(page, "llem-live", "SVG"))
    assert {one.tag.rpartition("}")[2] for one in picture.iter()} <= {
        *("svg", "title", "g", "rect", "line", "text", "polyline", "polygon", "circle", "path")
    }
    assert any(one.text and HOSTILE in one.text for one in picture.iter())
    assert saved(page, "llem-live", "PNG").startswith(b"\x89PNG\r\n")
    end_live(run, IDS[0], 2)
    page.get_by_text("No attempt has left a result").wait_for()
    assert page.evaluate("window.hacked") is None


def test_a_measured_cycle_and_a_task_of_the_dag_have_their_pages(site: Site, page: Page) -> None:
    site.stored({(0, 1): Recording(power_w=200.0)}, cycles=1)
    site.dag_run("nightly", "r1", "success")
    task_id = f"{IDS[0]}.cycle_1"
    site.task("nightly", "r1", task_id, state="success", try_number=1)
    page.evaluate(
        SHOW, [f"/dags/nightly/tasks/{task_id}/plugin/llem-task", {"dagId": "nightly", "taskId": task_id}]
    )
    link = page.get_by_test_id("llem-task-runs").get_by_role("link").get_attribute("href")
    assert link == f"{RUN}?view=cycle&cell={IDS[0]}.1"
    page.evaluate(SHOW, [link, {"dagId": "nightly", "runId": "r1"}])
    page.get_by_test_id("llem-power").locator("polyline").first.wait_for(state="attached")
    assert b"var(" not in saved(page, "llem-power", "SVG")
    page.evaluate(SHOW, [f"/dags/nightly/tasks/group/{IDS[0]}/plugin/llem-task", {"dagId": "nightly"}])
    page.get_by_role("heading", name=f"{IDS[0]} in the newest runs").wait_for()
    page.evaluate(
        SHOW, ["/dags/nightly/runs/r1/tasks/x", {"dagId": "nightly", "runId": "r1", "taskId": task_id}]
    )
    page.get_by_test_id("llem-power").locator("polyline").first.wait_for(state="attached")
