"""A child finds the code that its parent runs from, wherever it is started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import llem_airflow
from llem_airflow.protocol.processes import child_environment


def test_a_child_imports_its_parent_s_package_and_nothing_of_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('of the current folder')\n")
    (tmp_path / "inherited").mkdir()
    (tmp_path / "inherited" / "llem_airflow.py").write_text("raise SystemExit('of PYTHONPATH')\n")
    (tmp_path / "inherited" / "plugin.py").write_text("NAME = 'a plug-in'\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "inherited"))
    program = "import json, llem_airflow, plugin; print(llem_airflow.__file__, plugin.NAME)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=child_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout.strip(), done.stderr) == (f"{llem_airflow.__file__} a plug-in", "")
