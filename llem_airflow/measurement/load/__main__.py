"""The load process: ``python -m llem_airflow.measurement.load PLAN ROWS``.

It says ``{"ready": true}`` on its standard output when it waits for the start, and ``{"facts": ...}`` at the end. Rows
are appended to ROWS, flushed twice a second. SIGTERM, SIGINT, and the end of its standard input (its parent has died)
cut the traffic: what is open gets its row with the status ``cut``.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from llem_airflow.measurement.load.client import (
    ClientFacts,
    Endpoint,
    closed_loop,
    open_loop,
    precise_event_loop,
)
from llem_airflow.measurement.load.exchange import RequestRow, row_line
from llem_airflow.measurement.load.plan import LoadPlan, read_plan
from llem_airflow.measurement.sampling import say_to
from llem_airflow.protocol.typed_json import ProtocolError

FLUSH_EVERY_S = 0.5
EXIT_FAILED = 1
EXIT_NO_PLAN = 2
EXIT_CUT = 3


def load_main(argv: list[str]) -> int:
    """Carry out one plan.

    Returns:
        0 when the traffic has ended, 1 when rows could not be written, 2 without a readable plan, 3 when it was cut.
    """
    say = say_to(sys.stdout)
    try:
        plan = read_plan(Path(argv[0]))
    except (OSError, ProtocolError) as error:
        say({"error": str(error)})
        return EXIT_NO_PLAN
    _allow_many_files()
    loop, cut = precise_event_loop(), asyncio.Event()
    try:
        with Path(argv[1]).open("a", encoding="ascii") as rows:
            facts = loop.run_until_complete(_run(plan, rows, say, cut))
    except OSError as error:
        say({"error": f"the rows cannot be written: {error}"})
        return EXIT_FAILED
    finally:
        loop.close()
    say({"facts": asdict(facts)})
    return EXIT_CUT if cut.is_set() else 0


async def _run(
    plan: LoadPlan, rows: TextIO, say: Callable[[dict[str, Any]], None], cut: asyncio.Event
) -> ClientFacts:
    stop = asyncio.Event()
    _stop_when_told(stop, cut)
    flushing = asyncio.get_running_loop().create_task(_flush(rows, stop))

    def on_row(row: RequestRow) -> None:
        rows.write(row_line(row, plan.phase))

    endpoint, asked = Endpoint.of(plan.endpoint), plan.conversations()
    gc.collect()
    gc.freeze()  # the plan is looked through no more: a collection among requests would make them late
    if plan.end_s is not None:
        asyncio.get_running_loop().call_at(plan.start_mono_ns / 1e9 + plan.end_s, stop.set)
    say({"ready": True})
    try:
        if plan.users is not None:
            return await closed_loop(
                endpoint,
                asked,
                users=plan.users,
                duration_s=plan.duration_s or 0.0,
                start_mono_ns=plan.start_mono_ns,
                timeout_s=plan.timeout_s,
                on_row=on_row,
                stop=stop,
            )
        return await open_loop(
            endpoint,
            asked,
            plan.due_s or (),
            start_mono_ns=plan.start_mono_ns,
            timeout_s=plan.timeout_s,
            on_row=on_row,
            concurrency_cap=plan.concurrency_cap,
            stop=stop,
        )
    finally:
        flushing.cancel()


async def _flush(rows: TextIO, stop: asyncio.Event) -> None:
    """What was seen is on the disk when this process is killed."""
    while True:
        await asyncio.sleep(FLUSH_EVERY_S)
        try:
            rows.flush()
        except OSError:
            stop.set()  # closing the file raises it again
            return


def _stop_when_told(stop: asyncio.Event, cut: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()

    def told() -> None:
        cut.set()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, told)
    parent = sys.stdin.fileno()

    def heard() -> None:
        if not os.read(parent, 4096):
            loop.remove_reader(parent)
            told()

    with contextlib.suppress(PermissionError):  # a file, or /dev/null: it cannot be waited for
        loop.add_reader(parent, heard)


def _allow_many_files() -> None:
    """Each request in flight has a connection: take as many descriptors as this process may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    sys.exit(load_main(sys.argv[1:]))
