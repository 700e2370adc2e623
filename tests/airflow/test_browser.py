"""What people do in Airflow's own pages: paste a study, look at its problems, backfill releases."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page

from llem_airflow.web.answers import in_theme
from tests.airflow.conftest import CHOICE
from tests.airflow.server import AirflowServer, new_run
from tests.browser import chromium_page

pytestmark = [pytest.mark.airflow, pytest.mark.engine, pytest.mark.browser, pytest.mark.timeout(900)]

SHOTS = Path("build") / "screenshots"


@pytest.fixture
def page(process_airflow: AirflowServer) -> Iterator[Page]:
    SHOTS.mkdir(parents=True, exist_ok=True)
    with chromium_page() as opened:
        opened.set_default_timeout(90_000)
        opened.context.add_cookies(
            [{"name": "_token", "value": process_airflow.token(), "url": process_airflow.url}]
        )
        yield opened


def trigger_dialog(page: Page, airflow: AirflowServer, dag_id: str) -> Locator:
    airflow.unpause(dag_id)
    page.goto(f"{airflow.url}/dags/{dag_id}")
    page.get_by_role("button", name="Trigger").first.click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_text("What to measure").first.wait_for()
    return dialog


def paste(page: Page, airflow: AirflowServer, study: str) -> dict[str, Any]:
    """Trigger llem_adhoc with a text in its form, and wait for the end of the run."""
    known = {run["dag_run_id"] for run in airflow.runs("llem_adhoc")}
    dialog = trigger_dialog(page, airflow, "llem_adhoc")
    dialog.get_by_text("Study", exact=True).first.click()
    dialog.locator("textarea[name=element_study]").fill(study)
    dialog.get_by_text("Study", exact=True).first.click()
    dialog.get_by_role("button", name="Trigger").last.click()
    run = new_run(airflow, "llem_adhoc", known, "manual")
    page.goto("about:blank")  # a page that shows a run at work takes a whole core to do so
    return airflow.finished("llem_adhoc", run["dag_run_id"])


def test_a_study_that_is_pasted_into_the_form_is_measured_and_its_report_is_a_tab(
    process_airflow: AirflowServer, page: Page
) -> None:
    run = paste(
        page, process_airflow, CHOICE.replace("choice", "pasted").replace("n_cycles: 2", "n_cycles: 1")
    )
    instances = process_airflow.instances("llem_adhoc", run["dag_run_id"])
    assert run["state"] == "success", instances
    cycles = [each["rendered_map_index"] for each in instances if each["task_id"] == "cycle"]
    assert len(cycles) == 2
    assert all(name.endswith(" cycle 1") for name in cycles)
    (report,) = (process_airflow.results / "pasted").glob("*/report.html")
    answer = process_airflow.get("/llem/run", dag_id="llem_adhoc", run_id=run["dag_run_id"])
    assert (answer.status_code, answer.text) == (200, in_theme(report.read_text()))
    page.goto(f"{process_airflow.url}/dags/llem_adhoc/runs/{run['dag_run_id']}")
    page.locator("a[href$='/plugin/llem-energy']").click()  # the menu has an Energy too
    page.get_by_role("heading", name="pasted").wait_for()
    page.get_by_test_id("llem-answer").wait_for()
    page.screenshot(path=SHOTS / "adhoc-good.png", full_page=True)


def test_the_page_of_an_invalid_study_shows_its_problems_with_line_and_column(
    process_airflow: AirflowServer, page: Page
) -> None:
    page.goto(f"{process_airflow.url}/dags?name_pattern=broken")  # the list searches by how names begin
    page.get_by_role("link", name="broken.yaml has problems").first.wait_for()
    page.goto(f"{process_airflow.url}/dags/invalid.broken")
    page.get_by_role("button", name="Dag Docs").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_text("broken.yaml has problems").wait_for()
    dialog.locator("li", has_text="broken.yaml:4:1: engnie").wait_for()
    dialog.locator("code", has_text="broken.yaml:4:1: engnie").wait_for()
    page.screenshot(path=SHOTS / "invalid-docs.png")
    run = process_airflow.run("invalid.broken")
    page.goto(f"{process_airflow.url}/dags/invalid.broken/runs/{run['dag_run_id']}/plugin/llem-energy")
    page.get_by_test_id("llem-page").locator("pre", has_text="broken.yaml:4:1: engnie").wait_for()


def test_rows_of_the_grid_are_called_by_what_differs_and_a_cycle_leads_to_its_evidence(
    process_airflow: AirflowServer, page: Page
) -> None:
    process_airflow.unpause("choice")
    page.goto(f"{process_airflow.url}/dags/choice")
    for name in ("batch_size 1", "batch_size 2"):
        page.get_by_text(name, exact=True).first.wait_for()
    page.get_by_role("button", name="Dag Docs").click()
    page.get_by_role("dialog").get_by_text("each in a fresh process").wait_for()
    page.screenshot(path=SHOTS / "study-docs.png")
    run = process_airflow.run("choice", conf={"cycles": 1})
    task_id = next(name for name in process_airflow.states("choice", run["dag_run_id"]) if "cycle_1" in name)
    where = f"/api/v2/dags/choice/dagRuns/{run['dag_run_id']}/taskInstances/{task_id}/links"
    link = process_airflow.get(where).json()["extra_links"]["Evidence"]
    page.goto(process_airflow.url + link)
    page.get_by_text("Energy ").first.wait_for()
    page.get_by_text("result.json").wait_for()
    assert "J (estimate, cpu-estimate)" in process_airflow.task_log("choice", run["dag_run_id"], task_id)


def test_problems_of_a_pasted_study_stand_in_the_page_of_its_plan_with_line_and_column(
    process_airflow: AirflowServer, page: Page
) -> None:
    bad = CHOICE.replace("max_output_tokens: 8", "max_output_tokens: lots").replace("engine:", "engnie:")
    run = paste(page, process_airflow, bad)
    assert run["state"] == "failed"
    assert process_airflow.states("llem_adhoc", run["dag_run_id"])["cycle"] == "upstream_failed"
    page.goto(f"{process_airflow.url}/dags/llem_adhoc/runs/{run['dag_run_id']}/tasks/plan")
    page.get_by_text("study:4:1: engnie").first.wait_for()
    page.get_by_text("study:8:22: task.max_output_tokens").first.wait_for()
    page.goto(f"{process_airflow.url}/dags/llem_adhoc/runs/{run['dag_run_id']}/plugin/llem-energy")
    shown = page.get_by_test_id("llem-page")
    shown.locator("pre", has_text="study:4:1: engnie").first.wait_for()
    assert len(shown.get_by_test_id("llem-problem").all()) == 2
    line = shown.get_by_role("listitem").filter(has_text="engnie: scripted")
    line.get_by_test_id("llem-problem").filter(has_text="engnie").wait_for()
    page.screenshot(path=SHOTS / "adhoc-bad.png", full_page=True)


def test_a_backfill_from_the_page_makes_a_run_of_each_release_in_its_dates(
    process_airflow: AirflowServer, page: Page
) -> None:
    known = {run["dag_run_id"] for run in process_airflow.runs("paged")}
    dialog = trigger_dialog(page, process_airflow, "paged")
    dialog.get_by_text("Backfill", exact=True).first.click()
    for day in ("2026/01/01", "2026/01/15"):
        dialog.get_by_text("Select date and time").first.click()
        page.get_by_placeholder("YYYY/MM/DD").fill(day)
        page.keyboard.press("Enter")
        dialog.get_by_text("Date Range").click()
    page.screenshot(path=SHOTS / "backfill-form.png")
    dialog.get_by_role("button", name="Run Backfill").click()
    run = new_run(process_airflow, "paged", known, "backfill")
    page.goto("about:blank")
    ended = process_airflow.finished("paged", run["dag_run_id"])
    process_airflow.send(
        "PATCH", "/api/v2/dags/paged", {"is_paused": True}
    )  # or later releases run by themselves
    assert (ended["partition_key"], ended["state"]) == ("lab/tiny@r1", "success")
    page.goto(f"{process_airflow.url}/dags/paged/runs/{run['dag_run_id']}")
    page.get_by_text(run["dag_run_id"]).first.wait_for()  # the name of the release is in it
    page.screenshot(path=SHOTS / "backfill-runs.png", full_page=True)
