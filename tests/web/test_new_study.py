"""The check of a pasted study: what it would measure or what is wrong where; nothing is stored, run or read for it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from llem_airflow.study import StudyFileError, load_study_text
from llem_airflow.study.config.schema import json_schema
from llem_airflow.web import new_study
from llem_airflow.web.modules import MODULES
from tests.browser import chromium_page
from tests.web.conftest import Site

GOOD = """\
study_name: pasted
serving_mode: offline
task: {model: tiny}
sweep:
  transformers.llem_execution.batch_size: [1, 2]
study_execution: {n_cycles: 3}
"""
HOSTILE = '<img src=x onerror="window.hacked=1">'


def post(site: Site, text: str | bytes, user: str | None = "anybody") -> Any:
    headers = {"x-user": user} if user else {}
    return site.client.post("/api/check", content=text, headers=headers)


def test_the_answer_to_a_good_text_is_its_plan(site: Site) -> None:
    answer = post(site, GOOD)
    found = answer.json()
    study = load_study_text(GOOD)
    assert (answer.status_code, found["problems"]) == (200, [])
    plan = found["plan"]
    assert (plan["name"], plan["unique"], plan["cycles"], plan["runs"]) == ("pasted", 2, 3, 6)
    assert [one["id"] for one in plan["experiments"]] == [one.id for one in study.experiments]
    assert plan["longest_s"] == study.plan.wall_clock_s
    assert [one["message"] for one in found["warnings"]] == [one.message for one in study.warnings]


def test_points_that_cannot_run_are_counted_with_their_reason(site: Site) -> None:
    text = GOOD.replace("tiny}", "tiny}\nvllm: {sampling_params: {temperature: 0.5}}")
    text = text.replace(
        "transformers.llem_execution.batch_size: [1, 2]", "vllm.sampling_params.temperature: [-1, 1]"
    )
    (skipped,) = post(site, text).json()["plan"]["skipped"]
    assert skipped["points"] == 1
    assert "temperature" in skipped["reason"]


def test_every_problem_has_its_place_what_was_found_and_what_is_allowed(site: Site) -> None:
    found = post(
        site, GOOD.replace("offline", "offlin").replace("n_cycles: 3", f"n_cycles: '{HOSTILE}'")
    ).json()
    assert found["plan"] is None
    mode, cycles = found["problems"]
    assert (mode["line"], mode["column"], mode["path"]) == (2, 15, "serving_mode")
    assert (mode["suggestion"], "offline, server" in mode["allowed"]) == ("offline", True)
    assert (cycles["line"], cycles["path"]) == (6, "study_execution.n_cycles")
    assert cycles["text"] == str(_problems(GOOD.replace("n_cycles: 3", f"n_cycles: '{HOSTILE}'"))[0])


def _problems(text: str) -> tuple[Any, ...]:
    with pytest.raises(StudyFileError) as caught:
        load_study_text(text, name="study")
    return caught.value.problems


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a: &a [*a]",
        "{" * 500,
        "!!python/object/apply:os.system ['touch /tmp/x']",
        "a: 1\na: 2",
        "\0",
        "- 1",
        "é: ü",
    ],
)
def test_a_text_that_is_no_study_is_told_and_never_an_error_of_the_server(site: Site, text: str) -> None:
    answer = post(site, text)
    assert answer.status_code == 200
    assert answer.json()["problems"]


def test_no_file_is_read_because_the_text_names_it(site: Site, tmp_path: Path) -> None:
    base = tmp_path / "base.yaml"
    base.write_text("task: {model: secret}\n")
    for name in (str(base), str(tmp_path / "none.yaml"), "base.yaml", "~/base.yaml", "/dev/stdin"):
        answer = post(site, f"base: {name}\n{GOOD}")
        (problem,) = answer.json()["problems"]
        assert (problem["path"], "no other file is read" in problem["allowed"]) == ("base", True)
        assert "secret" not in answer.text
    prompts = f"task: {{model: tiny, dataset: {{source: {tmp_path}/none.jsonl}}}}"
    assert post(site, GOOD.replace("task: {model: tiny}", prompts)).json()["plan"]


def test_prompts_of_a_pasted_study_need_an_absolute_path(site: Site) -> None:
    text = GOOD.replace("tiny}", "tiny, dataset: {source: mine.jsonl}}")
    (problem,) = post(site, text).json()["problems"]
    assert (problem["line"], problem["path"]) == (3, "task.dataset.source")
    assert "absolute path" in problem["allowed"]


def test_keys_of_a_dag_of_its_own_are_told_to_have_no_effect(site: Site) -> None:
    found = post(site, GOOD + 'airflow: {retries: 1, schedule: "@daily"}\n').json()
    (note,) = [one for one in found["warnings"] if one["code"] == "not-applied"]
    assert (note["line"], "airflow.schedule" in note["message"]) == (7, True)


def test_what_a_check_costs_is_bounded(site: Site) -> None:
    assert post(site, "#" * (new_study.LARGEST_BYTES + 1)).status_code == 413
    assert post(site, b"\xff\xfe").status_code == 400
    many = GOOD.replace("[1, 2]", "{min: 1, max: 10001, num: 10001}")
    (problem,) = post(site, many).json()["problems"]
    assert "at most 10,000" in problem["allowed"]
    wrong = "".join(f"  - {{engine: nonsense, key{each}: 1}}\n" for each in range(300))
    found = post(site, f"serving_mode: offline\nexperiments:\n{wrong}").json()
    assert len(found["problems"]) == new_study.SHOWN
    assert found["more_problems"] >= 400


def test_only_a_user_gets_an_answer_with_the_headers_of_the_others(site: Site) -> None:
    assert post(site, GOOD, user=None).status_code == 401
    assert site.get("/api/new-study", user=None).status_code == 401
    answer = post(site, GOOD)
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert not (site.tmp_path / "results").exists() or not list((site.tmp_path / "results").iterdir())


def test_what_the_user_may_do_with_a_study_is_told(site: Site) -> None:
    def told(user: str) -> tuple[bool, bool, bool]:
        found = site.get("/api/new-study", user=user).json()
        return found["known"], found["paused"], found["may_trigger"]

    assert told("llem_adhoc-trigger") == (False, False, False)
    site.dag("llem_adhoc", paused=True)
    assert told("llem_adhoc-trigger") == (True, True, True)
    assert told("llem_adhoc") == (True, True, False)
    assert told("nightly-trigger") == (False, False, False)


def test_the_example_is_a_study_without_a_doubt(site: Site) -> None:
    text = site.get("/api/new-study", user="anybody").json()["example"]
    found = post(site, text).json()
    assert (found["problems"], found["warnings"]) == ([], [])


COMPLETED = {
    "serv|": (0, "serving_mode: "),
    "serving_mode: |": (14, "offline"),
    "task:\n  mo|": (8, "model: "),
    "task:\n  dataset: {}\n  max_|": (22, "max_input_tokens: "),
    "versions:\n  - na|": (14, "name: "),
    "versions:\n- name: a\n  rev|": (22, "revision: "),
    "experiments:\n  - task:\n      mod|": (29, "model: "),
    "engine: [transformers, v|": (23, "vllm"),
    "airflow:\n  notify_on:\n    - f|": (28, "failure"),
    "sweep:\n  vllm.llem_execution.chat_template: [t|": (45, "true"),
    "# serv|": None,
    "task: x\n  mo|": None,
    "no_such_section:\n  mo|": None,
    'task:\n  model: "a"\n\'<img|': None,
    "serv|ing": None,
}


def test_keys_and_values_that_fit_where_the_cursor_stands_are_offered() -> None:
    with chromium_page() as page:
        page.route(
            "**/*",
            lambda route: (
                route.fulfill(body=MODULES["complete.js"].read_bytes(), content_type="text/javascript")
                if route.request.url.endswith(".js")
                else route.fulfill(body="<p>", content_type="text/html")
            ),
        )
        page.goto("http://airflow.test/")
        ask = (
            "async ([text, place, schema]) =>"
            " (await import('/complete.js')).complete(text, place, JSON.parse(schema))"
        )
        schema = json.dumps(json_schema())
        for text, wanted in COMPLETED.items():
            place = text.index("|")
            found = page.evaluate(ask, [text.replace("|", ""), place, schema])
            first = found and (found["begin"], found["options"][0]["insert"])
            assert first == wanted, text


def test_an_effect_gives_react_nothing_but_what_undoes_it() -> None:
    """``scrollIntoView`` gives a promise in newer browsers, which React would call: the page goes blank."""
    short = re.compile(r"useEffect\(\(\) => [^{]")
    assert not [name for name, path in MODULES.items() if short.search(path.read_text())]
