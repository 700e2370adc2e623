"""A study whose results lie on S3, opened by a connection of Airflow's alone: measured, summarised, shown, and kept
where the store is away or refuses."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import pytest

from llem_airflow.analysis.summary import load_summary
from llem_airflow.results import ResultsRoot
from llem_airflow.web.app import Server, server
from tests import parts
from tests.airflow.conftest import small
from tests.measurement.running import PLUGIN
from tests.results.s3_gate import Gate, gated_lab
from tests.web.conftest import Site

CONNECT = """
import sys
from airflow.models.connection import Connection
from airflow.utils.db import upgradedb
from airflow.utils.session import create_session
upgradedb()
with create_session() as session:
    session.add(Connection(sys.argv[1], "aws", login=sys.argv[2], password=sys.argv[3], extra=sys.argv[4]))
"""
pytestmark = [pytest.mark.airflow, pytest.mark.timeout(600)]


class Lab:
    """An S3 server that knows one key, and an Airflow whose database has the connection to it.

    Attributes:
        gate: Before the server.
        key: Id and secret that the server knows.
        root: Of the results, by the connection.
        environment: Of the commands; no variable in it has credentials.
    """

    def __init__(self, gate: Gate, key: tuple[str, str], folder: Path, model: Path) -> None:
        self.gate, self.key = gate, key
        self.conn_id = f"lab_{uuid.uuid4().hex[:8]}"  # an opened store serves its process for a while
        self.root = f"s3://{self.conn_id}@lab/energy"
        self.study = folder / "on-s3.yaml"
        self.study.write_text(small("on_s3").replace("n_cycles: 1", "n_cycles: 2"))
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "AIRFLOW"))}
        self.environment = {
            **kept,
            "AWS_MAX_ATTEMPTS": "1",
            "AIRFLOW__CORE__FERNET_KEY": "",  # Airflow warns of it at its start
            "AIRFLOW_HOME": str(folder / "airflow"),
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{folder / 'airflow' / 'airflow.db'}?timeout=60",
            "LLEM_RESULTS_ROOT": self.root,
            "LLEM_MODELS_DIR": str(model.parent),
            "PYTHONPATH": os.pathsep.join(
                filter(None, [*sys.path[:1], str(PLUGIN), os.environ.get("PYTHONPATH", "")])
            ),
            "COLUMNS": "400",
        }

    def python(self, *arguments: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, *arguments], env=self.environment, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout, done.stderr

    def command(self, *arguments: str) -> tuple[int, str, str]:
        return self.python(str(Path(sys.executable).with_name("llem-airflow")), *arguments)

    def connect(self) -> None:
        """Make the database, with the connection in it."""
        code, _, said = self.python("-c", CONNECT, self.conn_id, *self.key, json.dumps(self.extra))
        assert code == 0, said

    def correct(self, secret: str) -> None:
        """Change the connection's password, as a person does."""
        with closing(sqlite3.connect(Path(self.environment["AIRFLOW_HOME"]) / "airflow.db")) as database:
            changed = database.execute("update connection set password = ?, is_encrypted = 0", [secret])
            assert changed.rowcount == 1
            database.commit()

    @property
    def extra(self) -> dict[str, str]:
        return {"endpoint_url": self.gate.url, "region_name": "us-east-1"}


@pytest.fixture
def lab(tmp_path: Path, tiny_model: Path) -> Iterator[Lab]:
    if find_spec("airflow.providers.amazon") is None:
        parts.missing("needs apache-airflow-providers-amazon")
    with gated_lab() as (gate, key, secret):
        found = Lab(gate, (key, secret), tmp_path, tiny_model)
        (tmp_path / "airflow").mkdir()
        found.connect()
        yield found


def once(wanted: str) -> Callable[[str, str], bool]:
    """Whether a request writes below such a folder: a store that is away at the moment of a commit."""
    return lambda method, path: method in {"PUT", "POST"} and wanted in path


def test_a_study_on_s3_by_a_connection_loses_nothing_and_is_shown(
    lab: Lab, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.gate.away = once("/cycle-2/")
    code, said, _ = lab.command("run", str(lab.study))
    assert code == 1, said
    assert "cycle 2 was measured and could not be stored" in said
    assert f"check its address (endpoint_url of the connection '{lab.conn_id}') and the network" in said
    assert "Nothing is lost: it is kept on" in said
    lab.gate.open()

    lab.correct("wrong")
    code, said, _ = lab.command("results", "recover")
    assert code == 1, said
    assert (
        f"refuses this worker's credentials; correct the connection '{lab.conn_id}' (Admin > Connections)"
        in said
    )
    lab.correct(lab.key[1])
    code, said, _ = lab.command("results", "recover")
    assert (code, "1 result stored, 0 left." in said) == (0, True), said

    code, told, said = lab.command("report", "latest", "--again", "--format", "json")
    assert code == 0, said
    (_row,) = json.loads(told)["experiments"]  # what Airflow says while it opens the store is not in it

    told_to_airflow = {"conn_type": "aws", "login": lab.key[0], "password": lab.key[1], "extra": lab.extra}
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv(f"AIRFLOW_CONN_{lab.conn_id.upper()}", json.dumps(told_to_airflow))
    root = ResultsRoot(lab.root)
    (run,) = root.runs()
    assert run.url.startswith(f"{lab.root}/on_s3/")
    assert [ref.cycle for ref in run.cycles(repeats=True)] == [1, 2]
    summary = load_summary(run)
    assert summary is not None
    assert (summary.planned, summary.valid) == (2, 2)
    assert b"<html" in run.folder.read("report.html")

    state = Server(lab.root)
    site.client.app.dependency_overrides[server] = lambda: state  # type: ignore[attr-defined]
    site.dag("on_s3")
    site.dag_run("on_s3", run.run_id)
    (listed,) = site.get("/api/studies", user="on_s3").json()["studies"]
    assert (listed["study"], listed["runs"]) == ("on_s3", 1)
    shown = site.get("/api/run", user="on_s3", dag_id="on_s3", run_id=run.run_id).json()
    assert (shown["measured"], shown["planned"], shown["url"]) == (2, 2, run.url)
    assert re.search("<html", site.get("/run", user="on_s3", dag_id="on_s3", run_id=run.run_id).text)
    monkeypatch.setenv("AIRFLOW__LLEM__RESULTS_ROOT", lab.root)
    lab.gate.away = lambda *_: True
    refused = site.get("/api/studies", user="on_s3")
    assert refused.status_code == 503
    assert "the object store does not answer; check its address" in refused.json()["detail"]
