"""What ``llem-airflow plan`` prints of the studies that are shipped, on a machine without a Docker engine."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

from click.testing import CliRunner

from llem_airflow.cli import main
from tests.study.golden.reports import FOLDER

_ROOT = Path(__file__).parents[3]
INIT = "llem-airflow init my-study.yaml"
SHIPPED = ("dags/studies/quickstart.yaml", "llem_airflow/example_dags/example_llem.yaml", INIT)
_ENVIRONMENT = {
    "COLUMNS": "160",
    "DOCKER_HOST": "unix:///nowhere/docker.sock",
    "LLEM_RESULTS_ROOT": "results",
}


def golden() -> Iterator[tuple[Path, str]]:
    """The golden files as they would be written now."""
    yield FOLDER / "plan-terminal.txt", _all_of("plan", "--order")
    yield FOLDER / "plan-json.txt", _all_of("plan", "--json")


def _all_of(*arguments: str) -> str:
    return "\n".join(_printed(path, arguments) for path in SHIPPED)


def _printed(path: str, arguments: tuple[str, ...]) -> str:
    run = CliRunner().invoke
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        if path == INIT:
            run(main, INIT.split()[1:])
        else:
            Path("my-study.yaml").write_text((_ROOT / path).read_text("utf-8"), "utf-8")
        result = run(main, [*arguments, "my-study.yaml"], env=_ENVIRONMENT)
    # Whatever day it is, the next runs are others.
    return f"== {path}\n" + re.sub(r"(?m)^next runs: .*$", "next runs: …", result.output)
