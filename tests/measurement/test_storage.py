from __future__ import annotations

from pathlib import Path

import pytest

from llem_airflow.measurement.storage import write_json, write_whole


def test_a_file_appears_whole_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    write_whole(tmp_path / "result.json", "x" * 100_000)
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
    assert (tmp_path / "result.json").stat().st_size == 100_000


def test_a_number_that_json_does_not_know_is_refused_and_the_old_file_stays(tmp_path: Path) -> None:
    write_json(tmp_path / "environment.json", {"a": 1})
    with pytest.raises(ValueError, match="Out of range float values"):
        write_json(tmp_path / "environment.json", {"a": float("nan")})
    assert (tmp_path / "environment.json").read_text() == '{\n "a": 1\n}\n'
