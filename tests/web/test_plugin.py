"""What Airflow's plugin loader finds, and that every Airflow process can afford to import it."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import entry_points

from fastapi.testclient import TestClient

from llem_airflow.web.modules import ENTRY, MODULES
from llem_airflow.web.plugin import LLEMPlugin
from plugins import llem_plugin


def test_the_plugin_is_registered_once() -> None:
    found = [
        point for point in entry_points(group="airflow.plugins") if point.value.startswith("llem_airflow")
    ]
    assert [point.value for point in found] == ["llem_airflow.web.plugin:LLEMPlugin"]


def test_the_file_for_copying_holds_the_same_class() -> None:
    assert llem_plugin.LLEMPlugin is LLEMPlugin


def test_every_place_shows_one_component_by_its_own_route() -> None:
    places = {entry["destination"]: entry for entry in LLEMPlugin.react_apps}
    assert places.keys() == {"nav", "dashboard", "dag", "dag_run", "task", "task_instance"}
    assert {entry["name"] for entry in places.values()} == {"Energy"}
    assert len({entry["url_route"] for entry in places.values()}) == len(places)
    (module,) = {entry["bundle_url"] for entry in places.values()}
    assert module.removeprefix("/llem/static/") == ENTRY


def test_no_module_of_the_pages_loads_anything_from_elsewhere_or_writes_html() -> None:
    for name, path in MODULES.items():
        text = path.read_text()
        imported = re.findall(r'from "([^"]+)"', text)
        assert all(each.startswith("./") and each[2:] in MODULES for each in imported), name
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", text
        ), name
        assert not re.search(r"dangerously|https?://", text), name
        asked = re.findall(r"method: (.*?),", text)
        assert asked == (['"POST"'] if name == "base.js" else []), (
            name
        )  # of a text to be checked; nothing is changed


def test_importing_the_plugin_loads_no_page_and_no_analysis() -> None:
    code = (
        "import sys; import llem_airflow.web.plugin; "
        "print([m for m in ('llem_airflow.web.app', 'scipy', 'matplotlib', 'docker', 'torch') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_a_request_without_a_user_gets_401() -> None:
    (app,) = (entry["app"] for entry in LLEMPlugin.fastapi_apps)
    assert TestClient(app).get("/run", params={"dag_id": "d", "run_id": "r"}).status_code == 401


def test_no_module_gives_an_imported_name_another_meaning() -> None:
    """A value of the same name hides the function, and the page goes blank where that is called."""
    for name, path in MODULES.items():
        text = path.read_text()
        imported = {
            word
            for inside in re.findall(r"^(?:import|export const) \{([^}]*)\}", text, re.MULTILINE)
            for word in re.findall(r"\w+", re.sub(r"\w+ as|\w+:", "", inside))
        }
        declared = re.findall(r"^ +(?:const|let) ([^=;\n]*) = ", text, re.MULTILINE)
        again = {word for one in declared for word in re.findall(r"\w+", re.sub(r"\w+:", "", one))}
        assert not imported & again, name
