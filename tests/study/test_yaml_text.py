from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from llem_airflow.study import StudyFileError, load_study, load_study_text
from llem_airflow.study.file.yaml import MAX_BYTES, Source, plain_scalar
from tests.study.texts import HEAD, report, study


def _refusal(path: Path) -> str:
    with pytest.raises(StudyFileError) as caught:
        load_study(path)
    return str(caught.value)


def test_a_duplicate_key_is_a_problem_that_names_both_lines() -> None:
    assert "study.yaml:4:1: the key 'task' is written twice (first in line 2); keep one of them" in report(
        "task: {}\n"
    )


def test_a_duplicate_key_deep_inside_is_found() -> None:
    text = report("study_execution: {n_cycles: 1, n_cycles: 2}\n")
    assert text.startswith("study.yaml:4:32: the key 'n_cycles' is written twice (first in line 4)")


def test_a_tab_is_named_where_it_stands() -> None:
    text = load_error("serving_mode: offline\ntask:\n\tmodel: m\n")
    assert text.startswith("t.yaml:3:1: a tab is used to indent; YAML indents with spaces")


def load_error(text: str) -> str:
    with pytest.raises(StudyFileError) as caught:
        load_study_text(text, name="t.yaml")
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "t.yaml:1:1: the file is empty"),
        ("# nothing\n", "t.yaml:1:1: the file is empty"),
        ("- a\n- b\n", "t.yaml:1:1: found the list ['a', 'b'] at the top"),
        ("just text\n", "found 'just text' (text) at the top"),
        ("a: [1, 2\n", "not YAML"),
        ("a: 'open\n", "not YAML"),
        ("a: 1\n---\nb: 2\n", "t.yaml:2:1: a second document begins here"),
        ("a: *nowhere\n", "the alias *nowhere has no anchor before it"),
        ("a: !!python/object/apply:os.system [ls]\n", "found the YAML tag !!python/object/apply:os.system"),
        ("a: !secret x\n", "found the YAML tag !secret"),
        ("? [a, b]\n: 1\n", "as a key; keys are plain words"),
        ("a: 1\nb: \x00\n", "not YAML"),
        ("a: &x [1]\nb: {<<: *x}\n", "<< merges mappings"),
    ],
)
def test_what_is_no_study_is_refused_with_its_place(text: str, expected: str) -> None:
    assert expected in load_error(text)


def test_a_billion_laughs_are_refused_at_once() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    tracemalloc.start()
    text = load_error("\n".join(lines))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "values after its aliases are expanded" in text
    assert peak_bytes < 50_000_000


@pytest.mark.parametrize("opening", ["[", "{a: ", "- "])
def test_nesting_without_end_is_refused(opening: str) -> None:
    text = load_error("a:\n  " + opening * 20_000)
    assert "nested deeper than 32" in text or "not YAML" in text


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "large.yaml"
    with file.open("wb") as stream:
        stream.truncate(100 * 1024 * 1024)
    tracemalloc.start()
    text = _refusal(file)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "larger than 1 MiB" in text
    assert peak_bytes < 4 * MAX_BYTES


def test_bytes_that_are_not_utf8_are_named_with_their_place(tmp_path: Path) -> None:
    file = tmp_path / "latin.yaml"
    file.write_bytes(b"study_name: a\n# caf\xe9\n")
    assert "latin.yaml:2:6: byte 0xe9 is not UTF-8; save the file as UTF-8" in _refusal(file)


def test_a_byte_order_mark_is_no_problem(tmp_path: Path) -> None:
    file = tmp_path / "bom.yaml"
    file.write_bytes(b"\xef\xbb\xbf" + HEAD.encode())
    assert load_study(file).name == "bom"


def test_a_missing_file_and_a_folder_are_problems(tmp_path: Path) -> None:
    assert "the file does not exist" in _refusal(tmp_path / "none.yaml")
    assert "this is a folder" in _refusal(tmp_path)


def test_anchors_and_merge_keys_work_as_in_yaml() -> None:
    body = "x-none: 1\n"
    assert "unknown key 'x-none'" in report(body)
    first = "- &one {task: {max_output_tokens: 8}, offline: {warmup: {n_prompts: 2}}}\n"
    found = study("experiments:\n" + first + "- {<<: *one, task: {max_output_tokens: 9}}\n")
    assert [e.config["task"]["max_output_tokens"] for e in found.experiments] == [8, 9]
    assert [e.config["offline"]["warmup"]["n_prompts"] for e in found.experiments] == [2, 2]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("0.5", 0.5),
        (".5", 0.5),
        ("5.", 5.0),
        ("10", 10),
        ("1_000", 1000),
        ("0x10", 16),
        ("yes", True),
        ("off", False),
        ("~", None),
        ("", None),
    ],
)
def test_plain_scalars_mean_what_people_mean(text: str, value: object) -> None:
    assert plain_scalar(text) == value
    assert type(plain_scalar(text)) is type(value)


@pytest.mark.parametrize(
    "text", ["12e4567", "007x", "2026-03-01", "1.2.3", "-", "+", "12:30:00", "0b2", "v1"]
)
def test_other_plain_scalars_are_text(text: str) -> None:
    assert plain_scalar(text) == text


def test_places_are_lines_and_columns_from_one() -> None:
    source = Source("t.yaml", "a:\n  b: [1, {c: 2}]\n")
    assert source.place(("a", "b", 1, "c")) == (2, 14)
    assert source.place(("a", "b", 1, "c"), of_key=True) == (2, 11)
    assert source.place(("a", "nope")) == (2, 3)
