"""In CI a test with real parts has a second try, and it is one: nothing of the first is used again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.parts import REPOSITORY

FILE = """\
from pathlib import Path
import pytest

TRIES = Path(__file__).with_name("tries")

@pytest.fixture(scope="module")
def started():
    with TRIES.open("a") as file:
        file.write("started ")
    yield TRIES.read_text().count("started")
    with TRIES.open("a") as file:
        file.write("ended ")

@pytest.fixture(scope="module")
def found(started):
    return started

@pytest.mark.engine
def test_with_real_parts(found):
    assert found == 2

@pytest.mark.engine
def test_that_shares_them(found):
    assert found == 2

def test_without_real_parts():
    raise AssertionError
"""


def test_what_a_file_s_tests_share_is_made_anew_for_a_second_try(tmp_path: Path) -> None:
    (tmp_path / "test_shared.py").write_text(FILE)
    said = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "tests.second_try",
            "-o",
            "markers=engine",
            "test_shared.py",
        ],
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert "1 failed, 2 passed, 1 rerun" in said.stdout, said.stdout + said.stderr
    assert (tmp_path / "tries").read_text() == "started ended started ended "
