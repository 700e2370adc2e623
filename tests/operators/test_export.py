"""What a study's databases get of a run, and what is said when they do not."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from airflow.sdk import Connection
from airflow.sdk.exceptions import AirflowFailException

from llem_airflow.operators import LLEMAggregateOperator
from llem_airflow.operators.aggregate import database_url
from llem_airflow.results import ResultsRoot
from llem_airflow.study import StudyFileError, load_study_text
from tests.push import servers
from tests.results.recorded import Recording, plan_json, provenance, variant

TEXT = """\
study_name: sent
serving_mode: offline
engine: transformers
task: {model: m, dataset: {source: builtin, n_prompts: 2}}
study_execution: {n_cycles: 1}
airflow: {export: [{to: postgres, conn_id: db}, {to: influx, conn_id: nowhere}]}
"""
STUDY = load_study_text(TEXT)


@pytest.fixture(scope="module")
def database() -> Any:
    with servers.postgres() as url:
        yield url


def test_a_merged_run_is_in_the_database_and_another_that_fails_is_told(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLEM_RESULTS_ROOT", str(tmp_path / "results"))
    monkeypatch.setenv("AIRFLOW_CONN_DB", database)
    (experiment,) = STUDY.experiments
    run = ResultsRoot(tmp_path / "results").run("sent", "r1")
    run.write_plan(
        TEXT, plan_json([(experiment.id, experiment.hash, dict(experiment.config))], 1), {"dag_id": "sent"}
    )
    variant(Recording(), hash=experiment.hash, cycle=1, config=dict(experiment.config)).write(
        tmp_path / "out"
    )
    run.commit_cycle(experiment.id, 1, tmp_path / "out", provenance(0.0))
    context: Any = {
        "ti": SimpleNamespace(dag_id="sent", run_id="r1", try_number=1),
        "dag_run": SimpleNamespace(run_type="manual", start_date=None, note=None),
        "outlet_events": {},
    }
    with pytest.raises(
        AirflowFailException, match=r"^influx: there is no connection 'nowhere'[\s\S]*clear this task"
    ):
        LLEMAggregateOperator(task_id="aggregate", study=STUDY).execute(context)
    with psycopg.connect(database) as connection:
        rows = connection.execute("SELECT experiment, cycle, energy_j > 0 FROM llem_cycle").fetchall()
    assert rows == [(experiment.id, 1, True)]


@pytest.mark.parametrize(
    ("to", "url"),
    [
        ("influx", "http://a%40b:p%2Fw@db:1/energy"),
        ("prometheus", "https://a%40b:p%2Fw@db:1/api/v1/push"),
        ("postgres", "postgresql://a%40b:p%2Fw@db:1/energy"),
    ],
)
def test_a_connection_is_the_url_of_its_database(to: str, url: str) -> None:
    extra = json.dumps({"scheme": "https", "path": "/api/v1/push"}) if to == "prometheus" else None
    conn = Connection(
        conn_id="db",
        host="db",
        port=1,
        login="a@b",
        password="p/w",
        schema="energy",
        extra=extra,
        conn_type="generic",
    )
    assert database_url(conn, to) == url


def test_a_connection_of_a_host_alone_has_the_usual_ports() -> None:
    conn = Connection(conn_id="db", host="db", conn_type="generic")
    assert database_url(conn, "prometheus") == "http://db:9090/api/v1/write"
    assert database_url(conn, "postgres") == "postgresql://db:5432/"


def test_an_unknown_database_is_a_problem_at_its_place() -> None:
    with pytest.raises(StudyFileError, match=r":6:\d+: airflow.export\[0\].to: found 'oracle'"):
        load_study_text(TEXT.replace("to: postgres", "to: oracle"))
