"""What the UI shows of a study: names that tell rows apart, where cycles run, what is measured, the file itself."""

from __future__ import annotations

import re

import pytest
from airflow.sdk import DAG

from llem_airflow.factory import study_dag
from llem_airflow.study import load_study_text

STUDY = """\
study_name: my_study_*of*_names
serving_mode: offline
engine: transformers
task: {model: lab/my_tiny_model, dataset: {source: builtin, n_prompts: 2}}
measurement: {meter: cpu-estimate}
sweep: {transformers.llem_execution.batch_size: [1, 8]}
study_execution: {n_cycles: 2}
"""
RELEASES = """\
versions:
  - {name: r_1, model: lab/my_first_model, released: 2026-01-01}
  - {name: r_2, model: lab/second, revision: ab_cd, released: 2026-02-01}
"""


def dag(text: str = STUDY) -> DAG:
    return study_dag(load_study_text(text, name="x"))


def page(text: str = STUDY) -> str:
    return dag(text).doc_md or ""


def prose(text: str = STUDY) -> str:
    return page(text).partition("The study:")[0]


def outside_of_code(markdown: str) -> str:
    return re.sub(r"(`+).+?\1", "", markdown)


def test_rows_of_the_grid_are_called_by_what_differs_and_keep_their_ids() -> None:
    made = dag()
    groups = made.task_group.get_task_group_dict()
    named = {name: group.group_display_name for name, group in groups.items() if name}
    assert sorted(named.values()) == ["batch_size 1", "batch_size 8"]
    assert all(re.fullmatch(r"transformers-batch_size-[18]-[0-9a-f]{8}", str(name)) for name in named)
    cycles = {task.task_id: task.task_display_name for task in made.tasks if ".cycle_" in task.task_id}
    assert cycles == {
        f"{name}.cycle_{k}": f"{label}, cycle {k}" for name, label in named.items() for k in (1, 2)
    }


@pytest.mark.parametrize(
    ("runners", "said"),
    [
        ("runners: {transformers: process}", "4 cycles to measure, each in a fresh process"),
        ("runners: {transformers: container}", "4 cycles to measure, each in a fresh container"),
        ("", "4 cycles to measure, each in a fresh container or process as the table below says"),
    ],
)
def test_it_says_where_cycles_run(runners: str, said: str) -> None:
    assert said in page(f"{STUDY}{runners}\n")


def test_no_underscore_or_star_is_left_for_markdown_to_take() -> None:
    assert (
        re.search(r"(?<!\\)[_]|(?<!\\)\*(?!Energy|Trigger)\w", outside_of_code(prose(STUDY + RELEASES)))
        is None
    )
    assert "`lab/my_tiny_model`" in prose()
    made = dag()
    assert all(
        "_" not in outside_of_code(task.doc_md or "").replace("\\_", "") for task in made.tasks if task.doc_md
    )


def test_a_model_that_no_release_measures_is_listed_nowhere() -> None:
    text = STUDY + RELEASES
    assert "my_tiny_model" not in prose(text)
    assert "| `r_1` | 2026-01-01 | lab/my\\_first\\_model | newest |" in prose(text)
    assert "| `r_2` | 2026-02-01 | lab/second | ab\\_cd |" in prose(text)
    cycle = next(task for task in dag(text).tasks if ".cycle_" in task.task_id)
    assert "my_tiny_model" not in (cycle.doc_md or "")
    assert "| `task.model` | that of the run's release |" in (cycle.doc_md or "")


def test_the_study_s_file_is_shown_as_it_is() -> None:
    text = STUDY + "# a fence: ```` and <b>markup</b>\n"
    assert page(text).endswith(f"`````yaml\n{text.rstrip()}\n`````\n")
    many = STUDY + "# more\n" * 1000
    assert "more lines in the file" in page(many)
    assert len(page(many)) < 10_000


def test_a_plan_that_cannot_be_made_still_shows_the_study(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLEM_RUNNER_TRANSFORMERS", "dokcer_x")
    assert "No run can be planned: `LLEM_RUNNER_TRANSFORMERS: found 'dokcer_x'" in page()
    assert "4 cycles to measure, from text." in page()
