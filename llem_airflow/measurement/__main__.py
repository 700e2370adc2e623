"""The entry: reads the spec, runs the attempt, writes its result or its error."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import llem_airflow
from llem_airflow.measurement.attempt import Attempt
from llem_airflow.measurement.failure import attempt_error
from llem_airflow.measurement.output import EventLog, write_error, write_result
from llem_airflow.measurement.process import on_termination
from llem_airflow.protocol.files import ENV_CONFIG_PATH, ENV_OUTPUT_DIR, EVENTS
from llem_airflow.protocol.spec import ExperimentSpec
from llem_airflow.protocol.typed_json import ProtocolError

EXIT_FAILED = 1
EXIT_NO_SPEC = 2
_EXIT_GRACE_S = 10.0
_STOP_SAMPLER_S = 2.0


def main() -> int:
    """Run one attempt.

    Returns:
        0 after a result, 1 after a failure, 2 without a readable spec; 128 + number after a signal.
    """
    try:
        config = Path(os.environ[ENV_CONFIG_PATH])
        out = Path(os.environ[ENV_OUTPUT_DIR])
        spec = ExperimentSpec.loads(config.read_text(encoding="utf-8"), config.name)
    except KeyError as error:
        print(f"llem: the environment variable {error.args[0]} is not set", file=sys.stderr, flush=True)
        return EXIT_NO_SPEC
    except (OSError, ProtocolError) as error:
        print(f"llem: the spec cannot be read: {error}", file=sys.stderr, flush=True)
        return EXIT_NO_SPEC
    return _run(spec, out)


def _run(spec: ExperimentSpec, out: Path) -> int:
    out.mkdir(parents=True, exist_ok=True)
    log = EventLog(out / EVENTS)
    log.say(
        f"llem-airflow {llem_airflow.__version__}: {spec.slug or spec.experiment_hash}, cycle {spec.cycle}, "
        f"{spec.engine}, {spec.model.name}"
    )
    attempt = _attempt(spec, out, log)
    on_termination(lambda number: _terminate(number, attempt, log))
    code = _observe(spec, out, attempt, log)
    _leave_within(_EXIT_GRACE_S, code)
    attempt.close()
    return code


def _attempt(spec: ExperimentSpec, out: Path, log: EventLog) -> Attempt:
    if spec.config.get("serving_mode", "offline") == "offline":
        return Attempt(spec, out, log)
    from llem_airflow.measurement.server.attempt import ServerAttempt  # noqa: PLC0415  # asyncio and more, only there

    return ServerAttempt(spec, out, log)


def _observe(spec: ExperimentSpec, out: Path, attempt: Attempt, log: EventLog) -> int:
    try:
        result = attempt.run()
        write_result(out, result)
    except Exception as error:  # noqa: BLE001  # whatever an engine raises becomes the structured error
        failure = attempt_error(error, log.phase_name)
        write_error(out, spec.experiment_hash, failure)
        print(failure.traceback, file=sys.stderr, flush=True)
        log.say(f"FAILED: {failure.type}: {failure.message}")
        attempt.stop_sampler()
        return EXIT_FAILED
    window, meter = result.window, result.meter
    log.say(
        f"done: {window.requests} requests, {window.output_tokens} tokens in {window.duration_s:.1f} s, "
        f"{window.output_tokens / window.duration_s:.1f} tok/s; power {meter.kind} ({meter.energy_kind})"
    )
    return 0


def _terminate(number: int, attempt: Attempt, log: EventLog) -> None:
    """Keep what is written and leave, without waiting for the main thread."""
    log.note(f"ended by {signal.Signals(number).name}")
    stopping = threading.Thread(target=attempt.stop_sampler, daemon=True)
    stopping.start()
    stopping.join(_STOP_SAMPLER_S)
    sys.stdout.flush()
    os._exit(128 + number)


def _leave_within(grace_s: float, code: int) -> None:
    # Engines leave threads behind that never end; what matters has been written by now.
    def leave() -> None:
        time.sleep(grace_s)
        os._exit(code)

    threading.Thread(target=leave, name="exit", daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
