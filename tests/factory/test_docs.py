"""What the UI shows of a study: names that tell rows apart, where cycles run, what is measured, the file itself."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest
from airflow.sdk import DAG
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from llem_airflow.factory import study_dag, study_dags
from llem_airflow.factory.docs import invalid_doc, plain
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


def shown(markdown: str) -> str:
    """What a reader of CommonMark sees of it, as text; emphasis of ours is taken out, any other is left as tags."""
    rendered = MarkdownIt("commonmark").enable("table").render(markdown)
    rendered = re.sub(r"<em>(Energy|Dag Docs|Trigger &gt; Backfill)</em>", r"\1", rendered)
    assert "<em>" not in rendered
    assert "<img" not in rendered
    return html.unescape(re.sub(r"<[^>]+>", "", rendered))


def test_rows_of_the_grid_are_called_by_what_differs_and_keep_their_ids() -> None:
    made = dag()
    groups = made.task_group.get_task_group_dict()
    named = {name: group.group_display_name for name, group in groups.items() if name}
    assert sorted(named.values()) == ["batch_size 1", "batch_size 8"]
    assert all(re.fullmatch(r"transformers-batch_size-[18]-[0-9a-f]{8}", str(name)) for name in named)
    cycles = {task.task_id: task.task_display_name for task in made.tasks if ".cycle_" in task.task_id}
    assert cycles == {
        f"{name}.cycle_{k}": f"cycle {k}, {label}" for name, label in named.items() for k in (1, 2)
    }


def test_rows_of_a_sweep_over_two_keys_differ_in_what_a_narrow_grid_shows() -> None:
    made = dag(STUDY.replace("[1, 8]}", "[1, 8], task.max_output_tokens: [4, 16, 64]}"))
    names = {g.group_display_name for name, g in made.task_group.get_task_group_dict().items() if name}
    assert "64, 8 (max_output_tokens, batch_size)" in names
    assert len({name[:15] for name in names}) == 6


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


def test_markdown_takes_nothing_of_a_name() -> None:
    seen = shown(prose())
    assert "my_study_*of*_names" in seen
    assert "lab/my_tiny_model" in seen
    for task in dag().tasks:
        assert "\ntransformers.llem_execution.batch_size\n" in shown(task.doc_md or "") or not task.doc_md


@given(st.text(st.sampled_from("a_*`|<>[]&~!\\ #-1/"), min_size=1).filter(str.strip))
def test_any_text_is_shown_as_it_is(text: str) -> None:
    assert " ".join(text.split()) in shown(f"# x {plain(text)} x")
    assert " ".join(text.split()) in shown(f"| a |\n|---|\n| x {plain(text)} x |")


def test_names_in_the_pages_of_other_dags_are_whole_too(tmp_path: Path) -> None:
    for name in ("_a_", "_b_"):
        (tmp_path / f"{name}.yaml").write_text(STUDY + RELEASES)
    pages = {name: dag.doc_md or "" for name, dag in study_dags(tmp_path).items()}
    assert "_b_.yaml asks for this DAG id too" in shown(pages["my_study_-of-_names"])
    assert "Each release against r_1" in shown(pages["my_study_-of-_names.compare"])
    assert "_b_.yaml has problems" in shown(pages["invalid._b_"])


def test_mistakes_stand_in_a_list_that_folds_and_in_full_as_the_command_prints_them() -> None:
    report = "/srv/my_studies/a_b.yaml:3:49: task._x_: found '<b>'\n/srv/my_studies/a_b.yaml:4:1: engnie"
    page = invalid_doc("a_b.yaml", report)
    assert "- a_b.yaml:3:49: task." in page
    assert "a_b.yaml:3:49: task._x_: found '<\u200bb>'" in shown(page.partition("In full")[0])
    assert f"```text\n{report.replace('<', '<' + chr(0x200B))}\n```" in page


def test_a_model_that_no_release_measures_is_listed_nowhere() -> None:
    text = STUDY + RELEASES
    assert "my_tiny_model" not in prose(text)
    assert "| `r_1` | 2026-01-01 | lab/my_first_model | newest |" in prose(text)
    assert "| `r_2` | 2026-02-01 | lab/second | ab_cd |" in prose(text)
    cycle = next(task for task in dag(text).tasks if ".cycle_" in task.task_id)
    assert "my_tiny_model" not in (cycle.doc_md or "")
    assert "| task.model | that of the run's release |" in (cycle.doc_md or "")


def test_what_is_equal_in_all_experiments_is_said_once_and_what_differs_is_a_column() -> None:
    said = shown(prose())
    assert "Measured with engine transformers and model lab/my_tiny_model." in said
    assert "| experiment | id of its task group |" in prose()
    several = prose(STUDY.replace("sweep: {", "sweep: {task.model: [lab/one, lab/two], "))
    assert "Measured with engine transformers." in several
    assert "| experiment | model | id of its task group |" in several


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
