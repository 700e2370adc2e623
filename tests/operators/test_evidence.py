"""An attempt that Airflow or the engine cuts short leaves its evidence."""

from __future__ import annotations

from pathlib import Path

import pytest
import requests
from airflow.sdk.exceptions import AirflowTaskTimeout
from airflow.sdk.execution_time.timeout import timeout

from llem_airflow.operators.evidence import cut_short
from llem_airflow.operators.retries import AttemptFinalError
from llem_airflow.results import ResultsRoot
from tests.operators.test_experiment import context, operator, study_at


def test_an_attempt_that_airflow_s_limit_ends_stores_what_it_has_printed_and_why_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\necho still loading\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setenv("LLEM_PYTHON", str(slow))
    model = tmp_path / "models" / "tiny-llama-random"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    monkeypatch.setenv("LLEM_MODELS_DIR", str(model.parent))
    monkeypatch.setenv("LLEM_RESULTS_ROOT", str(tmp_path / "results"))
    with (
        pytest.raises(AttemptFinalError, match="ran longer than its execution_timeout"),
        timeout(3),  # type: ignore[no-untyped-call]  # Airflow's
    ):
        operator(study_at(tmp_path, "process")).execute(context())
    (failed,) = ResultsRoot(tmp_path / "results").run("one", "manual__x").failures()
    assert failed.reason()[0] == "timeout_wall_clock"
    assert failed.folder.read("container.log") == b"still loading\n"
    assert failed.provenance()["failure"]["retryable"] is False


def test_a_late_error_of_the_engine_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "container.log").write_text("one\ntwo\n")
    late = cut_short(
        requests.exceptions.ConnectionError("('Connection aborted.', RemoteDisconnected('x'))"), tmp_path
    )
    assert (late.failure.category, late.failure.retryable, late.log_tail) == (
        "daemon_down",
        True,
        ("one", "two"),
    )
    ended = cut_short(AirflowTaskTimeout("Timeout, PID: 7"), tmp_path)
    assert (ended.failure.category, ended.failure.retryable) == ("timeout_wall_clock", False)
