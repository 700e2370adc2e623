"""Whatever stands at whatever key, the loader raises its own error or none, and the error has a place."""

from __future__ import annotations

import json

from hypothesis import example, given, settings
from hypothesis import strategies as st

from llem_airflow.study import StudyFileError, load_study_text
from tests.study.scalars import SCALARS, keys, text_with


def outcome(text: str) -> str:
    try:
        study = load_study_text(text, name="s.yaml")
    except StudyFileError as error:
        refused = error
    else:
        json.dumps(study.plan.to_json(), allow_nan=False).encode()
        return ""
    assert all(one.line >= 1 and one.column >= 1 and one.found for one in refused.problems)
    report = f"{refused}"
    report.encode()
    return report


@settings(max_examples=800, deadline=None)
@given(st.sampled_from(keys()), st.sampled_from(SCALARS))
@example(("task", "random_seed"), "0x_")
@example(("base",), "'~nouser/x'")
@example(("study_execution", "precision_target", "max_cycles"), "999999999999999999")
def test_no_scalar_at_any_key_raises_anything_but_the_loader_s_error(
    path: tuple[str, ...], scalar: str
) -> None:
    outcome(text_with(path, scalar))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(keys()), st.text(st.characters(), max_size=12))
def test_no_text_at_any_key_raises_anything_but_the_loader_s_error(path: tuple[str, ...], text: str) -> None:
    outcome(text_with(path, text))


def test_what_only_looks_like_a_number_is_text() -> None:
    for scalar in ("0x_", "0o_", "0b_", "-0x_"):
        assert f"found '{scalar}' (text)" in outcome(text_with(("task", "random_seed"), scalar))
    assert outcome(text_with(("task", "random_seed"), "0x_f")) == ""


def test_line_ends_of_other_systems_and_a_byte_order_mark_change_nothing() -> None:
    text = text_with(("task", "random_seed"), "3")
    (plain,) = load_study_text(text).experiments
    for other in (text.replace("\n", "\r\n"), text.replace("\n", "\r"), f"\ufeff{text}"):
        assert [each.hash for each in load_study_text(other).experiments] == [plain.hash]


def test_a_character_that_no_database_holds_is_told_with_its_place() -> None:
    for model, place, sign in (('"a\\0b"', "2:15", "U+0000"), ("a\ud83d", "2:16", "U+D83D")):
        report = outcome(f"serving_mode: offline\ntask: {{model: {model}}}\n")
        assert report.startswith(f"s.yaml:{place}: found the character {sign}")


def test_a_plan_that_no_memory_holds_is_refused() -> None:
    body = "sweep: {task.random_seed: {min: 1, max: 1000, num: 1000}}\nstudy_execution: {n_cycles: 5000}\n"
    text = text_with(("task", "max_input_tokens"), "3") + body
    assert "the plan has 5,000,000 cycles to run; at most 1,000,000" in outcome(text)
