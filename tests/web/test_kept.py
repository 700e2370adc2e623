"""What the API server keeps is bounded, and never older than its file."""

from __future__ import annotations

import ast
import gc
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from llem_airflow import web
from llem_airflow.results import ResultsRoot
from llem_airflow.results.folder import Folder
from llem_airflow.web import kept as module
from llem_airflow.web.index import RunIndex
from llem_airflow.web.kept import Kept, Recent


def test_what_is_kept_stays_below_the_limit_and_the_oldest_leaves_first(tmp_path: Path) -> None:
    folder, kept, made = Folder.at(tmp_path), Kept(largest_bytes=300), []

    def ask(name: str) -> None:
        def make() -> str:
            made.append(name)
            return "v" * 98

        kept.of_file("x", folder, name, make)

    for name in "abc":
        (tmp_path / name).write_text(name)
        ask(name)
    ask("a")
    assert (made, kept.bytes) == (["a", "b", "c"], 300)
    (tmp_path / "d").write_text("d")
    ask("d")
    ask("a")
    ask("b")
    assert (made, kept.bytes) == (["a", "b", "c", "d", "b"], 300)


def test_a_changed_file_is_read_again_and_a_removed_one_is_not_answered_from_memory(tmp_path: Path) -> None:
    folder, kept = Folder.at(tmp_path), Kept()

    def read() -> object:
        return kept.of_file("x", folder, "f.json", lambda: folder.read_object("f.json"))

    (tmp_path / "f.json").write_text('{"a": 1}')
    assert read() == {"a": 1}
    (tmp_path / "f.json").write_text('{"a": 22}')
    assert read() == {"a": 22}
    (tmp_path / "f.json").unlink()
    with pytest.raises(ValueError, match="is missing"):
        read()


def test_an_answer_that_took_long_is_given_again_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    recent, made = Recent(), []
    now_s = 100.0
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now_s))

    def slow() -> int:
        nonlocal now_s
        now_s += 2.0
        made.append(1)
        return len(made)

    assert [recent.of("k", slow) for _ in range(3)] == [1, 1, 1]
    assert recent.of("other", slow) == 2
    now_s += 7.9
    assert recent.of("k", slow) == 1
    now_s += 0.2
    assert recent.of("k", slow) == 3


def test_a_run_is_found_without_opening_the_runs_of_other_studies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = ResultsRoot(tmp_path)
    for study in (f"s{number:03}" for number in range(50)):
        for run_id in ("r1", "r2"):
            root.run(study, run_id).write_plan("", {}, {"dag_id": f"dag of {study}", "started_epoch_ns": 1})
    index, opened = RunIndex(root), []
    real = Folder.read_object

    def read(self: Folder, name: str, *, optional: bool = False) -> dict[str, object]:
        opened.append(self.path)
        return real(self, name, optional=optional)

    monkeypatch.setattr(Folder, "read_object", read)
    found = index.find("dag of s030", "r1")
    assert found is not None
    assert (found.study, len(opened) <= 60) == ("s030", True)  # once: the DAG's name is not that of its study
    opened.clear()
    found = index.find("dag of s030", "r2")
    assert found is not None
    assert len(opened) == 1
    opened.clear()
    assert index.find("dag of s030", "r9") is None
    opened.clear()
    assert index.find("dag of s030", "r9") is None
    assert opened == []
    assert index.runs("s030") == index.runs("s030")
    assert len(opened) == 2


def test_a_run_that_is_only_being_opened_is_seen_once_its_run_json_is_there(tmp_path: Path) -> None:
    index = RunIndex(ResultsRoot(tmp_path))
    (tmp_path / "s" / "r1").mkdir(parents=True)
    assert index.runs("s") == ()
    (tmp_path / "s" / "r1" / "run.json").write_text(json.dumps({"dag_id": "d", "started_epoch_ns": 5}))
    (entry,) = index.runs("s")
    assert (entry.dag_id, entry.started_epoch_ns, entry.run.run_id) == ("d", 5, "r1")


def test_what_is_made_of_a_file_has_a_name_of_its_own() -> None:
    """Two kinds of one name would answer each other's questions about the same file."""
    kinds = [
        ast.unparse(node.args[0])
        for file in sorted(Path(web.__file__).parent.glob("*.py"))
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in {"of", "of_file"}
        and ast.unparse(node.func.value).endswith("kept")
    ]
    assert len(kinds) > 5
    assert sorted(set(kinds)) == sorted(kinds)


def test_python_searches_for_cycles_again_whatever_became_of_what_was_made() -> None:
    kept = Kept()
    assert kept.of("kind", "what", "1", gc.isenabled) is False
    with pytest.raises(ValueError, match="damaged"):
        kept.of("kind", "what", "2", _damaged)
    assert gc.isenabled()


def _damaged() -> None:
    raise ValueError("damaged")
