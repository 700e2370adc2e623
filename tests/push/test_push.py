"""Runs in real time-series databases: every point once, the numbers of the frames, and what a refusal says."""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import httpx
import numpy as np
import psycopg
import pytest
from click.testing import CliRunner

from llem_airflow import push
from llem_airflow.analysis.aggregate import aggregate_run
from llem_airflow.cli import main
from llem_airflow.frames import cycles_df, power_df
from llem_airflow.push import PushError, push_run
from llem_airflow.push.influx import lines
from llem_airflow.push.prometheus import labelled
from llem_airflow.push.series import DEVICE, Series, series_of
from llem_airflow.results import ResultsRoot, StoredRun
from tests import parts
from tests.analysis.conftest import run_maker
from tests.push import servers
from tests.results.recorded import Recording

FROM_S, TO_S = 0, 4_000_000_000


class Database:
    """A real database, asked in its own language."""

    def __init__(self, to: str, url: str, base: str) -> None:
        self.to, self.url, self.base = to, url, base

    def rows(self, query: str) -> list[dict[str, Any]]:
        """What a query answers, with its labels."""
        ask = {"influx": self._influx, "prometheus": self._prometheus, "postgres": self._postgres}[self.to]
        return ask(query)

    def _influx(self, query: str) -> list[dict[str, Any]]:
        answer = httpx.get(f"{self.base}/query", params={"db": "llem", "q": query, "epoch": "ns"}).json()
        (result,) = answer["results"]
        assert "error" not in result, (query, result)
        return [
            dict(zip(one["columns"], row, strict=True)) | one.get("tags", {})
            for one in result.get("series", ())
            for row in one["values"]
        ]

    def _prometheus(self, query: str) -> list[dict[str, Any]]:
        if label := re.fullmatch(r"label_values\((.*), (\w+)\)", query):
            asked = {"match[]": label[1], "start": FROM_S, "end": TO_S}
            answer = httpx.get(f"{self.base}/api/v1/label/{label[2]}/values", params=asked).json()
            return [{"value": value} for value in answer["data"]]
        if "[$__range]" in query:
            asked = {"query": query.replace("$__range", "100y"), "time": TO_S}
            answer = httpx.get(f"{self.base}/api/v1/query", params=asked).json()
            return [one["metric"] | {"value": float(one["value"][1])} for one in answer["data"]["result"]]
        if query.startswith("{"):
            asked = {"match[]": query, "start": FROM_S, "end": TO_S}
            told = httpx.get(f"{self.base}/api/v1/export", params=asked).text
            exported = [json.loads(line) for line in told.splitlines()]
            return [
                one["metric"] | {"value": value, "t_ms": at_ms}
                for one in exported
                for value, at_ms in zip(one["values"], one["timestamps"], strict=True)
            ]
        answer = httpx.get(
            f"{self.base}/api/v1/query_range",
            params={"query": query, "start": self.at_s, "end": self.at_s + 600, "step": 10},
        ).json()
        return list(answer["data"]["result"])

    at_s: float = 0.0

    def _postgres(self, query: str) -> list[dict[str, Any]]:
        with psycopg.connect(self.url, row_factory=psycopg.rows.dict_row) as connection:
            return connection.execute(query.encode()).fetchall()

    def devices(self) -> list[float]:
        """The instant power of every sample that is there, in watts."""
        queries = {
            "influx": 'SELECT "power_instant_w" AS value FROM "llem_device"',
            "prometheus": '{__name__="llem_device_power_instant_w"}',
            "postgres": "SELECT power_instant_w AS value FROM llem_device",
        }
        return sorted(row["value"] for row in self.rows(queries[self.to]))

    def cycles(self) -> dict[tuple[str, int], float]:
        """Energy per output token of each cycle, in joules."""
        queries = {
            "influx": 'SELECT "energy_per_output_token_j" AS value FROM "llem_cycle" GROUP BY *',
            "prometheus": '{__name__="llem_cycle_energy_per_output_token_j"}',
            "postgres": "SELECT experiment, cycle, energy_per_output_token_j AS value FROM llem_cycle",
        }
        found = self.rows(queries[self.to])
        told = {(row["experiment"], int(row["cycle"])): row["value"] for row in found}
        assert len(told) == len(found)
        return told


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> StoredRun:
    folder = tmp_path_factory.mktemp("runs")
    make = run_maker(ResultsRoot(folder / "results"), folder)
    found = make({(i, k): Recording(power_w=200.0 + 10 * i + k) for i in (0, 1) for k in (1, 2)})
    aggregate_run(found)
    return found


@pytest.fixture(scope="module", params=["influx", "prometheus", "postgres"])
def database(request: pytest.FixtureRequest, run: StoredRun) -> Iterator[Database]:
    """A database that a run was written to, twice."""
    start = {"influx": servers.influx, "prometheus": servers.victoria_metrics, "postgres": servers.postgres}
    with start[request.param]() as base:
        path = {"influx": "/llem", "prometheus": "/api/v1/write", "postgres": ""}[request.param]
        found = Database(request.param, base + path, base)
        if request.param == "influx":
            with pytest.raises(PushError, match=r"database not found.*CREATE DATABASE"):
                push_run(run, found.to, found.url)
            httpx.post(f"{base}/query", params={"q": "CREATE DATABASE llem"}).raise_for_status()
        first = push_run(run, found.to, found.url)
        assert push_run(run, found.to, found.url) == first == len(power_df(run)) + len(cycles_df(run))
        if request.param == "prometheus":
            httpx.get(f"{base}/internal/force_flush").raise_for_status()
        found.at_s = power_df(run)["t_epoch"].min().timestamp()
        yield found


def test_every_sample_is_there_once_with_its_watts(database: Database, run: StoredRun) -> None:
    stored = sorted((power_df(run)["power_instant_mw"].dropna() / 1e3).tolist())
    assert database.devices() == pytest.approx(stored)


def test_the_numbers_of_a_cycle_are_those_of_the_frames(database: Database, run: StoredRun) -> None:
    rows = cycles_df(run).to_dict("records")
    wanted = {(row["experiment"], row["cycle"]): row["energy_per_output_token_j"] for row in rows}
    assert database.cycles() == pytest.approx(wanted)


def test_every_query_of_the_dashboard_answers(database: Database, run: StoredRun) -> None:
    board = json.loads(push.dashboard(database.to))
    queries = [one["query"] for one in board["templating"]["list"]]
    targets = [target for panel in board["panels"] for target in panel["targets"]]
    queries += [next(t[key] for key in ("query", "expr", "rawSql") if key in t) for t in targets]
    assert len(queries) == 5
    for query in queries:
        asked = query
        for name, text in {
            "$study": run.study,
            "$run": run.run_id,
            "$timeFilter": "time > 0",
            "$__interval": "1s",
            "$__timeFilter(t)": "t > 'epoch'",
        }.items():
            asked = asked.replace(name, text)
        assert database.rows(asked), asked


def test_a_device_s_samples_say_what_they_are(run: StoredRun) -> None:
    found = [one for part in series_of(run) for one in part if one.table == DEVICE]
    for one in found:
        assert {"study", "run_id", "experiment", "cycle", "phase", "gpu", "energy_kind"} <= set(one.tags)
        assert one.tags["energy_kind"] == "measured"
        assert one.factors == {
            "transformers.batch_size": 1 if one.tags["experiment"].count("-1-") else 4
        } or (len(one.factors) == 1)
        assert (np.diff(one.t_ns) >= 0).all()
    assert len({tuple(sorted(one.labels().items())) for one in found}) == len(found)


def test_the_numbers_alone_can_be_written(run: StoredRun) -> None:
    assert {one.table for part in series_of(run, power=False) for one in part} == {"llem_cycle"}


HOSTILE = [
    "a b",
    "a,b",
    "a=b",
    'a"b',
    "a\\",
    "a\nb,c=1 d=2",
    "ünï\u202e",
    "a\\,b",
    " ",
    "'; DROP TABLE llem_device; --",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_name_cannot_write_into_another_series(database: Database, text: str) -> None:
    tags = {"study": "odd", "run_id": text, "experiment": text, "cycle": "1", "gpu": text}
    odd = Series(DEVICE, tags, {text: 1}, np.array([10**18]), {"power_instant_w": np.array([1.5])})
    with push.TARGETS[database.to](database.url) as target:
        assert target.write([odd]) == 1
    if database.to == "prometheus":
        httpx.get(f"{database.base}/internal/force_flush").raise_for_status()
    queries = {
        "influx": 'SELECT * FROM "llem_device" WHERE "study" = \'odd\'',
        "prometheus": '{__name__="llem_device_power_instant_w",study="odd"}',
        "postgres": "SELECT * FROM llem_device WHERE study = 'odd'",
    }
    shown = text if database.to != "influx" else text.replace("\n", " ").rstrip("\\")

    # A server may go on for some seconds with what it has found for the same question before.
    deadline_s = time.monotonic() + 60
    while True:
        found = [row for row in database.rows(queries[database.to]) if row["cycle"] in {"1", 1}]
        if any(row["gpu"] == shown for row in found) or time.monotonic() > deadline_s:
            break
        time.sleep(0.5)
    assert [row for row in found if row["gpu"] == shown], found
    assert all(row.get("power_instant_w", row.get("value")) == 1.5 for row in found)


def test_what_is_not_known_is_left_out() -> None:
    some = Series(
        DEVICE,
        {"gpu": "g"},
        {},
        np.array([1_000_000, 2_000_000, 2_000_001]),
        {"a": np.array([np.nan, np.nan, 2.0]), "b": np.array([np.nan, 1.0, 3.0])},
    )
    assert list(lines(some)) == ["llem_device,gpu=g b=1.0 2000000", "llem_device,gpu=g a=2.0,b=3.0 2000001"]
    told = {labels["__name__"]: (list(at), list(values)) for labels, at, values in labelled(some)}
    assert told == {"llem_device_a": ([2], [2.0]), "llem_device_b": ([2], [3.0])}


def test_a_push_that_breaks_off_leaves_the_database_as_it_was(
    run: StoredRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    with servers.postgres() as url:
        push_run(run, "postgres", url)
        before = Database("postgres", url, "").devices()

        def broken(*_: Any, **__: Any) -> Iterator[list[Series]]:
            yield next(series_of(run))
            raise OSError("the results are on a disk that has gone")

        with monkeypatch.context() as patched:
            patched.setattr("llem_airflow.push.series_of", broken)
            with pytest.raises(OSError, match="a disk"):
                push_run(run, "postgres", url)
        assert Database("postgres", url, "").devices() == before
        with pytest.raises(PushError, match="password authentication failed") as refused:
            push_run(run, "postgres", url.replace("secret", "wrong-password"))
        assert "wrong-password" not in str(refused.value)
        with psycopg.connect(url) as connection:
            connection.execute("ALTER TABLE llem_cycle DROP COLUMN energy_j")  # as an older release made it
            connection.execute("UPDATE llem_cycle SET window_s = 0")
        push_run(run, "postgres", url)
        rows = Database("postgres", url, "").rows("SELECT energy_j, window_s FROM llem_cycle")
        assert all(row["energy_j"] > 0 and row["window_s"] > 0 for row in rows)


class Answers(BaseHTTPRequestHandler):
    """A server that gives the answers it is told, one after the other, then 204."""

    told: ClassVar[list[tuple[int, dict[str, str], bytes]]] = []
    seen: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.seen.append(self.headers.get("authorization", ""))
        code, headers, body = self.told.pop(0) if self.told else (204, {}, b"")
        self.send_response(code)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def answering(*told: tuple[int, dict[str, str], bytes]) -> Iterator[str]:
    Answers.told, Answers.seen = list(told), []
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made, without making them."""
    made: list[float] = []
    monkeypatch.setattr("llem_airflow.push.send.time.sleep", made.append)
    return made


def test_a_busy_server_is_asked_again_when_it_says(run: StoredRun, pauses: list[float]) -> None:
    with answering((429, {"retry-after": "7"}, b""), (503, {}, b"later")) as place:
        assert push_run(run, "influx", f"http://ada:pass@{place}/llem", power=False) == 4
    assert pauses == [7.0, 1.0]
    assert Answers.seen == ["Basic YWRhOnBhc3M="] * 3


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ((400, {}, b'{"error":"unable to parse"}'), "refused the points with HTTP 400.*unable to parse"),
        ((401, {}, b"no"), "USER:PASSWORD"),
        ((404, {}, b""), "is the path"),
        ((400, {}, b"out of order sample"), "out_of_order_time_window"),
    ],
)
def test_a_refusal_is_quoted_once(
    answer: tuple[int, dict[str, str], bytes], told: str, run: StoredRun, pauses: list[float]
) -> None:
    with answering(answer) as place, pytest.raises(PushError, match=told) as error:
        push_run(run, "prometheus", f"http://ada:pass-word@{place}/api/v1/write", power=False)
    assert "pass-word" not in str(error.value)
    assert not pauses


def test_a_server_that_is_away_is_told_after_some_tries(run: StoredRun, pauses: list[float]) -> None:
    nowhere = f"http://127.0.0.1:{parts.free_port()}/llem"
    with pytest.raises(PushError, match=r"took no points in 6 tries.*the same command again"):
        push_run(run, "influx", nowhere)
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0]


@pytest.mark.parametrize(
    ("to", "url", "told"),
    [
        ("influx", "http://host:8086", "HOST:8086/DATABASE"),
        ("influx", "ftp://host/llem", "HOST:8086/DATABASE"),
        ("influx", "http://host:port/llem", "HOST:8086/DATABASE"),
        ("prometheus", "http://[::1/x", "/api/v1/write"),
        ("prometheus", "http://host:8428", "/api/v1/write"),
        ("postgres", "nonsense", "PostgreSQL"),
    ],
)
def test_a_url_that_names_no_database_is_told_what_one_looks_like(
    to: str, url: str, told: str, run: StoredRun
) -> None:
    with pytest.raises(PushError, match=told):
        push_run(run, to, url)


@pytest.mark.parametrize(("to", "package"), [("postgres", "psycopg"), ("prometheus", "google.protobuf")])
def test_a_missing_client_is_named_with_its_extra(
    to: str, package: str, run: StoredRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    push.prometheus.write_request.cache_clear()
    with pytest.raises(PushError, match=rf"pip install 'llem-airflow\[{to}\]'"):
        push_run(run, to, "http://127.0.0.1:1/api/v1/write")


def command(run: StoredRun, *arguments: str, env: dict[str, str] | None = None) -> Any:
    assert run.path is not None
    return CliRunner().invoke(main, ["results", "push", str(run.path), *arguments], env=env)


def test_the_command_says_what_it_wrote(run: StoredRun) -> None:
    with answering() as place:
        done = command(run, "--to", "influx", "--no-power", env={"LLEM_PUSH_URL": f"http://{place}/llem"})
    assert (done.exit_code, done.output.strip()) == (0, "nightly/r1: 4 points in influx")


def test_the_command_asks_for_the_database(run: StoredRun) -> None:
    done = command(run, "--to", "influx")
    assert done.exit_code == 2
    assert "LLEM_PUSH_URL" in done.output


@pytest.mark.parametrize("to", push.TARGETS)
def test_the_command_prints_the_dashboard(run: StoredRun, to: str) -> None:
    done = command(run, "--to", to, "--dashboard")
    assert json.loads(done.stdout)["panels"]


def test_a_run_that_is_not_aggregated_is_told(tmp_path: Path) -> None:
    make = run_maker(ResultsRoot(tmp_path / "results"), tmp_path)
    done = command(make({(0, 1): Recording()}), "--to", "influx", "--url", "http://127.0.0.1:1/llem")
    assert done.exit_code == 2
    assert "not aggregated" in done.output
