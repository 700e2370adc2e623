"""What tasks tell Airflow's metrics reaches a StatsD daemon, and never fails a cycle."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk._shared.observability.metrics.base_stats_logger import NoStatsLogger
from airflow.sdk._shared.observability.metrics.otel_logger import SafeOtelLogger
from airflow.sdk.exceptions import AirflowSkipException, TaskDeferred
from airflow.sdk.observability import stats
from airflow.sdk.observability.metrics.stats_utils import get_stats_factory
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

import llem_airflow.operators
from llem_airflow.operators import LLEMAggregateOperator, waits
from llem_airflow.operators.metrics import SPAN, TAGS, StudyMetrics, cycle_span, page_table
from llem_airflow.operators.retries import AttemptFinalError, AttemptRetryableError
from llem_airflow.operators.waits import GpuFreeTrigger, GpuWait, PauseTrigger, now_epoch_s
from llem_airflow.protocol.failures import CATEGORIES
from llem_airflow.results import ResultsRoot
from llem_airflow.runners.attempt import Attempt
from llem_airflow.runners.base import Wait
from llem_airflow.runners.failures import failure
from llem_airflow.runners.leases import Demand, Patience
from tests.operators.test_experiment import STUDY, context, operator, places, study_at
from tests.operators.test_gpu_wait import ATTEMPT, AWAY, first_event

__all__ = ["places"]

MODEL = STUDY.split("model: ")[1].split("\n")[0]


class Daemon:
    """A StatsD daemon: what it was sent."""

    def __init__(self, listening: socket.socket) -> None:
        self._socket = listening

    def told(self) -> dict[str, list[tuple[float, str]]]:
        """Values and types by name, since the last call."""
        found: dict[str, list[tuple[float, str]]] = {}
        try:
            while True:
                name, _, rest = self._socket.recv(65536).decode().partition(":")
                value, kind = rest.split("|")[:2]
                found.setdefault(name, []).append((float(value), kind))
        except BlockingIOError:
            return found


@contextmanager
def stats_as_a_task_runner_makes_it() -> Iterator[None]:
    """Airflow's metrics as the configuration of the moment says; off again afterwards."""
    made: list[Any] = []

    def backend() -> Any:
        made.append(get_stats_factory()())
        return made[-1]

    stats.initialize(factory=backend, export_legacy_names=False)
    try:
        yield
    finally:
        stats.initialize(factory=NoStatsLogger, export_legacy_names=False)
        for each in made:
            each.statsd.close()


def configured(monkeypatch: pytest.MonkeyPatch, port: int, **more: str) -> None:
    for name, value in {
        "on": "True",
        "host": "127.0.0.1",
        "port": str(port),
        "prefix": "gpu",
        **more,
    }.items():
        monkeypatch.setenv(f"AIRFLOW__METRICS__STATSD_{name.upper()}", value)


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.setblocking(False)
        configured(monkeypatch, listening.getsockname()[1])
        with stats_as_a_task_runner_makes_it():
            yield Daemon(listening)


@pytest.mark.engine
def test_a_measured_cycle_and_its_run_reach_the_daemon(
    tmp_path: Path, tiny_model: Path, daemon: Daemon
) -> None:
    study = study_at(tmp_path, "process")
    operator(study).execute(context())
    told = daemon.told()
    assert told.pop("gpu.llem.gpu_wait") == [(0.0, "ms")]
    (cycle,) = ResultsRoot(tmp_path / "results").run("one", "manual__x").cycles()
    ((energy_mj, kind),) = told.pop("gpu.llem.energy_mj.estimate")
    assert told == {"gpu.llem.attempts.succeeded": [(1, "c")], "gpu.llem.cycles.measured": [(1, "c")]}
    summary = LLEMAggregateOperator(task_id="aggregate", study=study).execute(context("aggregate"))
    (numbers,) = summary["experiments"].values()
    tokens = cycle.result().window.output_tokens
    assert kind == "c"
    assert energy_mj / tokens == pytest.approx(1000 * numbers["energy_per_output_token_j"]["mean"], abs=1)
    assert daemon.told() == {"gpu.llem.experiments.complete": [(1, "c")]}


def test_a_failed_try_is_an_attempt_of_its_category_and_a_failed_cycle_only_when_no_other_follows(
    tmp_path: Path, tiny_model: Path, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    study = study_at(tmp_path, "process", STUDY.replace(MODEL, "nowhere"))
    attempt = {"gpu.llem.attempts.failed": [(1, "c")], "gpu.llem.failures.model_missing": [(1, "c")]}
    with pytest.raises(AttemptRetryableError):
        operator(study).execute(context(try_number=1, max_tries=1))
    assert daemon.told() == attempt
    with pytest.raises(AttemptRetryableError):
        operator(study).execute(context(try_number=2, max_tries=1))
    assert daemon.told() == {**attempt, "gpu.llem.cycles.failed": [(1, "c")]}
    metrics = StudyMetrics("d", "one")
    metrics.cycle_ended(AttemptFinalError("", failure("config")), last_try=False)
    metrics.cycle_ended(AirflowSkipException(), last_try=True)
    assert daemon.told() == {"gpu.llem.cycles.failed": [(1, "c")], "gpu.llem.cycles.skipped": [(1, "c")]}


@pytest.mark.parametrize(
    ("host", "more"),
    [
        ("127.0.0.1", {}),  # nobody listens there
        ("no-such-host.invalid", {}),
        ("127.0.0.1", {"custom_client_path": "pathlib.Path"}),  # no StatsD client, which Airflow refuses
    ],
)
def test_a_daemon_that_is_away_and_a_client_that_is_none_fail_no_cycle(
    monkeypatch: pytest.MonkeyPatch, host: str, more: dict[str, str]
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
    configured(monkeypatch, port, host=host, **more)
    with stats_as_a_task_runner_makes_it():
        metrics = StudyMetrics("d", "one")
        metrics.attempt_succeeded(None)
        metrics.gpu_wait(1.5)
        metrics.cycle_measured()


def test_with_tags_the_dag_and_the_study_are_told_and_nothing_with_a_value_for_each_experiment(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__METRICS__STATSD_INFLUXDB_ENABLED", "True")
    with stats_as_a_task_runner_makes_it():
        StudyMetrics("nightly", "one").gpu_wait(2.5)
        StudyMetrics("nightly", None).cycle_measured()
    assert daemon.told() == {
        "gpu.llem.gpu_wait,dag_id=nightly,study=one": [(2500, "ms")],
        "gpu.llem.cycles.measured,dag_id=nightly": [(1, "c")],
    }
    assert TAGS == ("dag_id", "study")


def test_opentelemetry_is_told_the_same_names_with_the_tags() -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    backend: Any = SafeOtelLogger(provider, "gpu")
    stats.initialize(factory=lambda: backend, export_legacy_names=False)
    try:
        metrics = StudyMetrics("nightly", "one")
        metrics.gpu_wait(2.5)
        metrics.cycle_measured()
        for category in CATEGORIES:  # the longest names: those that are too long are dropped
            metrics.attempt_failed(category)
        seen: Any = reader.get_metrics_data()
    finally:
        stats.initialize(factory=NoStatsLogger, export_legacy_names=False)
        provider.shutdown()
    points = {
        each.name: each.data.data_points
        for of_resource in seen.resource_metrics
        for scope in of_resource.scope_metrics
        for each in scope.metrics
    }
    assert {tuple(point.attributes.items()) for each in points.values() for point in each} == {
        (("dag_id", "nightly"), ("study", "one"))
    }
    assert [point.sum for point in points.pop("gpu.llem.gpu_wait")] == [2500]
    counts = {name: [point.value for point in each] for name, each in points.items()}
    assert counts == {
        "gpu.llem.cycles.measured": [1],
        "gpu.llem.attempts.failed": [len(CATEGORIES)],
        **{f"gpu.llem.failures.{category}": [1] for category in CATEGORIES},
    }


def test_a_wait_for_gpus_is_counted_from_its_begin_over_trigger_and_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(waits, "SETTLE_S", 0.0)
    begun_s = now_epoch_s() - 100
    waiting = GpuFreeTrigger(later=AWAY, begin_epoch_s=begun_s + 60, limit_s=1, since_epoch_s=begun_s)
    event = asyncio.run(first_event(GpuFreeTrigger(**waiting.serialize()[1])))
    assert 100 <= GpuWait(here=False, **event).waited_s < 400
    assert GpuWait(here=True).waited_s == 0
    patience = Patience(Wait(limit_s=0.2), Demand(count=1), lambda _: None)
    while patience.busy([]) is None:
        patience.pause([])
    assert patience.waited_s == pytest.approx(0.2, abs=0.05)


@pytest.fixture(scope="module")
def exporter() -> Iterator[InMemorySpanExporter]:
    """Spans of this process, which has one tracer provider for ever, as a task's has."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    yield exporter
    provider.shutdown()


def test_an_attempt_has_a_span_below_its_task_s_with_its_outcome_and_failure(
    tmp_path: Path, tiny_model: Path, exporter: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    study = study_at(tmp_path, "process", STUDY.replace(MODEL, "nowhere"))
    exporter.clear()
    with (
        trace.get_tracer("airflow").start_as_current_span("worker.one") as task,
        pytest.raises(AttemptRetryableError),
    ):
        operator(study).execute(context(try_number=2))
    span, _ = exporter.get_finished_spans()
    assert (span.name, span.parent) == ("llem.cycle", task.get_span_context())
    assert dict(span.attributes or {}) == {
        "llem.study": "one",
        "llem.experiment": study.experiments[0].id,
        "llem.experiment_hash": study.experiments[0].hash,
        "llem.cycle": 1,
        "llem.try": 2,
        "llem.outcome": "failed",
    }
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "model_missing")


def test_a_span_tells_the_wait_and_one_of_a_task_that_defers_is_no_error(
    exporter: InMemorySpanExporter,
) -> None:
    exporter.clear()
    attempt = Attempt(**ATTEMPT)  # type: ignore[arg-type]  # fields by name
    with cycle_span(attempt, "one"):
        StudyMetrics("d", "one").gpu_wait(1.5)
    with pytest.raises(TaskDeferred), cycle_span(attempt, "one"):
        raise TaskDeferred(trigger=PauseTrigger(until_epoch_s=0), method_name="execute")
    told = [dict(span.attributes or {}) for span in exporter.get_finished_spans()]
    assert [each["llem.outcome"] for each in told] == ["stored", "deferred"]
    assert told[0]["llem.gpu_wait_s"] == 1.5
    assert all(span.status.status_code is StatusCode.UNSET for span in exporter.get_finished_spans())


def test_the_page_shows_the_table() -> None:
    page = (Path(llem_airflow.operators.__file__).parent / "README.md").read_text()
    assert page_table() in page
    assert all(f"`{tag}`" in page for tag in TAGS)
    assert SPAN in page
