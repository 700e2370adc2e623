"""No test has an environment that another one, before it in its process, left behind."""

from __future__ import annotations

import os

import pytest

NAMES = ("LLEM_LEFT_BY_A_FILE", "LLEM_LEFT_BY_A_TEST")


@pytest.fixture(scope="module")
def left_by_a_file() -> None:
    os.environ[NAMES[0]] = "1"


def test_what_is_set_is_there(left_by_a_file: None) -> None:
    os.environ[NAMES[1]] = "1"
    os.environ["OMP_NUM_THREADS"] = "7"
    assert set(NAMES) <= set(os.environ)


def test_what_a_test_set_is_gone_and_what_its_file_set_is_there() -> None:
    assert [name in os.environ for name in NAMES] == [True, False]
    assert os.environ["OMP_NUM_THREADS"] != "7"
