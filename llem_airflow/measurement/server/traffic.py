"""The load upon a server: what the study asks for, the schedule of it, and what its requests came to."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, TypedDict

from llem_airflow.measurement.engines.contract import Prompt
from llem_airflow.measurement.load.arrivals import arrival_times
from llem_airflow.measurement.load.plan import LoadPlan, LoadPrompt
from llem_airflow.measurement.server.command import HOST, sampling_fields
from llem_airflow.measurement.server.prompts import turns_of
from llem_airflow.protocol.spec import ExperimentSpec

EDGE_S = 1.0
"""The schedule goes on so long after the window's planned end: the window opens at a tick of the energy counter."""

WARMUP_SEED = 1_000_003
"""What separates the seed of the warm-up's arrivals from that of the window's."""

CYCLE_SEED = 7_919
"""What separates the seeds of two cycles: each has arrivals of its own, the same in every experiment of a study."""


class Load(TypedDict, total=False):
    """What makes requests: a schedule, or users; the fields of a LoadPlan."""

    due_s: tuple[float, ...]
    users: int | None
    duration_s: float


@dataclass(frozen=True)
class Traffic:
    """What the study asks for under ``server.traffic``.

    Attributes:
        rate_per_s: Mean requests in a second; None in a closed loop.
        users: Users of a closed loop, each of whom asks again when it was answered; None in an open one.
        arrival: poisson, gamma or constant.
        burstiness: Coefficient of variation of the gaps, for gamma.
        window_s: Length of the measured window, in seconds.
        ramp_s: Load before it, in seconds.
        concurrency_cap: Most requests in flight, or None.
        timeout_s: How long after its due time a request is given up, in seconds.
        seed: Of this cycle's arrivals.
        turns: Mean requests of a conversation: so many times rarer one begins.
    """

    rate_per_s: float | None
    users: int | None
    arrival: str
    burstiness: float
    window_s: float
    ramp_s: float
    concurrency_cap: int | None
    timeout_s: float
    seed: int
    turns: float = 1.0

    def __str__(self) -> str:
        """For a log."""
        if self.users is not None:
            return f"a closed loop of {self.users} user{'s' * (self.users > 1)}"
        return f"{self.arrival} arrivals, {self.rate_per_s:g} requests/s"

    @property
    def measured(self) -> Load:
        """The load of ramp and window."""
        return self._load(self.ramp_s + self.window_s + EDGE_S, self.seed)

    def warmup(self, longest_s: float) -> Load:
        """The load of a warm-up, with arrivals of its own."""
        return self._load(longest_s, self.seed + WARMUP_SEED)

    def _load(self, duration_s: float, seed: int) -> Load:
        if self.rate_per_s is None:
            return Load(users=self.users, duration_s=duration_s)
        due_s = arrival_times(
            self.arrival,
            rate_per_s=self.rate_per_s / self.turns,
            duration_s=duration_s,
            burstiness=self.burstiness,
            seed=seed,
        )
        return Load(due_s=tuple(due_s), duration_s=duration_s)


def traffic_of(spec: ExperimentSpec) -> Traffic:
    """The traffic of one cycle.

    Args:
        spec: The experiment, of server mode.
    """
    said = spec.config["server"]["traffic"]
    users, seed = said.get("concurrency"), said.get("seed")
    if seed is None:
        seed = (spec.config.get("task") or {}).get("random_seed")
    return Traffic(
        rate_per_s=None if users is not None else float(said["rate"]),
        users=users,
        arrival=said.get("arrival", "poisson"),
        burstiness=float(said.get("burstiness") or 1.0),
        window_s=float(said["window_seconds"]),
        ramp_s=float(said["ramp_exclusion_seconds"]),
        concurrency_cap=said.get("concurrency_cap"),
        timeout_s=float(said["request_timeout_seconds"]),
        seed=int(seed or 0) + CYCLE_SEED * (spec.cycle - 1),
        turns=mean(turns_of(spec) or (1,)),
    )


def load_plan(
    spec: ExperimentSpec,
    traffic: Traffic,
    prompts: Sequence[Prompt],
    load: Load,
    *,
    model: str,
    port: int,
    phase: str,
    start_mono_ns: int,
) -> LoadPlan:
    """What the load process is told.

    Args:
        spec: The experiment.
        traffic: Its traffic.
        prompts: One pass of its prompts; they repeat.
        load: What makes the requests.
        model: Name that the server knows the model by.
        port: Where the server listens.
        phase: What the rows are marked with.
        start_mono_ns: When the traffic begins, in nanoseconds of the monotonic clock.
    """
    shared = sampling_fields(spec, prompts[0].output_tokens)
    return LoadPlan(
        endpoint=f"http://{HOST}:{port}",
        model=model,
        prompts=tuple(_load_prompt(spec, one, shared) for one in prompts),
        start_mono_ns=start_mono_ns,
        timeout_s=traffic.timeout_s,
        phase=phase,
        concurrency_cap=traffic.concurrency_cap,
        sampling=shared,
        turns=turns_of(spec),
        **load,
    )


def _load_prompt(spec: ExperimentSpec, prompt: Prompt, shared: dict[str, Any]) -> LoadPrompt:
    """A request, with those fields of its own that depend on its length."""
    own = sampling_fields(spec, prompt.output_tokens)
    return LoadPrompt(
        prompt.output_tokens,
        token_ids=prompt.token_ids,
        sampling={key: value for key, value in own.items() if shared.get(key) != value},
    )


@dataclass(frozen=True)
class WindowTotals:
    """What the requests of one load came to.

    Attributes:
        due: Requests that were due in the window.
        answered: Of these, those that were answered.
        input_tokens: Prompt tokens of the answered ones.
        output_tokens: Tokens that came in the window, of whatever request.
        failed: Of those due, how many failed, by how they failed.
        example: What the first failed one was told.
    """

    due: int
    answered: int
    input_tokens: int
    output_tokens: int
    failed: dict[str, int]
    example: str


def sort_by_due_time(rows: Path, requests: Path, begin_ns: int, end_ns: int) -> WindowTotals:
    """Append the rows of a load to requests.jsonl, each with the phase in which it was due, and count the window's.

    A request belongs to the window by its due time, a token by the time at which it came.

    Args:
        rows: What the load process wrote.
        requests: requests.jsonl.
        begin_ns: Begin of the window, in nanoseconds of the monotonic clock.
        end_ns: Its end.
    """
    due = answered = input_tokens = 0
    output_tokens = 0.0
    failed: Counter[str] = Counter()
    example = ""
    with requests.open("a", encoding="utf-8") as file:
        for row in _rows(rows):
            output_tokens += _tokens_between(row, begin_ns, end_ns)
            row["phase"] = _phase(row["t_due_mono_ns"], begin_ns, end_ns)
            file.write(json.dumps(row) + "\n")
            if row["phase"] != "measure":
                continue
            due += 1
            if row["status"] == "ok":
                answered += 1
                input_tokens += row["input_tokens"] or 0
            else:
                failed[_how(row)] += 1
                example = example or str(row["error_text"] or "")
    rows.unlink()
    return WindowTotals(due, answered, input_tokens, round(output_tokens), dict(failed), example)


def answered(rows: Path, phase: str) -> tuple[int, int, str]:
    """How many requests of a phase were answered, how many failed otherwise than by being cut, and what one was told.

    Args:
        rows: requests.jsonl.
        phase: The phase.
    """
    ok = failed = 0
    example = ""
    for row in _rows(rows):
        if row["phase"] == phase and row["status"] == "ok":
            ok += 1
        elif row["phase"] == phase and row["status"] != "cut":
            failed += 1
            example = example or f"{_how(row)}: {row['error_text']}"
    return ok, failed, example


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if line.endswith("\n"):  # a row may still be under way
                yield json.loads(line)


def _tokens_between(row: dict[str, Any], begin_ns: int, end_ns: int) -> float:
    """Tokens of a request that came between two times; where its chunks do not tell theirs, each has the same share."""
    times_ns = row["token_mono_ns"]
    inside = sum(begin_ns <= t_ns < end_ns for t_ns in times_ns)
    if row["chunk_tokens"] is None and times_ns and row["output_tokens"] is not None:
        return float(inside / len(times_ns) * row["output_tokens"])
    return float(inside)


def _phase(due_ns: int, begin_ns: int, end_ns: int) -> str:
    return "ramp" if due_ns < begin_ns else "measure" if due_ns < end_ns else "drain"


def _how(row: dict[str, Any]) -> str:
    """How a request failed, in a word."""
    if row["status"] != "error":
        return str(row["status"])
    return f"HTTP {row['http_status']}" if row["error_class"] == "http_status" else str(row["error_class"])
