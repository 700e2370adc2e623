"""The files that cross the boundary: their names, where they lie, and the rows of those that an attempt appends to."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

EXCHANGE_DIR = "/run/llem"
"""Where the exchange volume is mounted in the container."""

ENV_CONFIG_PATH = "LLEM_CONFIG_PATH"
ENV_OUTPUT_DIR = "LLEM_OUTPUT_DIR"

BUNDLE = "llem.pyz"
OUT_DIR = "out"

EVENTS = "events.jsonl"
POWER = "power.csv"
REQUESTS = "requests.jsonl"

SERVER_LOG = "server.log"
SERVER_METRICS = "server.csv"
LOAD_PLAN = "load.json"
"""Of a server under load: what it printed, its metrics page once a second, and the schedule made before the window."""

POWER_CHECK = "power_check.csv"
METER_CHECK = "meter_check.json"
"""A second sampler's rows of the same window, and its Meter: put beside the others by whoever ran both."""
ENVIRONMENT = "environment.json"


def config_name(experiment_hash: str) -> str:
    """File name of the spec that goes in."""
    return f"{experiment_hash}_config.json"


def result_name(experiment_hash: str) -> str:
    """File name of the result; present and valid means that the attempt succeeded."""
    return f"{experiment_hash}_result.json"


def error_name(experiment_hash: str) -> str:
    """File name of the structured error of a failed attempt."""
    return f"{experiment_hash}_error.json"


PHASES = (
    "import",
    "load",
    "baseline_check",
    "baseline_bare",
    "baseline_context",
    "baseline_loaded",
    "warmup",
    "ramp",
    "measure",
    "drain",
    "cooldown",
)
"""Phases of an attempt, in order; ``ramp`` and ``drain`` are of a server under load.

Each is one ``phase_begin`` and one ``phase_end`` in events.jsonl.
"""

EVENT_KINDS = (
    "phase_begin",
    "phase_end",
    "iteration",
    "progress",
    "counter_tick",
    "baselines_reused",
    "note",
)
"""Kinds of events.jsonl rows: ``{"t_mono_ns": int, "event": kind, "phase": name, ...}``.

``iteration`` rows carry ``index``, ``duration_s``, ``output_tokens``; ``progress`` rows ``done``, ``total``, ``text``;
``baselines_reused`` rows ``measured_in`` and ``baselines``; ``note`` rows ``text``.
"""

POWER_COLUMNS = (
    "t_before_mono_ns",
    "t_after_mono_ns",
    "gpu",
    "power_instant_mw",
    "power_average_mw",
    "energy_mj",
    "sm_clock_mhz",
    "mem_clock_mhz",
    "event_reasons",
    "temperature_c",
    "mem_temperature_c",
    "utilisation_percent",
    "memory_used_bytes",
    "error",
)
"""Columns of power.csv, with a header line. An empty cell is "not known".

``gpu`` is a UUID (or ``cpu`` for meters of the host), ``energy_mj`` the energy counter, ``event_reasons`` NVML's
clock event bits, ``error`` the short name of what failed in this reading (``GpuIsLost``).
"""

REQUEST_FIELDS = (
    "request_id",
    "phase",
    "iteration",
    "prompt_index",
    "batch_size",
    "input_tokens",
    "output_tokens",
    "t_submit_mono_ns",
    "t_first_mono_ns",
    "t_last_mono_ns",
    "token_mono_ns",
    "output_token_ids",
    "finish_reason",
)
"""Fields of requests.jsonl, one object a request.

``phase`` is ``warmup`` or ``measure``; ``token_mono_ns`` has one time per generated token, the same for tokens of one
step; an empty answer has no times and null as its first and last; ``output_token_ids`` are
kept so that two versions can be compared by what they answered.
"""

SERVED_FIELDS = (
    "t_due_mono_ns",
    "t_end_mono_ns",
    "status",
    "chunk_tokens",
    "error_class",
    "http_status",
    "error_text",
)
"""More fields of requests.jsonl where a server was asked; null, or not there, in rows of a batch.

Latencies of such a row count from ``t_due_mono_ns``, the time of the schedule, so that a late client cannot hide a
wait; ``t_submit_mono_ns`` is when the client sent it, null when it never did. ``phase`` says when it was due:
``warmup``, ``ramp`` (before the window), ``measure`` (in it) or ``drain`` (after it). ``status`` is ok, error, timeout,
or cut (not done when the load was ended); ``error_class``, ``http_status`` and ``error_text`` say why one failed.
Counts of tokens are the server's own; ``chunk_tokens`` is how many each chunk held, and token ids are not kept.
"""

SERVER_COLUMNS = (
    "t_mono_ns",
    "running",
    "waiting",
    "kv_cache_usage_ratio",
    "preemptions",
    "prompt_tokens",
    "generation_tokens",
)
"""Columns of server.csv: the server's own metrics page once a second. An empty cell is "not known".

``running`` and ``waiting`` are requests now, the last three count since the server's start.
"""


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a reader sees all of it or nothing, even after a crash of the machine."""
    aside = path.with_name(path.name + ".part")
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object whole."""
    write_whole(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")
