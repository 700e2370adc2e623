"""What the page says of backup and restore brings everything back: its own commands are run."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

import llem_airflow.operators
from llem_airflow.analysis.aggregate import aggregate_run
from llem_airflow.results import ResultsRoot
from tests.results.recorded import Recording, plan_json, provenance

PAGE = (Path(llem_airflow.operators.__file__).parent / "LAPTOP.md").read_text()


@pytest.fixture
def places(tmp_path: Path) -> dict[str, str]:
    """A results root with a cycle in it, and a database that is being written."""
    home, results = tmp_path / "home", tmp_path / "results"
    home.mkdir()
    (home / "airflow.cfg").write_text("[core]\nfernet_key = secret\n")
    raw = Recording(window_s=2).write(tmp_path / "raw")
    run = ResultsRoot(results).run("study", "run")
    run.write_plan("study_name: study\n", plan_json([("x-00000000", "0" * 16, {})], 1), {"dag_id": "study"})
    run.commit_cycle("x-00000000", 1, raw, provenance(1))
    aggregate_run(run)
    paths = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    named = {"AIRFLOW_HOME": home, "LLEM_RESULTS_ROOT": results, "BACKUP": tmp_path / "backup"}
    return {**os.environ, **{name: str(path) for name, path in named.items()}, "PATH": paths}


def page_says(block: str, places: dict[str, str]) -> str:
    """Run the page's block of that name; its output."""
    (script,) = re.findall(rf"^```bash {block}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    done = subprocess.run(
        ["bash", "-e", "-c", script], env=places, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_backup_of_a_database_in_use_and_of_results_is_restored_whole(places: dict[str, str]) -> None:
    home, results = Path(places["AIRFLOW_HOME"]), Path(places["LLEM_RESULTS_ROOT"])
    before = {file.relative_to(results): file.read_bytes() for file in results.rglob("*") if file.is_file()}
    with closing(sqlite3.connect(home / "airflow.db")) as used:
        used.execute(
            "pragma journal_mode = wal"
        )  # committed rows are in another file, which a copy would miss
        used.execute("create table dag_run (id int)")
        used.execute("insert into dag_run values (1)")
        used.commit()
        used.execute("insert into dag_run values (2)")  # not committed
        page_says("backup", places)
    shutil.rmtree(home)
    shutil.rmtree(results)
    assert "1 cycle, no problems" in page_says("restore", places)
    assert {
        file.relative_to(results): file.read_bytes() for file in results.rglob("*") if file.is_file()
    } == before
    with closing(sqlite3.connect(home / "airflow.db")) as restored:
        assert restored.execute("select id from dag_run").fetchall() == [(1,)]
    assert "secret" in (home / "airflow.cfg").read_text()
