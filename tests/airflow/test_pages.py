"""The Energy pages in a real Chromium inside of a real Airflow: values, links, permissions, hostile text, sizes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from playwright.sync_api import FilePayload, Page, expect

from llem_airflow.analysis.aggregate import aggregate_run
from llem_airflow.frames import compare_df, history_df
from llem_airflow.report.page import report_html
from llem_airflow.results import ResultsRoot, StoredRun, layout
from llem_airflow.study import load_study, load_study_text
from tests.airflow.server import AirflowServer
from tests.browser import SETTLED, assert_accessible, chromium_page
from tests.results.recorded import Recording, provenance
from tests.web.written import ENERGY, written

pytestmark = [pytest.mark.airflow, pytest.mark.engine, pytest.mark.browser, pytest.mark.timeout(900)]

SHOTS = Path("build") / "screenshots"
STUDY = "looked-at"
"""Of these tests alone: the overview shows the newest run of a study."""
FOLLOWED = "followed"
"""Likewise, of many nights."""
HOSTILE = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>'
GOOD = """\
study_name: typed
serving_mode: offline
engine: transformers
task: {model: SmolLM2-135M-Instruct, max_output_tokens: 8}
sweep: {transformers.llem_execution.batch_size: [1, 2]}
study_execution: {n_cycles: 2}
runners: {transformers: process}
"""
WRONG = f"{GOOD}measurement:\n  meter: nvml\n  intervall: 1\n"


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    SHOTS.mkdir(parents=True, exist_ok=True)
    with chromium_page() as opened:
        yield opened


@pytest.fixture
def page(process_airflow: AirflowServer, browser: Page) -> Page:
    """The browser, signed in as the administrator."""
    sign_in(browser, process_airflow, "admin")
    browser.set_viewport_size({"width": 1400, "height": 1000})
    return browser


def sign_in(page: Page, airflow: AirflowServer, user: str | None) -> None:
    page.goto("about:blank")  # a page that is open would be sent to the login while there is no cookie
    page.context.clear_cookies()
    if user:
        page.context.add_cookies([{"name": "_token", "value": airflow.token(user), "url": airflow.url}])


@pytest.fixture(scope="module")
def measured(process_airflow: AirflowServer, tmp_path_factory: pytest.TempPathFactory) -> StoredRun:
    """A run of a study whose cycles are recordings: its DAG run is a dry one, which takes no time."""
    dag_run = process_airflow.run(STUDY, conf={"dry_run": True})
    study = load_study(process_airflow.home / "dags" / "studies" / f"{STUDY}.yaml")
    run = ResultsRoot(process_airflow.results).run(STUDY, dag_run["dag_run_id"])
    run.write_plan(study.text + f"\n# {HOSTILE}\n", study.plan.to_json(), {"dag_id": STUDY, "note": HOSTILE})
    folder = tmp_path_factory.mktemp("recorded")
    for index, experiment in enumerate(study.experiments):
        for cycle in (1, 2):
            left = folder / f"{index}-{cycle}"
            if (index, cycle) == (1, 2):
                left.mkdir()
                (left / "container.log").write_text(f"loading\n{HOSTILE}\nCUDA out of memory\n")
                failed = {
                    "category": "gpu_oom",
                    "message": f"no memory {HOSTILE}",
                    "hint": "lower the batch size",
                }
                run.commit_failed(experiment.id, cycle, 1, left, {"failure": failed})
                continue
            recording = Recording(
                hash=experiment.hash,
                cycle=cycle,
                config=experiment.config,
                power_w=200.0 - 30 * index + cycle,
                model=HOSTILE,
            )
            run.commit_cycle(experiment.id, cycle, recording.write(left), provenance(60.0 * cycle))
    aggregate_run(run, page=report_html)
    return run


def tab(airflow: AirflowServer, run: StoredRun, query: str = "") -> str:
    return f"{airflow.url}/dags/{STUDY}/runs/{run.run_id.replace('+', '%2B')}/plugin/llem-energy{query}"


@pytest.fixture(scope="module")
def followed(process_airflow: AirflowServer) -> pd.DataFrame:
    """A study of 14 nights, of a DAG of its own, in which one experiment gets dearer and the release changes."""
    newest = process_airflow.run(FOLLOWED, conf={"dry_run": True})["dag_run_id"]
    random, root = np.random.default_rng(1), ResultsRoot(process_airflow.results)
    for left in root.runs(FOLLOWED):  # of a first try
        if left.run_id != newest:
            left.folder.remove()
    for night in range(14):
        levels = {"small-aaaaaaaa": 2.4 if night >= 8 else 2.0, "large-bbbbbbbb": 1.0}
        written(
            root,
            {name: list(base * (1 + 0.004 * random.standard_normal(3))) for name, base in levels.items()},
            night=night,
            run_id=newest if night == 13 else "",
            study=FOLLOWED,
            dag_id=FOLLOWED,
            meta={"version": "v2" if night >= 8 else "v1"},
            measures={"ttft_mean_s": 0.2},
            fingerprint={"model": HOSTILE, "engine_version": "0.12" if night >= 5 else "0.11"},
        )
    return history_df(FOLLOWED, root=root)


def of_dag(airflow: AirflowServer, query: str) -> str:
    return f"{airflow.url}/dags/{FOLLOWED}/plugin/llem-study{query}"


def shown_numbers(page: Page) -> list[str]:
    return page.get_by_test_id("llem-experiments").locator("tbody tr").all_inner_texts()


def test_the_results_of_a_run_are_those_of_its_summary(
    process_airflow: AirflowServer, measured: StoredRun, page: Page
) -> None:
    summary: dict[str, Any] = json.loads(measured.folder.read(layout.SUMMARY))
    page.goto(tab(process_airflow, measured))
    answer = page.get_by_test_id("llem-answer")
    answer.wait_for()
    assert answer.inner_text() == summary["answer"]
    rows = shown_numbers(page)
    assert len(rows) == len(summary["experiments"])
    for row, experiment in zip(rows, summary["experiments"], strict=True):
        by_name = {metric["name"]: metric["all"]["mean"] for metric in experiment["metrics"]}
        assert f"{by_name['energy_per_output_token_j']:.3g}" in row
        assert f"{experiment['valid']} of {experiment['planned']}" in row
    picture = page.get_by_test_id("llem-factors").locator("svg title").all_inner_texts()
    assert len(picture) == 2
    page.screenshot(path=SHOTS / "pages-results-light.png", full_page=True)


def test_choices_stand_in_the_address_and_a_copied_link_shows_the_same(
    process_airflow: AirflowServer, measured: StoredRun, page: Page
) -> None:
    page.goto(tab(process_airflow, measured))
    page.get_by_test_id("llem-answer").wait_for()
    page.get_by_role("tab", name="Distributions").click()
    page.get_by_label("Metric", exact=True).select_option("output_tokens_per_s")
    page.get_by_test_id("llem-experiments").get_by_role("button", name="Valid").click()
    page.get_by_label("Filter rows").press_sequentially("batch_size 2")
    page.wait_for_url(
        re.compile(r"metric=output_tokens_per_s.*table-find=batch_size(\+|%20)2"), wait_until="commit"
    )
    page.get_by_text("1 of 2 rows").wait_for()
    assert len(shown_numbers(page)) == 1
    copied = page.url
    page.goto("about:blank")
    page.goto(copied)
    page.get_by_test_id("llem-distribution").locator("circle").first.wait_for()
    expect(page.get_by_test_id("llem-distribution").locator("circle, path")).to_have_count(3)
    expect(page.get_by_label("Metric", exact=True)).to_have_value("output_tokens_per_s")
    expect(page.get_by_test_id("llem-experiments").locator("tbody tr")).to_have_count(1)


def test_a_failed_cycle_has_its_reason_its_hint_its_output_and_its_log(
    process_airflow: AirflowServer, measured: StoredRun, page: Page
) -> None:
    page.goto(tab(process_airflow, measured, "?view=cycles"))
    cell = page.get_by_test_id("llem-matrix").get_by_role("button", name=re.compile("failed attempt"))
    cell.click()
    detail = page.get_by_test_id("llem-cell")
    for text in ("Attempt 1 failed: gpu oom", "CUDA out of memory", "Lower the batch size", HOSTILE):
        detail.get_by_text(text).first.wait_for()
    detail.get_by_role("link", name="Log of the task").click()
    page.wait_for_url(re.compile(r"/tasks/.*cycle_2"))


def test_the_power_of_a_cycle_is_zoomed_and_the_stretch_stands_in_the_address(
    process_airflow: AirflowServer, measured: StoredRun, page: Page
) -> None:
    experiment = measured.plan()["experiments"][0]["id"]
    page.goto(tab(process_airflow, measured, f"?view=cycle&cell={experiment}.1"))
    shown = page.get_by_test_id("llem-power")
    shown.locator("polyline").first.wait_for(state="attached")  # a level line has no height
    page.get_by_test_id("llem-latencies").wait_for()
    whole = [float(shown.get_attribute(name) or "nan") for name in ("data-begin", "data-end")]
    box = shown.locator("svg").first.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 0.4 * box["width"], box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 60, steps=5)
    page.mouse.up()
    page.wait_for_url(re.compile(r"from=[\d.]+&to=[\d.]+"))
    page.wait_for_function(
        "begin => Number(document.querySelector('[data-testid=llem-power]')?.dataset.begin) > begin",
        arg=whole[0] + 5,
    )
    near = [float(shown.get_attribute(name) or "nan") for name in ("data-begin", "data-end")]
    assert near[1] - near[0] == pytest.approx(0.2 * (whole[1] - whole[0]), rel=0.25)
    page.get_by_role("button", name="Whole cycle").click()
    page.wait_for_function(
        "begin => Number(document.querySelector('[data-testid=llem-power]')?.dataset.begin) === begin",
        arg=whole[0],
    )
    with page.expect_download() as started:
        page.get_by_role("link", name="as CSV").first.click()
    assert started.value.suggested_filename.endswith(".csv")
    task = f"{process_airflow.url}/dags/{STUDY}/runs/{measured.run_id.replace('+', '%2B')}/tasks/{experiment}.cycle_1"
    page.goto(f"{task}/plugin/llem-cycle")
    page.get_by_test_id("llem-power").locator("polyline").first.wait_for(
        state="attached"
    )  # a level line has no height


def test_a_plot_is_saved_as_it_is_shown(
    process_airflow: AirflowServer, measured: StoredRun, page: Page
) -> None:
    page.goto(tab(process_airflow, measured, f"?view=cycle&cell={measured.plan()['experiments'][0]['id']}.1"))
    shown = page.get_by_test_id("llem-power")
    shown.locator("polyline").first.wait_for(state="attached")
    saved = {}
    for form in ("SVG", "PNG"):
        with page.expect_download() as started:
            shown.get_by_role("button", name=f"Save as {form}").click()
        saved[form] = started.value.path().read_bytes()
        assert started.value.suggested_filename.startswith("Power-of-")
    assert saved["PNG"].startswith(b"\x89PNG\r\n")
    picture = ElementTree.fromstring(saved["SVG"])
    tags = [one.tag.rpartition("}")[2] for one in picture.iter()]
    assert set(tags) <= {"svg", "title", "g", "rect", "line", "text", "polyline", "polygon", "circle", "path"}
    assert tags.count("polyline") == shown.locator("polyline").count()
    assert b"var(" not in saved["SVG"]
    assert any(one.text == "Power, W" for one in picture.iter())


@pytest.mark.timeout(900)
def test_the_power_of_a_cycle_moves_while_it_is_measured(process_airflow: AirflowServer, page: Page) -> None:
    process_airflow.unpause("watched")
    run_id = process_airflow.trigger("watched").json()["dag_run_id"]
    run = f"{process_airflow.url}/dags/watched/runs/{run_id.replace('+', '%2B')}"
    page.goto(f"{run}/plugin/llem-energy")
    live = page.get_by_test_id("llem-live")
    live.locator("polyline").wait_for(state="attached", timeout=180_000)
    said = live.inner_text()
    assert "preliminary" in said
    assert "estimate" in said
    assert "W now" in said
    last = float(live.get_attribute("data-last") or "nan")
    page.wait_for_function(
        "last => Number(document.querySelector('[data-testid=llem-live]')?.dataset.last) > last + 2", arg=last
    )
    page.screenshot(path=SHOTS / "pages-live-light.png", full_page=True)
    cell = page.get_by_test_id("llem-matrix").get_by_role("button", name=re.compile("running"))
    cell.click()
    page.get_by_test_id("llem-cell").get_by_test_id("llem-live").wait_for()
    page.get_by_test_id("llem-cell").get_by_role("link", name="Power, requests").click()
    page.get_by_test_id("llem-cycle").get_by_test_id("llem-live").locator("polyline").wait_for(
        state="attached"
    )
    page.get_by_test_id("llem-power").wait_for(timeout=300_000)  # it has ended, and the page has seen that
    expect(page.get_by_test_id("llem-live")).to_have_count(0)
    (task_id,) = re.findall(r"cell=([^&]+)\.1", page.url)
    log = process_airflow.task_log("watched", run_id, f"{task_id}.cycle_1")
    assert "measure" in log
    assert '"power"' not in log


def test_nothing_of_a_result_is_executed(
    process_airflow: AirflowServer, measured: StoredRun, page: Page
) -> None:
    failed = f"{measured.plan()['experiments'][1]['id']}.2"
    for query in (
        "?view=results",
        f"?view=cycles&cell={failed}",
        f"?view=cycle&cell={failed}",
        "?view=study",
    ):
        page.goto(tab(process_airflow, measured, query))
        page.get_by_test_id("llem-page").get_by_text(HOSTILE[:20]).first.wait_for()
        assert page.evaluate("window.hacked") is None
        assert page.locator("img[src=x]").count() == 0


def test_the_overview_leads_to_the_study_and_to_its_run(
    process_airflow: AirflowServer, measured: StoredRun, page: Page
) -> None:
    page.goto(process_airflow.url)
    page.get_by_test_id("llem-card").get_by_role("link", name="Energy studies").click()
    row = page.get_by_test_id("llem-studies").get_by_role("listitem").filter(has_text=STUDY)
    row.get_by_test_id("llem-headline").wait_for()
    summary = json.loads(measured.folder.read(layout.SUMMARY))
    means = [
        metric["all"]["mean"]
        for experiment in summary["experiments"]
        for metric in experiment["metrics"]
        if metric["name"] == "energy_per_output_token_j"
    ]
    assert f"{min(means):.3g} J/token" in row.inner_text()
    page.screenshot(path=SHOTS / "pages-studies-light.png", full_page=True)
    page.get_by_label("Find a study").fill("no such study")
    page.get_by_text("0 of ").wait_for()
    page.get_by_label("Find a study").fill(STUDY[:4])
    row.get_by_role("link", name=STUDY, exact=True).click()  # beside that of its trend
    page.get_by_role("region", name="Runs").get_by_role("link").first.click()
    page.wait_for_url("**/plugin/llem-energy**", wait_until="commit")
    page.get_by_test_id("llem-page").get_by_role("heading", name=STUDY).wait_for()


def test_the_trend_has_the_values_of_the_frame_and_a_link_holds_its_state(
    process_airflow: AirflowServer, followed: pd.DataFrame, page: Page
) -> None:
    page.goto(f"{process_airflow.url}/plugin/llem-studies?find={FOLLOWED}")
    page.get_by_role("link", name=f"Trend of {FOLLOWED}").click()
    page.wait_for_url(re.compile("view=trend"), wait_until="commit")
    picture = page.get_by_test_id("llem-history")
    picture.locator("[data-run]").first.wait_for(state="attached")
    best = followed[followed["experiment"] == "large-bbbbbbbb"]
    points = picture.locator("[data-run]")
    assert [points.nth(k).get_attribute("data-run") for k in range(14)] == best["run_id"].tolist()
    for k in (0, 13):
        assert f"{best[ENERGY].iloc[k]:.3g} J/token" in (points.nth(k).get_attribute("aria-label") or "")
    table = page.get_by_test_id("llem-trend-experiments")
    table.get_by_role("checkbox", name="Show batch_size 1").click()
    page.wait_for_url(re.compile("experiments=large-bbbbbbbb(~|%7E)small-aaaaaaaa"), wait_until="commit")
    changes = followed[followed["change_ratio"].notna()]
    picture.locator("[data-change]").first.wait_for(state="attached")
    rings = picture.locator("[data-change]")
    assert [rings.nth(k).get_attribute("data-change") for k in range(rings.count())] == changes[
        "run_id"
    ].tolist()
    marks = {one.get_attribute("data-mark") for one in picture.locator("[data-mark]").all()}
    assert marks == {"release", "engine"}
    for state in followed["state"].dropna():
        table.get_by_text(state, exact=True).first.wait_for()
    page.screenshot(path=SHOTS / "pages-trend-light.png", full_page=True)
    page.get_by_label("Metric", exact=True).select_option("output_tokens_per_s")
    page.wait_for_url(re.compile("metric=output_tokens_per_s"), wait_until="commit")
    copied = page.url
    page.goto("about:blank")
    page.goto(copied)
    picture.get_by_text("Output tokens per second").wait_for()
    expect(picture.locator("[data-run]")).to_have_count(28)
    picture.locator("[data-run=r003]").first.dispatch_event("click")
    page.wait_for_url(re.compile(r"/runs/r003/plugin/llem-energy"), wait_until="commit")


def test_the_cells_of_a_comparison_are_those_of_the_command_and_open(
    process_airflow: AirflowServer, followed: pd.DataFrame, page: Page
) -> None:
    del followed
    page.goto(of_dag(process_airflow, "?view=compare"))
    cells = page.get_by_test_id("llem-heat").locator("[data-verdict]")
    cells.first.wait_for()
    root = ResultsRoot(process_airflow.results)
    frame = compare_df(f"{FOLLOWED}@v1", f"{FOLLOWED}@v2", root=root)
    frame = frame[frame["decides"] == True]  # noqa: E712 - of pandas
    assert [cells.nth(k).get_attribute("data-verdict") for k in range(2)] == frame["verdict"].tolist()
    for k, ratio in enumerate(frame["difference_ratio"]):
        assert f"{abs(ratio):.1%}".replace("%", " %") in cells.nth(k).inner_text()
    cells.first.get_by_role("button").click()
    page.wait_for_url(re.compile("open=small-aaaaaaaa"), wait_until="commit")
    page.get_by_test_id("llem-dumbbells").locator("circle").first.wait_for()
    assert "engine_version" not in page.get_by_test_id("llem-pair").inner_text()
    page.screenshot(path=SHOTS / "pages-comparison-light.png", full_page=True)


def test_the_leaderboard_ranks_within_a_limit(
    process_airflow: AirflowServer, followed: pd.DataFrame, page: Page
) -> None:
    least = followed[followed["experiment"] == "large-bbbbbbbb"][ENERGY].iloc[-1]
    page.goto(f"{process_airflow.url}/plugin/llem-studies?page=leaderboard")
    row = page.get_by_test_id("llem-leaderboard").get_by_role("row").filter(has_text=FOLLOWED).first
    row.wait_for()
    assert f"{least:.3g} J/token" in row.inner_text()
    page.screenshot(path=SHOTS / "pages-leaderboard-light.png", full_page=True)
    page.get_by_label("Limit, in milliseconds").fill("100")
    page.wait_for_url(re.compile("limit_ms=100"), wait_until="commit")
    row.filter(has_text="beyond the limit").wait_for()
    assert page.evaluate("window.hacked") is None


def test_all_factors_of_a_sweep_are_lines_that_a_level_picks(
    process_airflow: AirflowServer, followed: pd.DataFrame, page: Page
) -> None:
    run_id = str(followed["run_id"].iloc[-1]).replace("+", "%2B")
    page.goto(
        f"{process_airflow.url}/dags/{FOLLOWED}/runs/{run_id}/plugin/llem-energy?view=results&plot=parallel"
    )
    picture = page.get_by_test_id("llem-parallel")
    picture.locator("[data-experiment]").first.wait_for(state="attached")
    expect(picture.locator("[data-experiment]")).to_have_count(2)
    picture.get_by_role("button", name="batch_size 2").locator("circle").click()
    page.wait_for_url(re.compile("through=vllm.batch_size"), wait_until="commit")
    left = picture.locator("[data-experiment]")
    expect(left).to_have_count(1)
    expect(left).to_have_attribute("data-experiment", "large-bbbbbbbb")


def test_a_new_study_is_checked_as_it_is_written_and_keys_and_values_are_completed(
    process_airflow: AirflowServer, page: Page
) -> None:
    page.goto(f"{process_airflow.url}/plugin/llem-studies")
    page.get_by_role("link", name="New study").click()
    page.wait_for_url(re.compile("page=new"), wait_until="commit")
    field = page.get_by_label("Study, as YAML")
    field.fill("")  # what another test wrote is kept by the tab of the browser
    trigger = page.get_by_role("button", name="Trigger", exact=True)
    expect(trigger).to_be_disabled()
    page.evaluate("text => navigator.clipboard.writeText(text)", GOOD)
    field.press("Control+V")
    plan = page.get_by_test_id("llem-plan")
    plan.get_by_text("2 x 2 = 4").wait_for()
    assert plan.locator("code").all_inner_texts() == [one.id for one in load_study_text(GOOD).experiments]
    expect(trigger).to_be_enabled()
    field.press("Control+End")
    field.press_sequentially("measurem")
    page.get_by_role("listbox", name="Completions").get_by_role("option").first.wait_for()
    field.press("Enter")
    field.press("Enter")
    field.press_sequentially("meter: nv")
    page.get_by_role("option", name="nvml").first.wait_for()
    field.press("Tab")
    expect(field).to_have_value(f"{GOOD}measurement:\n  meter: nvml")
    field.press("Enter")
    field.press_sequentially("intervall: 1")
    problems = page.get_by_test_id("llem-problems")
    problems.get_by_text("measurement.intervall").wait_for()
    expect(page.get_by_test_id("llem-mark")).to_have_count(1)
    assert field.input_value().count("\n") == 9
    expect(trigger).to_be_disabled()
    problems.get_by_role("button", name="line 10:3").click()
    at = field.input_value().index("intervall")
    page.wait_for_function("at => document.activeElement?.selectionStart === at", arg=at)


def test_a_file_becomes_a_new_study_and_is_triggered_with_the_rights_of_the_user(
    process_airflow: AirflowServer, page: Page
) -> None:
    process_airflow.unpause("llem_adhoc")
    page.goto(f"{process_airflow.url}/plugin/llem-studies?page=new")
    field = page.get_by_label("Study, as YAML")
    hostile = FilePayload(name="bad.yaml", mimeType="text/plain", buffer=f"{HOSTILE}: 1\r\n".encode())
    page.get_by_label("Study file").set_input_files(hostile)
    page.get_by_test_id("llem-problems").get_by_text(HOSTILE[:20]).first.wait_for()
    expect(field).to_have_value(f"{HOSTILE}: 1\n")
    assert page.evaluate("window.hacked") is None
    dropped = page.evaluate_handle(
        "text => {const all = new DataTransfer(); all.items.add(new File([text], 'good.yaml')); return all}",
        GOOD,
    )
    field.dispatch_event("drop", {"dataTransfer": dropped})
    page.get_by_test_id("llem-plan").wait_for()
    expect(field).to_have_value(GOOD)
    page.get_by_label("Dry run").check()
    page.get_by_role("button", name="Trigger a dry run").click()
    link = page.get_by_role("link", name=re.compile("^Watch "))
    run_id = link.inner_text().removeprefix("Watch ")
    run = process_airflow.get(f"/api/v2/dags/llem_adhoc/dagRuns/{run_id}").json()
    assert (run["conf"], run["triggering_user_name"]) == ({"study": GOOD, "dry_run": True}, "admin")
    link.click()
    page.wait_for_url("**/runs/manual*/plugin/llem-energy", wait_until="commit")
    sign_in(page, process_airflow, "bob")
    page.goto(f"{process_airflow.url}/plugin/llem-studies?page=new")
    page.get_by_text("but not trigger llem_adhoc").wait_for()
    page.get_by_test_id("llem-plan").wait_for()  # may be checked
    assert page.get_by_role("button", name=re.compile("Trigger")).count() == 0


def test_a_viewer_sees_the_pages_and_an_anonymous_visitor_nothing(
    process_airflow: AirflowServer, measured: StoredRun, page: Page
) -> None:
    sign_in(page, process_airflow, "bob")
    page.goto(tab(process_airflow, measured))
    page.get_by_test_id("llem-answer").wait_for()
    sign_in(page, process_airflow, None)
    page.goto(f"{process_airflow.url}/plugin/llem-studies")
    page.wait_for_url("**/login**")
    for path in (
        "/llem/api/studies",
        "/llem/static/app.js",
        "/llem/api/run",
        "/llem/download/file",
        "/llem/api/leaderboard",
    ):
        answer = process_airflow.get(
            path, user=None, dag_id=STUDY, run_id=measured.run_id, name="summary.json"
        )
        assert answer.status_code == 401


def test_a_download_is_a_file_with_the_rows_of_the_table(
    process_airflow: AirflowServer, measured: StoredRun, page: Page
) -> None:
    page.goto(tab(process_airflow, measured))
    with page.expect_download() as started:
        page.get_by_role("link", name="cycles, CSV").click()
    text = started.value.path().read_text()
    assert len(text.splitlines()) == 1 + 4
    assert "energy_per_output_token_j" in text.splitlines()[0]


def in_each_theme(page: Page) -> Iterator[str]:
    """Show the page that is open in one theme after the other, as the menu of a user's other tab does."""
    for theme in ("light", "dark"):
        page.evaluate(
            """theme => {
                localStorage.setItem('theme', theme);
                dispatchEvent(new StorageEvent('storage', {key: 'theme', newValue: theme}));
            }""",
            theme,
        )
        page.wait_for_function(
            "dark => document.documentElement.classList.contains('dark') === dark", arg=theme == "dark"
        )
        yield theme


def write(page: Page) -> None:
    """In the editor, where one is: a study with a mistake, and wait until that is told."""
    field = page.get_by_label("Study, as YAML")
    if field.count():
        field.fill(WRONG)
        page.get_by_test_id("llem-problems").get_by_text("measurement.intervall").wait_for()


def test_pages_fit_a_phone_follow_the_theme_and_are_accessible(
    process_airflow: AirflowServer, measured: StoredRun, followed: pd.DataFrame, page: Page
) -> None:
    assert len(followed)
    experiment = measured.plan()["experiments"][0]["id"]
    run = f"{process_airflow.url}/dags/{STUDY}/runs/{measured.run_id.replace('+', '%2B')}"
    where = {
        "studies": f"{process_airflow.url}/plugin/llem-studies",
        "task": f"{run}/tasks/{experiment}.cycle_1/plugin/llem-cycle",
        "new": f"{process_airflow.url}/plugin/llem-studies?page=new",
        "run": tab(process_airflow, measured, "?view=results"),
        "pareto": tab(process_airflow, measured, "?view=results&plot=pareto"),
        "cycles": tab(process_airflow, measured, "?view=cycles"),
        "runs": of_dag(process_airflow, "?view=runs"),
        "trend": of_dag(process_airflow, "?view=trend"),
        "comparison": of_dag(process_airflow, "?view=compare&open=small-aaaaaaaa~~0"),
        "leaderboard": f"{process_airflow.url}/plugin/llem-studies?page=leaderboard",
    }
    page.set_viewport_size({"width": 1400, "height": 1400})
    for name, url in where.items():
        page.goto(url)
        shown = page.get_by_test_id("llem-page")
        shown.locator("svg, table, textarea, [data-testid=llem-headline]").first.wait_for()
        write(page)
        page.get_by_text("Loading …").first.wait_for(state="detached")
        for theme in in_each_theme(page):
            assert_accessible(page)
            page.screenshot(path=SHOTS / f"pages-{name}-{theme}.png", full_page=True)
    page.goto(process_airflow.url)
    page.get_by_test_id("llem-card").wait_for()
    for theme in in_each_theme(page):
        page.evaluate(SETTLED)
        page.screenshot(path=SHOTS / f"pages-card-{theme}.png")
    page.set_viewport_size({"width": 400, "height": 800})
    phone = {"studies": "[data-testid=llem-headline]", "new": "textarea", "leaderboard": "table"}
    for name, drawn in phone.items():
        page.goto(where[name])
        shown = page.get_by_test_id("llem-page")
        shown.locator(drawn).first.wait_for()
        write(page)
        for theme in in_each_theme(page):
            page.evaluate(SETTLED)
            assert shown.evaluate("one => one.scrollWidth - one.clientWidth") <= 0
            assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
            page.screenshot(path=SHOTS / f"pages-{name}-phone-{theme}.png", full_page=True)


def test_a_dag_that_is_none_of_ours_gets_a_neutral_line(process_airflow: AirflowServer, page: Page) -> None:
    page.goto(f"{process_airflow.url}/dags/llem_maintenance/plugin/llem-study")
    page.get_by_text("No run of this DAG has measured energy").wait_for()
