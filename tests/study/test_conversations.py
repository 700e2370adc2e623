"""Conversations of a file: read with their row, planned for a server only, another experiment than prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llem_airflow.study import load_study_text
from llem_airflow.study.plan.model import Study
from llem_airflow.study.problems import PromptsError
from llem_airflow.study.prompts import load_prompts, prompt_problems
from tests.study.texts import report

USER, ANSWER, SYSTEM = ({"role": role, "content": role} for role in ("user", "assistant", "system"))


def dataset(source: str, n: int = 1) -> dict[str, Any]:
    return {"source": source, "n_prompts": n, "order": "interleaved", "multi_turn": True}


def read(folder: Path, *records: object, n: int = 1) -> list[list[dict[str, str]]]:
    (folder / "c.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return [json.loads(item) for item in load_prompts(dataset("c.jsonl", n), seed=1, folder=folder).items]


def test_conversations_are_read_and_an_answer_that_nothing_follows_is_left_out(tmp_path: Path) -> None:
    records = [
        {"messages": [SYSTEM, USER, ANSWER, USER, ANSWER]},
        {"other": 1},
        {"messages": [{**USER, "name": "x"}]},
    ]
    assert read(tmp_path, *records, n=2) == [[SYSTEM, USER, ANSWER, USER], [USER]]


def test_a_parquet_file_has_them_in_a_column(tmp_path: Path) -> None:
    pq.write_table(pa.table({"messages": [[USER, ANSWER, USER], [USER]]}), tmp_path / "c.parquet")
    items = load_prompts(dataset("c.parquet", 2), seed=1, folder=tmp_path).items
    assert [json.loads(item) for item in items] == [[USER, ANSWER, USER], [USER]]


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([], "c.jsonl:2: messages is no list with messages in it"),
        ("hello", "c.jsonl:2: messages is no list with messages in it"),
        (["hello"], "c.jsonl:2: message 1 is no object"),
        ([ANSWER], "c.jsonl:2: message 1 has the role 'assistant' where system or user is due"),
        ([USER, USER], "c.jsonl:2: message 2 has the role 'user' where assistant is due"),
        ([USER, ANSWER, ANSWER], "c.jsonl:2: message 3 has the role 'assistant' where user is due"),
        ([SYSTEM, SYSTEM], "c.jsonl:2: message 2 has the role 'system' where user is due"),
        ([SYSTEM], "c.jsonl:2: no message is the user's"),
        ([{"role": "tool", "content": "x"}], "c.jsonl:2: message 1 has the role 'tool' where system or user is due"),
        ([{"content": "x"}], "c.jsonl:2: message 1 has the role None where"),
        ([{"role": ["user"], "content": "x"}], "c.jsonl:2: message 1 has the role"),
        ([USER, {"role": "assistant", "content": None}], "c.jsonl:2: message 2 has no text in its content"),
        ([{"role": "user", "content": " "}], "c.jsonl:2: message 1 has no text in its content"),
        ([{"role": "user", "content": "a\0b"}], r"c.jsonl:2: message 1 has the character U\+0000"),
    ],
)  # fmt: skip
def test_each_fault_is_told_with_its_row_and_its_message(
    tmp_path: Path, messages: Any, expected: str
) -> None:
    with pytest.raises(PromptsError, match=rf"^task.dataset.source: {expected}.*; "):
        read(tmp_path, {"messages": [USER]}, {"messages": messages}, n=2)


def test_too_few_and_none_are_told(tmp_path: Path) -> None:
    with pytest.raises(PromptsError, match=r"n_prompts: 'c.jsonl' has 1 conversation \(1 without messages,"):
        read(tmp_path, {"prompt": "a"}, {"messages": [USER]}, n=2)
    with pytest.raises(
        PromptsError, match=r"'c.jsonl' has no conversations: no record has the column messages"
    ):
        read(tmp_path, {"prompt": "a"})


def text(mode: str = "server", source: str = "c.jsonl", keys: str = ", multi_turn: true") -> str:
    return (
        f"serving_mode: {mode}\nengine: vllm\ntask: {{model: m, dataset: {{source: {source}, n_prompts: 1{keys}}}}}\n"
        "measurement: {meter: cpu-estimate}\nserver: {traffic: {rate: 1}}\n"
    )


def planned(*, folder: Path | None = None, **how: str) -> Study:
    return load_study_text(text(**how), name="study.yaml", folder=folder)


def test_conversations_are_another_experiment_and_without_them_it_is_the_old_one() -> None:
    (talk,), (plain,), (off,) = (
        planned(keys=keys).experiments for keys in (", multi_turn: true", "", ", multi_turn: false")
    )
    assert talk.hash != plain.hash
    assert (plain.hash, plain.config) == (off.hash, off.config)


def test_a_batch_has_no_turns() -> None:
    said = report(head=text("offline").replace("server: {traffic: {rate: 1}}\n", ""))
    assert (
        "a batch has no turns, as all its prompts are there at once: conversations need serving_mode: server"
        in said
    )


@pytest.mark.parametrize("source", ["builtin", "'synthetic:8x8'"])
def test_sets_without_conversations_are_refused(source: str) -> None:
    assert "multi_turn needs conversations but source is" in report(head=text(source=source))


def test_the_plan_looks_at_the_file_and_tells_of_the_prefix_cache(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text('{"messages": []}\n')
    study = planned(folder=tmp_path)
    (problem,) = prompt_problems(study)
    assert "c.jsonl:1: messages is no list" in str(problem)
    (told,) = [each.message for each in study.warnings if each.code == "prefix-cache"]
    assert told.startswith(
        "vllm: the prefix cache is off: what a turn repeats of its conversation is computed for every"
    )
