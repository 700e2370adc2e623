"""The server's own metrics page, once a second, as rows of server.csv."""

from __future__ import annotations

import contextlib
import csv
import math
import re
import threading
from collections.abc import Callable
from itertools import count
from pathlib import Path
from time import monotonic_ns

from llem_airflow.protocol.files import SERVER_COLUMNS

METRICS = "/metrics"
EVERY_S = 1.0

_NAMES = {
    "running": ("vllm:num_requests_running",),
    "waiting": ("vllm:num_requests_waiting",),
    "kv_cache_usage_ratio": ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
    "preemptions": ("vllm:num_preemptions_total",),
    "prompt_tokens": ("vllm:prompt_tokens_total",),
    "generation_tokens": ("vllm:generation_tokens_total",),
}
"""Column to names on vLLM's page, the present one first. The cache's use is a share of one, whatever its name says."""

_SAMPLE = re.compile(r"^([A-Za-z_:][\w:]*)(?:\{(.*)\})? (\S+)", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_MEAN = frozenset({"kv_cache_usage_ratio"})


def samples(page: str) -> dict[str, list[float]]:
    """The finite values of each series of a page in Prometheus' text format, by the name of the metric."""
    found: dict[str, list[float]] = {}
    for name, _, value in _SAMPLE.findall(page):
        with contextlib.suppress(ValueError):
            if math.isfinite(number := float(value)):
                found.setdefault(name, []).append(number)
    return found


def labels(page: str, metric: str) -> dict[str, str]:
    """The labels of a metric's first series; empty where it is not on the page."""
    return next((dict(_LABEL.findall(text)) for name, text, _ in _SAMPLE.findall(page) if name == metric), {})


def row(page: str, at_ns: int) -> dict[str, int | float | None]:
    """One row of server.csv. Engines of one server are added; the share of the cache in use is their mean.

    Args:
        page: The metrics page.
        at_ns: When it was read, in nanoseconds of the monotonic clock.
    """
    told = samples(page)
    found: dict[str, int | float | None] = dict.fromkeys(SERVER_COLUMNS)
    found["t_mono_ns"] = at_ns
    for column, names in _NAMES.items():
        values = next((told[name] for name in names if name in told), None)
        if values:
            total = sum(values)
            found[column] = total / len(values) if column in _MEAN else int(total)
    return found


class Scraper:
    """Reads the page in a thread of the attempt, which waits for most of the window anyway."""

    def __init__(self, read: Callable[[], bytes | None], path: Path) -> None:
        """Begin.

        Args:
            read: Gives the page, or None.
            path: server.csv.
        """
        self._read, self._path = read, path
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics page", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End, after a last reading. May be called twice."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        with self._path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, SERVER_COLUMNS)
            writer.writeheader()
            begin_ns = monotonic_ns()
            for at_s in count(EVERY_S, EVERY_S):
                page = self._read()
                if page is not None:
                    writer.writerow(row(page.decode(errors="replace"), monotonic_ns()))
                    file.flush()
                if self._ended.wait(max(0.0, at_s - (monotonic_ns() - begin_ns) / 1e9)):
                    return
