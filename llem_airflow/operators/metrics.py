"""What a study tells Airflow's own metrics (StatsD, Datadog or OpenTelemetry) and traces, by which names.

Airflow's task runner sets up both before it calls an operator; where they are off, its interfaces do nothing. What
cannot be told never fails a cycle.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException, TaskDeferred
from airflow.sdk.observability import stats
from opentelemetry import trace
from opentelemetry.trace import Span, Status, StatusCode

from llem_airflow.protocol.failures import CATEGORIES
from llem_airflow.runners.attempt import Attempt

if TYPE_CHECKING:
    from llem_airflow.analysis.cycle import Cycle
    from llem_airflow.analysis.summary import ExperimentSummary, Summary

log = logging.getLogger(__name__)

SPAN = "llem.cycle"
"""Name of the trace span that each attempt of a cycle gets, below the span of its Airflow task."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric that studies send.

    Attributes:
        name: As it is sent; Airflow puts ``[metrics] statsd_prefix`` before it. What tells its values apart is the last
            part of the name and not a tag, as plain StatsD drops tags.
        kind: counter | timer.
        unit: What it counts.
        meaning: When it is sent.
        last: What the last part of the name can be; empty for a name without one.
    """

    name: str
    kind: str
    unit: str
    meaning: str
    last: tuple[str, ...] = ()


ATTEMPTS = Metric(
    "llem.attempts",
    "counter",
    "attempts",
    "an attempt has ended: its result is stored, or its failure is",
    ("succeeded", "failed"),
)
CYCLES = Metric(
    "llem.cycles",
    "counter",
    "cycles",
    "a cycle's task has ended for good: with a result, after its last try, or skipped (a gate, or not asked for)",
    ("measured", "failed", "skipped"),
)
ENERGY = Metric(
    "llem.energy_mj",
    "counter",
    "mJ",
    "energy of a measured window that was stored, by how it is known; nothing where it is withheld",
    ("measured", "estimate", "attributed"),
)
EXPERIMENTS = Metric(
    "llem.experiments",
    "counter",
    "experiments",
    "a run was aggregated: all planned cycles of the experiment are valid (or it needs no more), some are, none is",
    ("complete", "partial", "without_result"),
)
FAILURES = Metric(
    "llem.failures", "counter", "attempts", "an attempt has failed, by its category", tuple(CATEGORIES)
)
GPU_WAIT = Metric(
    "llem.gpu_wait",
    "timer",
    "ms",
    "an attempt has got its GPUs, or has waited long enough: how long it waited, in the triggerer and in the worker",
)
METRICS = (ATTEMPTS, CYCLES, ENERGY, EXPERIMENTS, FAILURES, GPU_WAIT)
TAGS = ("dag_id", "study")
"""Tags of every metric, where Airflow's backend has tags. Experiments are none: thousands of them fill a database."""


class StudyMetrics:
    """Sends what the tasks of one study observe.

    Args:
        dag_id: DAG of the tasks.
        study: Name of the study; None where a pasted one cannot be read.
    """

    def __init__(self, dag_id: str, study: str | None) -> None:
        self._tags = {"dag_id": dag_id} if study is None else {"dag_id": dag_id, "study": study}

    def attempt_succeeded(self, row: Cycle | None) -> None:
        """An attempt's result is stored.

        Args:
            row: What it says; None where it cannot be read.
        """
        self._count(ATTEMPTS, "succeeded")
        joules = row.measures.get("energy_j") if row else None
        if row and joules is not None and row.energy_kind in ENERGY.last:
            self._count(ENERGY, row.energy_kind, round(joules * 1000))

    def attempt_failed(self, category: str) -> None:
        """An attempt has failed.

        Args:
            category: One of ``protocol/failures.py``.
        """
        self._count(ATTEMPTS, "failed")
        self._count(FAILURES, category)

    def cycle_measured(self) -> None:
        """A cycle's task has ended with a result."""
        self._count(CYCLES, "measured")

    def cycle_ended(self, error: Exception, *, last_try: bool) -> None:
        """A cycle's task has ended without a result; nothing is sent where Airflow tries again.

        Args:
            error: What ended it.
            last_try: Whether Airflow makes no other try, whatever the error.
        """
        if isinstance(error, AirflowSkipException):
            self._count(CYCLES, "skipped")
        elif last_try or isinstance(error, AirflowFailException):
            self._count(CYCLES, "failed")

    def gpu_wait(self, waited_s: float) -> None:
        """An attempt waits no longer for GPUs.

        Args:
            waited_s: How long it did, in seconds.
        """
        trace.get_current_span().set_attribute("llem.gpu_wait_s", waited_s)
        _send(lambda: stats.timing(GPU_WAIT.name, 1000 * waited_s, tags=self._tags))

    def aggregated(self, summary: Summary) -> None:
        """A run was aggregated."""
        for each in summary.experiments:
            self._count(EXPERIMENTS, _outcome(each))

    def _count(self, metric: Metric, last: str, count: int = 1) -> None:
        _send(lambda: stats.incr(f"{metric.name}.{last}", count, tags=self._tags))


def _outcome(experiment: ExperimentSummary) -> str:
    if experiment.valid >= experiment.planned or experiment.precision_met:
        return "complete"
    return "partial" if experiment.valid else "without_result"


def _send(send: Callable[[], None]) -> None:
    try:
        send()
    except Exception as error:  # noqa: BLE001 - a metric is never worth a cycle: any client, any of its errors
        log.warning("Airflow's metrics could not be told: %s", error)


@contextmanager
def cycle_span(attempt: Attempt, study: str) -> Iterator[Span]:
    """A trace span of an attempt, below that of its task; one that records nothing where Airflow's traces are off.

    A task that defers ends its span as ``deferred``, and gets another one when it goes on.

    Args:
        attempt: The attempt.
        study: Name of the study.
    """
    attributes: dict[str, str | int] = {
        "llem.study": study,
        "llem.experiment": attempt.experiment_id,
        "llem.experiment_hash": attempt.experiment_hash,
        "llem.cycle": attempt.cycle,
        "llem.try": attempt.try_number,
    }
    # Not made at import: Airflow sets its tracer up after that.
    tracer = trace.get_tracer("llem_airflow")
    with tracer.start_as_current_span(
        SPAN, attributes=attributes, record_exception=False, set_status_on_exception=False
    ) as span:
        try:
            yield span
        except TaskDeferred:
            span.set_attribute("llem.outcome", "deferred")
            raise
        except BaseException as error:
            span.set_attribute("llem.outcome", "failed")
            category = getattr(getattr(error, "failure", None), "category", type(error).__name__)
            span.set_status(Status(StatusCode.ERROR, category))
            raise
        span.set_attribute("llem.outcome", "stored")


def page_table() -> str:
    """The table of the page: ``python -m llem_airflow.operators.metrics`` prints it."""
    lines = ["| metric | kind, unit | sent when |", "|---|---|---|"]
    for each in METRICS:
        last = " ".join(f"`.{value}`" for value in each.last)
        if each is FAILURES:
            last = "`.` and a category of the table [above](#which-failures-are-retried)"
        lines.append(f"| `{each.name}` {last}".rstrip() + f" | {each.kind}, {each.unit} | {each.meaning} |")
    return "\n".join(lines)


if __name__ == "__main__":  # what the page holds
    print(page_table())  # noqa: T201  # for the person who changes the table
