"""What Airflow's plugin loader finds, and that every Airflow process can afford to import it."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points

from fastapi.testclient import TestClient

from llem_airflow.web.plugin import LLEMPlugin
from plugins import llem_plugin


def test_the_plugin_is_registered_once() -> None:
    found = [
        point for point in entry_points(group="airflow.plugins") if point.value.startswith("llem_airflow")
    ]
    assert [point.value for point in found] == ["llem_airflow.web.plugin:LLEMPlugin"]


def test_the_file_for_copying_holds_the_same_class() -> None:
    assert llem_plugin.LLEMPlugin is LLEMPlugin


def test_importing_the_plugin_loads_no_page_and_no_analysis() -> None:
    code = (
        "import sys; import llem_airflow.web.plugin; "
        "print([m for m in ('llem_airflow.web.pages', 'scipy', 'matplotlib', 'docker', 'torch') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_a_request_without_a_user_gets_401() -> None:
    (app,) = (entry["app"] for entry in LLEMPlugin.fastapi_apps)
    assert TestClient(app).get("/run", params={"dag_id": "d", "run_id": "r"}).status_code == 401
