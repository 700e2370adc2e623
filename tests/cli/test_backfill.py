"""Names of releases become Airflow's own backfills, one after the other, and a failed request leaves none behind."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from llem_airflow.cli import main
from llem_airflow.cli.airflow_api import AirflowApi, AirflowApiError
from llem_airflow.cli.backfill import BackfillError, backfill, ranges_of
from llem_airflow.study import load_study_text

TEXT = """\
study_name: watch
serving_mode: offline
engine: transformers
task: {model: m, dataset: {source: builtin, n_prompts: 2}}
"""
RELEASES = ("r1", "r2", "r3", "r4")
STUDY = load_study_text(
    TEXT
    + "versions:\n"
    + "".join(f"  - {{name: {name}, released: 2026-0{9 - i}-01}}\n" for i, name in enumerate(RELEASES))
)
"""The file names the newest first."""


def typed(folder: Path, study: str, url: str, *arguments: str) -> Result:
    """What the command says of a study file."""
    (folder / "watch.yaml").write_text(study)
    return CliRunner().invoke(main, ["backfill", str(folder / "watch.yaml"), "--url", url, *arguments])


class ScriptedAirflow:
    """What this command needs of Airflow's REST API, with its backfills and runs in memory."""

    def __init__(self) -> None:
        self.paused = False
        self.create_status = 200
        self.measured: set[str] = set()
        self.backfills: list[dict[str, Any]] = []
        self.runs: list[dict[str, Any]] = []
        self.token: str | None = None

    def answer(self, method: str, path: str, body: dict[str, Any], token: str | None) -> tuple[int, Any]:
        if self.token is not None and token != f"Bearer {self.token}":
            return 401, {"detail": "Not authenticated"}
        if path == "/api/v2/dags/watch":
            self.paused = body.get("is_paused", self.paused)
            return 200, {"is_paused": self.paused}
        if path == "/api/v2/backfills/dry_run":
            return 200, {"backfills": [{"partition_key": name} for name in self._names(body)]}
        if path == "/api/v2/backfills":
            return self._create(body) if method == "POST" else (200, {"backfills": self.backfills})
        if match := re.fullmatch(r"/api/v2/backfills/(\d+)(/cancel)?", path):
            found = self.backfills[int(match[1])]
            if match[2]:
                found["completed_at"] = "now"
            return 200, found
        if path == "/api/v2/dags/watch/dagRuns":
            return 200, {"dag_runs": self.runs[::-1]}
        return 404, {"detail": f"nothing at {path}"}

    def _names(self, body: dict[str, Any]) -> list[str]:
        dates = {name: f"2026-0{9 - i}-01T00:00:00+00:00" for i, name in enumerate(RELEASES)}
        inside = [name for name in RELEASES if body["from_date"] <= dates[name] <= body["to_date"]]
        return [name for name in reversed(inside) if name not in self.measured]

    def _create(self, body: dict[str, Any]) -> tuple[int, Any]:
        done = "now" if self.create_status == 200 else None
        self.backfills.append({"id": len(self.backfills), "completed_at": None, "request": body})
        if self.create_status != 200:
            return self.create_status, {"detail": "Internal Server Error"}
        self.runs += [
            {"partition_key": name, "dag_run_id": name, "state": "failed" if name == "r3" else "success"}
            for name in self._names(body)
        ]
        made = dict(self.backfills[-1])
        self.backfills[-1]["completed_at"] = done
        return 200, made


@pytest.fixture
def airflow() -> ScriptedAirflow:
    return ScriptedAirflow()


@pytest.fixture
def url(airflow: ScriptedAirflow) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            text = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            path = self.path.split("?")[0]
            status, found = airflow.answer(
                self.command, path, json.loads(text or b"null") or {}, self.headers.get("Authorization")
            )
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(found).encode())

        do_GET = do_POST = do_PUT = do_PATCH = _serve  # noqa: N815 - the names that http.server asks for

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def run(url: str, *versions: str, **options: Any) -> tuple[int, list[str]]:
    said: list[str] = []
    return backfill(STUDY, versions, AirflowApi(url), say=said.append, poll_s=0, **options), said


def test_names_become_ranges_of_dates_oldest_first_cut_where_another_release_lies_between() -> None:
    assert ranges_of(STUDY, ["r1", "r2", "r4"]) == [["r4"], ["r2", "r1"]]
    assert ranges_of(STUDY, []) == [["r4", "r3", "r2", "r1"]]


def test_each_range_is_a_backfill_of_one_run_at_a_time(airflow: ScriptedAirflow, url: str) -> None:
    code, said = run(url, "r4", "r2", "r1")
    assert code == 0
    assert [
        (each["request"]["from_date"][:10], each["request"]["to_date"][:10]) for each in airflow.backfills
    ] == [
        ("2026-06-01", "2026-06-01"),
        ("2026-08-01", "2026-09-01"),
    ]
    assert {each["request"]["max_active_runs"] for each in airflow.backfills} == {1}
    assert said[-1] == "3 runs: r4 success, r2 success, r1 success"


def test_a_release_that_fails_is_shown_and_is_the_exit_code(url: str) -> None:
    code, said = run(url)
    assert code == 1
    assert "r3: failed" in said
    assert "r1: success" in said


def test_a_release_that_was_measured_is_left_out_and_the_option_is_named(
    airflow: ScriptedAirflow, url: str
) -> None:
    airflow.measured = {"r1"}
    code, said = run(url, "r1")
    assert (code, airflow.backfills) == (0, [])
    assert said[0].startswith("r1: has a run already")
    assert "--reprocess" in said[0]


def test_a_backfill_that_airflow_could_not_make_does_not_stay_behind(
    airflow: ScriptedAirflow, url: str
) -> None:
    airflow.create_status = 500
    with pytest.raises(AirflowApiError, match="answered 500 to POST /api/v2/backfills: Internal Server"):
        run(url)
    assert [each["completed_at"] for each in airflow.backfills] == ["now"]


def test_another_active_backfill_is_named_and_left_alone(airflow: ScriptedAirflow, url: str) -> None:
    airflow.backfills.append({"id": 0, "completed_at": None})
    with pytest.raises(BackfillError, match=r"backfill 0 of the DAG 'watch' is active.*PUT .*/0/cancel"):
        run(url)
    assert airflow.backfills[0]["completed_at"] is None


def test_a_paused_dag_is_refused_unless_it_may_be_unpaused(airflow: ScriptedAirflow, url: str) -> None:
    airflow.paused = True
    with pytest.raises(BackfillError, match=r"'watch' is paused .*--unpause"):
        run(url)
    assert run(url, "r1", unpause=True)[0] == 0
    assert not airflow.paused


def test_releases_that_only_airflow_knows_stop_it_before_anything_is_made(
    airflow: ScriptedAirflow, url: str
) -> None:
    study = load_study_text(
        TEXT + "versions: [{name: r1, released: 2026-09-01}, {name: r4, released: 2026-06-01}]\n"
    )
    with pytest.raises(BackfillError, match="knows the releases r3, r2, and the study file does not"):
        backfill(study, [], AirflowApi(url), say=print, poll_s=0)
    assert airflow.backfills == []


@pytest.mark.parametrize(
    ("study", "versions", "message"),
    [
        (TEXT, "", "the study 'watch' has no `versions`"),
        (STUDY.text, "r9", "no model release 'r9'; it has: r4, r3, r2, r1"),
    ],
)
def test_a_mistake_is_told_without_a_traceback(
    study: str, versions: str, message: str, tmp_path: Path
) -> None:
    done = typed(tmp_path, study, "http://127.0.0.1:9", "--versions", versions)
    assert done.exit_code == 2
    assert message in done.stderr


def test_where_no_airflow_answers_the_option_is_named(tmp_path: Path) -> None:
    done = typed(tmp_path, STUDY.text, "http://127.0.0.1:9")
    assert done.exit_code == 2
    assert "no Airflow answers at http://127.0.0.1:9" in done.stderr


def test_who_is_not_known_is_told_which_variables_to_set(
    airflow: ScriptedAirflow, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    airflow.token = "secret"
    done = typed(tmp_path, STUDY.text, url)
    assert done.exit_code == 2
    assert "give AIRFLOW_TOKEN, or AIRFLOW_USER and AIRFLOW_PASSWORD" in done.stderr
    monkeypatch.setenv("AIRFLOW_TOKEN", "secret")
    assert typed(tmp_path, STUDY.text, url, "--versions", "r1").exit_code == 0
