"""The shape of the package: one idea a file, and what may be loaded where."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import llem_airflow

PACKAGE = Path(llem_airflow.__file__).parent


def test_no_module_is_longer_than_600_lines() -> None:
    lengths = {
        path.relative_to(PACKAGE): len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")
    }
    assert {str(path): length for path, length in lengths.items() if length > 600} == {}


def test_what_runs_in_the_container_loads_nothing_but_the_standard_library() -> None:
    code = (
        "import sys; import llem_airflow.measurement.__main__; "
        "print(sorted({m.partition('.')[0] for m in sys.modules} - sys.stdlib_module_names))"
    )
    out = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, check=True
    )
    assert set(ast.literal_eval(out.stdout)) <= {"llem_airflow", "__main__", "__mp_main__"}


def test_the_command_s_help_loads_no_room() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from llem_airflow.cli import main; "
        "assert CliRunner().invoke(main, ['--help']).exit_code == 0; "
        "print([m for m in ('airflow', 'docker', 'numpy', 'scipy', 'pandas', 'pyarrow', 'torch') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize("module", ["airflow", "rich", "jsonschema", "docker", "numpy", "torch"])
def test_importing_the_study_room_loads_nothing_heavy(module: str) -> None:
    code = f"import sys; from llem_airflow.study import load_study; sys.exit({module!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("module", ["runners.choice", "runners.models", "analysis.plan", "analysis.metrics"])
def test_what_making_a_plan_or_a_dag_takes_from_other_rooms_loads_nothing_heavy(module: str) -> None:
    code = (
        f"import sys, llem_airflow.{module}; "
        "print([m for m in ('airflow', 'docker', 'numpy', 'scipy', 'pyarrow', 'rich') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_frames_load_nothing_that_draws_pages_or_runs_containers() -> None:
    code = (
        "import sys; import llem_airflow.frames; "
        "print([m for m in ('airflow', 'docker', 'jinja2', 'matplotlib', 'torch') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
