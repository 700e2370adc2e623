"""Studies in sessions on a real scheduler, in real containers: what is measured, what is left, what the run ends as."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import pytest
from playwright.sync_api import Page, expect

from llem_airflow.results import ResultsRoot
from llem_airflow.results.store import StoredRun
from tests.airflow.conftest import small
from tests.airflow.server import AirflowServer, more_studies
from tests.airflow.test_pages import SHOTS, browser, page
from tests.browser import assert_accessible
from tests.parts import left_by

__all__ = ["browser", "page"]

pytestmark = [
    pytest.mark.airflow,
    pytest.mark.docker,
    pytest.mark.engine,
    pytest.mark.browser,
    pytest.mark.timeout(1800),  # two runs, each of which may take seven minutes on a busy machine
]

FOUR = "sweep: {scripted.engine_params.step_s: [0.001, 0.002], task.max_output_tokens: [4, 8]}\n"
"""Two sessions of two experiments."""
ONE_FAILS = "sweep: {transformers.llem_execution.chat_template: [true, false]}\n"
"""One session; the first experiment asks for a template that the model spoils."""


def in_sessions(name: str, engine: str, image: str, sweep: str) -> str:
    text = small(name, engine).replace("n_cycles: 1", "n_cycles: 1, isolation: process")
    return text.replace(f"{engine}: process", f"{engine}: container") + (
        f"images: {{{engine}: '{image}'}}\n{sweep}"
    )


@dataclass(frozen=True)
class Ended:
    """A run that has come to its end.

    Attributes:
        airflow: The server.
        run: As Airflow tells it.
        stored: Its results.
        left: What of this Airflow's was on the engine afterwards.
    """

    airflow: AirflowServer
    run: dict[str, Any]
    stored: StoredRun
    left: list[str]

    def states(self, *last_words: str) -> list[str]:
        """Of the tasks whose ids end so, in the order of their starts."""
        told = self.airflow.instances(self.run["dag_id"], self.run["dag_run_id"])
        own = [ti for ti in told if ti["task_id"].rpartition(".")[2] in last_words]
        return [ti["state"] for ti in sorted(own, key=lambda ti: str(ti["start_date"]))]

    def log(self, last_word: str) -> str:
        """Of the first task whose id ends so."""
        dag_id, run_id = self.run["dag_id"], self.run["dag_run_id"]
        task_id = next(each for each in self.airflow.states(dag_id, run_id) if each.endswith(last_word))
        return self.airflow.task_log(dag_id, run_id, task_id)


@pytest.fixture(scope="module")
def ended(
    process_airflow: AirflowServer, docker_api: docker.APIClient, cpu_image: str, python_image: str
) -> Iterator[dict[str, Ended]]:
    """Both studies, run at the same time, by name."""
    airflow = process_airflow
    model = Path(airflow.environment["LLEM_MODELS_DIR"]) / "spoiled-template"
    shutil.copytree(model.with_name("tiny-llama-random"), model)
    (model / "chat_template.jinja").write_text("{{ raise_exception('this template is spoiled') }}")
    studies = {
        "four": in_sessions("four", "scripted", python_image, FOUR),
        "one-fails": in_sessions("one-fails", "transformers", cpu_image, ONE_FAILS).replace(
            "tiny-llama-random", model.name
        ),
    }
    with more_studies(airflow, studies):
        started = {}
        for name in studies:
            airflow.unpause(name)
            answer = airflow.trigger(name)
            answer.raise_for_status()
            started[name] = answer.json()["dag_run_id"]
        runs = {name: airflow.finished(name, run_id) for name, run_id in started.items()}
        left = left_by(docker_api, airflow.installation)
        root = ResultsRoot(airflow.results)
        yield {name: Ended(airflow, run, root.run(name, started[name]), left) for name, run in runs.items()}


def test_four_experiments_in_two_sessions_are_each_measured_once_and_nothing_stays(
    ended: dict[str, Ended],
) -> None:
    four = ended["four"]
    assert four.run["state"] == "success", four.log(".cycle_1")
    cycles = four.stored.cycles(repeats=True)
    assert len({ref.experiment_id for ref in cycles}) == len(cycles) == 4
    told = sorted(
        (one["session"], one["position_in_session"]) for one in (ref.provenance() for ref in cycles)
    )
    first, second = sorted({session for session, _ in told})
    assert told == [(session, place) for session in (first, second) for place in range(2)]
    assert {len(ref.session()["lives"]) for ref in cycles} == {1}, "no session was started again"
    assert four.states("start_session", "stop_session") == ["success"] * 4
    assert four.left == []


def test_the_log_of_a_cycle_says_where_it_runs(ended: dict[str, Ended]) -> None:
    log = ended["four"].log(".cycle_1")
    assert "cycle 1, as a process in the container of session scripted-tiny-llama-random-" in log


def test_the_page_of_the_run_shows_which_cycles_share_a_container(
    ended: dict[str, Ended], page: Page
) -> None:
    four = ended["four"]
    run_id = four.stored.run_id.replace("+", "%2B")
    page.goto(f"{four.airflow.url}/dags/four/runs/{run_id}/plugin/llem-energy?view=cycles")
    rows = page.get_by_test_id("llem-sessions").locator("tbody tr")
    expect(rows).to_have_count(2)
    for row in rows.all_inner_texts():
        for text in ("-c1", "removed", "first in its container", "after 1 attempt", "nothing wrong"):
            assert text in row
    rows.first.get_by_role("button").last.click()
    expect(page.get_by_test_id("llem-cell")).to_contain_text("a process of its own, after 1 attempt")
    assert_accessible(page)
    page.screenshot(path=SHOTS / "pages-sessions-light.png", full_page=True)


def test_one_failed_cycle_makes_the_run_red_and_the_others_and_the_teardown_go_on(
    ended: dict[str, Ended],
) -> None:
    one_fails = ended["one-fails"]
    assert one_fails.run["state"] == "failed"
    assert one_fails.states("cycle_1") == ["failed", "success"]
    assert "this template is spoiled" in one_fails.log(".cycle_1")
    (measured,) = one_fails.stored.cycles(repeats=True)
    assert measured.provenance()["position_in_session"] == 1
    assert one_fails.states("stop_session") == ["success"]
    assert one_fails.left == []
