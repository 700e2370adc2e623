from __future__ import annotations

from pathlib import Path

import pytest

from llem_airflow.results import ResultsRoot
from llem_airflow.results.store import NoSuchRunError, locate_run
from tests.results.recorded import EPOCH_NS


def _root(tmp_path: Path) -> ResultsRoot:
    root = ResultsRoot(tmp_path)
    for index, (study, run_id) in enumerate((("nightly", "b"), ("nightly", "a"), ("nightly-2", "c"))):
        root.run(study, run_id).write_plan("", {}, {"started_epoch_ns": EPOCH_NS + index})
    return root


@pytest.mark.parametrize(
    ("text", "run_id"), [("latest", "c"), ("nightly", "a"), ("nightly/b", "b"), ("nightly-2/c", "c")]
)
def test_a_run_is_found_by_what_a_person_types(text: str, run_id: str, tmp_path: Path) -> None:
    assert locate_run(text, _root(tmp_path)).run_id == run_id


def test_a_run_is_found_by_its_folder(tmp_path: Path) -> None:
    root = _root(tmp_path)
    assert locate_run(str(tmp_path / "nightly" / "a"), root).run_id == "a"


def test_a_run_that_is_not_there_is_an_error_that_lists_what_is(tmp_path: Path) -> None:
    with pytest.raises(
        NoSuchRunError, match=r"'nightly/z' names no run .* nightly/b, nightly/a, nightly-2/c"
    ):
        locate_run("nightly/z", _root(tmp_path))


def test_an_empty_root_says_how_to_name_another(tmp_path: Path) -> None:
    with pytest.raises(NoSuchRunError, match="LLEM_RESULTS_ROOT"):
        locate_run("latest", ResultsRoot(tmp_path / "empty"))


def test_a_prefix_of_a_study_is_not_that_study(tmp_path: Path) -> None:
    with pytest.raises(NoSuchRunError):
        locate_run("night", _root(tmp_path))
