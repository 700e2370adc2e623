"""Schedules, time zones, names and prompt sources are checked where they are written, with their place."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from llem_airflow.cli import main
from llem_airflow.study import load_study_text
from tests.study.texts import HEAD, report, study

NO_TASK = "serving_mode: offline\nmeasurement: {meter: cpu-estimate}\n"
_DAG_ID = re.compile(r"[\w.-]{1,250}\Z")


COMES = [
    "0 2 * * *",
    "*/15 1-5 * * 1-5",
    "0 0 L * *",
    "0 0 * * MON-FRI",
    "0 0 1 JAN *",
    "0 0 * * 7",
    "0 0 * * sat#2",
    "5-1 * * * *",
    "0 0 29 2 *",
    "0 9-17/2 1,15 * *",
    "@daily",
    "@quarterly",
]
NEVER = [
    "61 * * * *",
    "0 25 * * *",
    "*/0 * * * *",
    "a b c d e",
    "0 0 * * 8",
    "0 0 30 2 *",
    "0 0 0 * *",
    "0 0 * 13 *",
    "0 0 31 4 *",
    "5,, * * * *",
]


@pytest.mark.parametrize("cron", COMES)
def test_a_schedule_that_comes_is_accepted(cron: str) -> None:
    assert study(f"airflow: {{schedule: '{cron}'}}\n").airflow.schedule == cron


@pytest.mark.parametrize("cron", NEVER)
def test_a_schedule_that_never_comes_is_refused_with_its_place(cron: str) -> None:
    text = report(f"airflow: {{schedule: '{cron}'}}\n")
    assert text.startswith("study.yaml:4:21: airflow.schedule: ")
    assert len(text.splitlines()) == 1


@pytest.mark.parametrize(
    "cron", ["daily", "@dialy", "0 2 * *", "0 0 2 * * *", "H 0 * * *", "R 0 * * *", "", " "]
)
def test_a_text_that_is_no_schedule_is_refused_with_its_place(cron: str) -> None:
    assert report(f"airflow: {{schedule: '{cron}'}}\n").startswith(
        "study.yaml:4:21: airflow.schedule: found "
    )


@pytest.mark.parametrize(
    "name", ["Mars/Olympus", "Europe/Berln", "", "Europe", "../etc/passwd", "GMT+25", "posixrules/"]
)
def test_an_unknown_time_zone_is_refused_with_its_place(name: str) -> None:
    assert report(f"airflow: {{timezone: '{name}'}}\n").startswith(
        "study.yaml:4:21: airflow.timezone: found "
    )


NAMES = [
    "My study / two!",
    "  lead",
    "..",
    "!!",
    "a\tb",
    "x" * 400,
    "日本 語",
    "Größe",
    "a.b-c_d",
    "-",
    "😀",
    "a,b;c",
    "ÄÖ " * 100,
]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_of_a_study_gives_an_id_that_airflow_takes_and_says_so(name: str) -> None:
    found = load_study_text(
        f'{HEAD}study_name: "{name}"\n' if "\t" not in name else HEAD + "study_name: a b\n"
    )
    assert _DAG_ID.match(found.dag_id)
    told = [notice for notice in found.warnings if notice.code == "dag-id"]
    assert [found.dag_id in notice.message and notice.line == 4 for notice in told] == [True] * (
        found.dag_id != found.name
    )


def test_different_names_that_no_dag_can_have_get_different_ids() -> None:
    same = {study(f"study_name: '{name}'\n").dag_id for name in ("!!", "??", "..", "日本", "語")}
    assert len(same) == 5


def test_a_file_name_gives_an_id_that_airflow_takes() -> None:
    for name in ("My study / two!.yaml", "….yaml", "日本.yaml", "a" * 300 + ".yaml"):
        assert _DAG_ID.match(load_study_text(HEAD, name=name).dag_id)


def _task(source: str, more: str = "") -> str:
    return NO_TASK + f"task: {{model: org/model, dataset: {{source: '{source}'{more}}}}}\n"


def validated(folder: Path, text: str) -> list[str]:
    path = folder / "study.yaml"
    path.write_text(text)
    return [
        line.removeprefix(f"{folder}/")
        for line in CliRunner().invoke(main, ["validate", str(path)]).output.splitlines()
    ]


WRONG_SOURCES = [
    "synthetic:0x5",
    "synthetic:5x0",
    "synthetic:8",
    "synthetic:axb",
    "nonesuch",
    "none.txt",
    ".",
    "builtin2",
]


@pytest.mark.parametrize("source", [*WRONG_SOURCES, "none.jsonl", "none.parquet"])
def test_validate_tells_a_source_without_prompts_with_its_place(tmp_path: Path, source: str) -> None:
    (line,) = validated(tmp_path, _task(source))
    assert line.startswith("study.yaml:3:44: task.dataset.source: ")
    assert f"'{source}'" in line


@pytest.mark.parametrize("source", WRONG_SOURCES)
def test_a_text_that_names_no_source_is_refused_when_it_is_read(source: str) -> None:
    assert report(_task(source), head="").startswith("study.yaml:3:44: task.dataset.source: ")


@pytest.mark.parametrize("source", WRONG_SOURCES[:2])
def test_a_swept_text_that_names_no_source_is_refused_at_its_value(source: str) -> None:
    text = report(f"sweep: {{task.dataset.source: [builtin, '{source}']}}\n")
    assert text.startswith("study.yaml:4:40: sweep.task.dataset.source[1]: ")


def test_more_prompts_than_the_builtin_set_has_are_refused_when_they_are_read() -> None:
    text = report(_task("builtin", ", n_prompts: 100000"), head="")
    assert text.startswith("study.yaml:3:66: task.dataset.n_prompts: 'builtin' has ")


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ("sweep: {task.dataset.source: [builtin, none.jsonl]}\n", "study.yaml:4:40"),
        ("sweep: {task.dataset.n_prompts: [5, 50000]}\n", "study.yaml:4:37"),
        ("sweep: {g: [{task.dataset.source: none.jsonl}]}\n", "study.yaml:4:35"),
        ("experiments: [{task: {dataset: {source: none.jsonl}}}]\n", "study.yaml:4:41"),
    ],
)
def test_validate_tells_prompts_that_are_not_there_where_they_are_named(
    tmp_path: Path, body: str, place: str
) -> None:
    (line,) = validated(tmp_path, HEAD + body)
    assert line.startswith(f"{place}: ")


def test_files_that_are_there_and_what_only_a_hub_knows_are_accepted(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n')
    for source in ("p.jsonl", "synthetic:8x8", "org/data@main:train.jsonl", "builtin"):
        assert validated(tmp_path, _task(source, ", n_prompts: 1")) == [
            f"{tmp_path}/study.yaml: 1 experiment, 3 cycles".removeprefix(f"{tmp_path}/")
        ]
