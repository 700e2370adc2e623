from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llem_airflow.results.layout import cycle_name, failed_name, folder_name, parse_cycle, parse_failed


def test_a_run_id_of_airflow_stays_readable() -> None:
    assert folder_name("manual__2026-01-02T03:04:05.6+00:00") == "manual__2026-01-02T03-04-05.6Z"


def test_a_plain_name_is_its_own_folder() -> None:
    assert folder_name("nightly_llama-3.1") == "nightly_llama-3.1"


@pytest.mark.parametrize(
    "text", ["../../etc/passwd", "..", ".", "", "/", "a/b", ".hidden", "x" * 500, "a\0b", "-rf"]
)
def test_no_text_becomes_a_name_that_leaves_the_root(text: str) -> None:
    name = folder_name(text)
    assert name
    assert "/" not in name
    assert "\0" not in name
    assert not name.startswith((".", "-"))
    assert len(name) <= 120


@given(st.text(), st.text())
def test_two_texts_never_share_a_folder(one: str, other: str) -> None:
    assert (folder_name(one) == folder_name(other)) == (one == other)


def test_cycle_folders_are_read_back() -> None:
    assert parse_cycle(cycle_name(12)) == (12, 0)
    assert parse_cycle(cycle_name(1, 2)) == (1, 2)
    assert parse_failed(failed_name(3, 2)) == (3, 2, 0)
    assert parse_failed(failed_name(3, 2, 1)) == (3, 2, 1)


@pytest.mark.parametrize(
    "name", ["cycle-", "cycle-01", "cycle-1x", "xcycle-1", "cycle-1-attempt-1", ".staging"]
)
def test_a_name_that_only_looks_like_a_cycle_is_none(name: str) -> None:
    assert parse_cycle(name) is None
