"""One identity of an Airflow, whichever worker asks: configured, else stored once, else derived."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import ErrorType
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import ErrorResponse, GetVariable, PutVariable, VariableResult

from llem_airflow.operators.settings import (
    INSTALLATION_VARIABLE,
    derived_installation,
    installation,
    settle_installation,
)


class Supervisor:
    """Airflow's side of a task: it keeps Variables as the API server does."""

    def __init__(self) -> None:
        self.variables: dict[str, str] = {}
        self.puts = 0

    def send(self, message: Any) -> Any:
        """Answer a task's question."""
        if isinstance(message, PutVariable):
            assert message.value is not None
            self.puts += 1
            self.variables[message.key] = message.value
            return None
        assert isinstance(message, GetVariable)
        if message.key in self.variables:
            return VariableResult(key=message.key, value=self.variables[message.key])
        return ErrorResponse(error=ErrorType.VARIABLE_NOT_FOUND, detail={"key": message.key})


@pytest.fixture
def supervisor(monkeypatch: pytest.MonkeyPatch) -> Supervisor:
    made = Supervisor()
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", made, raising=False)
    for name in ("LLEM_INSTALLATION", "AIRFLOW__LLEM__INSTALLATION"):
        monkeypatch.delenv(name, raising=False)
    return made


def test_before_it_is_stored_it_is_derived_as_it_always_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llem_airflow.operators.settings.AIRFLOW_HOME", "/opt/airflow")
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTION_API_SERVER_URL", "http://api-server:8080/execution/")
    assert derived_installation() == "2a74c03e"  # containers that run carry it


def test_what_runs_keeps_its_label_when_the_identity_is_stored(supervisor: Supervisor) -> None:
    before = installation()
    settle_installation()
    assert supervisor.variables == {INSTALLATION_VARIABLE: before}
    assert installation() == before


def test_another_worker_has_the_same_and_stores_nothing(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle_installation()
    before = installation()
    monkeypatch.setattr("llem_airflow.operators.settings.AIRFLOW_HOME", "/home/ada/airflow")
    assert derived_installation() != before
    settle_installation()
    assert (installation(), supervisor.puts) == (before, 1)


@pytest.mark.parametrize("name", ["LLEM_INSTALLATION", "AIRFLOW__LLEM__INSTALLATION"])
def test_what_is_configured_goes_first_and_is_not_stored(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "lab-a")
    settle_installation()
    supervisor.variables[INSTALLATION_VARIABLE] = "other"
    assert (installation(), supervisor.puts) == ("lab-a", 0)


@pytest.mark.parametrize("said", ["", "  ", "\n"])
def test_an_empty_variable_is_none(supervisor: Supervisor, said: str) -> None:
    supervisor.variables[INSTALLATION_VARIABLE] = said
    assert installation() == derived_installation()


def test_outside_of_a_task_nothing_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(task_runner, "SUPERVISOR_COMMS", raising=False)
    monkeypatch.delenv("LLEM_INSTALLATION", raising=False)
    settle_installation()
    assert installation() == derived_installation()


GC_SIDE = """
import json
from airflow.models.base import Base
from airflow.models.team import Team
from airflow.models.variable import Variable
from airflow.utils.session import create_session
from llem_airflow.operators.maintenance import answer
with create_session() as session:
    Base.metadata.create_all(session.get_bind(), tables=[Team.__table__, Variable.__table__])
said = [answer([])]
Variable.set("llem_installation", "stored")
said.append(answer([]))
print()
print(json.dumps(said))
"""


def test_gc_asks_the_database_and_without_a_database_derives(tmp_path: Path) -> None:
    environment = {**os.environ, "AIRFLOW_HOME": str(tmp_path)}
    for name in ("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "LLEM_INSTALLATION", "AIRFLOW__LLEM__INSTALLATION"):
        environment.pop(name, None)

    def last_line(*command: str, **how: Any) -> Any:
        ended = subprocess.run(
            [sys.executable, *command], env=environment, capture_output=True, text=True, check=True, **how
        )
        return json.loads(ended.stdout.strip().splitlines()[-1])

    without = last_line("-m", "llem_airflow.operators.maintenance", input="[{}]")
    fresh, stored = last_line("-c", GC_SIDE)
    assert without["alive"] == [None]
    assert fresh["installation"] == without["installation"]
    assert stored["installation"] == "stored"
