"""The process of an engine that lives on: one attempt after the other, each from its own spec into its own folder."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from llem_airflow.measurement.__main__ import EXIT_FAILED, EXIT_NO_SPEC, Running, leave_within, read_spec
from llem_airflow.measurement.living import LivingEngine
from llem_airflow.measurement.process import on_termination
from llem_airflow.measurement.session.folder import read_json
from llem_airflow.measurement.session.work import ANSWER, LOOK_EVERY_S, NEXT
from llem_airflow.protocol.files import write_json
from llem_airflow.protocol.spec import ExperimentSpec


def serve(state: Path) -> int:
    """Do what is handed over until an attempt fails with the engine in its hands; returns that one's exit code.

    An engine in which something failed may hold half a batch, or memory: it ends, and the next attempt loads another.
    Where its server dies between two attempts it ends as well, which the look between them finds.

    Args:
        state: The session's folder ``state``.
    """
    living = LivingEngine(state)
    at_work: list[Running] = []
    on_termination(lambda number: at_work[-1].terminate(number) if at_work else os._exit(128 + number))
    done = 0
    while True:
        job = _next(state, done, living)
        if job is None:
            print(f"llem: the server of the session ended by itself, with {living.died()}", flush=True)
            return EXIT_FAILED
        done = int(job["number"])
        spec = read_spec(Path(job["config"]))
        code = EXIT_NO_SPEC if spec is None else _run(spec, Path(job["out"]), living, at_work)
        if code and (spec is None or not living.unlike(spec)):
            leave_within(code)
            if living.engine is not None:
                living.engine.close()
            return code
        sys.stdout.flush()
        write_json(state / ANSWER, {"number": done, "exit_code": code})


def _run(spec: ExperimentSpec, out: Path, living: LivingEngine, at_work: list[Running]) -> int:
    running = Running(spec, out, living)
    at_work[:] = [running]
    code = running.observe()
    at_work.clear()
    running.close()
    return code


def _next(state: Path, done: int, living: LivingEngine) -> dict[str, Any] | None:
    """The next attempt; None where what lives on has died meanwhile."""
    while True:
        died = living.died()
        job = read_json(state / NEXT)
        if job.get("number", done) != done:
            return job
        if died:
            return None
        time.sleep(LOOK_EVERY_S)
