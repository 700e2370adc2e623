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
from llem_airflow.measurement.living import LivingEngine
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
        config, out = Path(os.environ[ENV_CONFIG_PATH]), Path(os.environ[ENV_OUTPUT_DIR])
    except KeyError as error:
        print(f"llem: the environment variable {error.args[0]} is not set", file=sys.stderr, flush=True)
        return EXIT_NO_SPEC
    spec = read_spec(config)
    if spec is None:
        return EXIT_NO_SPEC
    running = Running(spec, out)
    on_termination(running.terminate)
    code = running.observe()
    leave_within(code)
    running.close()
    return code


def read_spec(config: Path) -> ExperimentSpec | None:
    """The spec of a file; None, and a line that says why, when it cannot be read."""
    try:
        return ExperimentSpec.loads(config.read_text(encoding="utf-8"), config.name)
    except (OSError, ProtocolError) as error:
        print(f"llem: the spec cannot be read: {error}", file=sys.stderr, flush=True)
        return None


class Running:
    """An attempt that runs and writes its result or its error.

    Args:
        spec: What it is told.
        out: Where it writes.
        living: The engine that lives on over attempts; None for one of the attempt's own.
    """

    def __init__(self, spec: ExperimentSpec, out: Path, living: LivingEngine | None = None) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self._spec, self._out = spec, out
        self._log = EventLog(out / EVENTS)
        self._log.say(
            f"llem-airflow {llem_airflow.__version__}: {spec.slug or spec.experiment_hash}, cycle {spec.cycle}, "
            f"{spec.engine}, {spec.model.name}"
        )
        self._attempt = _attempt(spec, out, self._log, living)

    def observe(self) -> int:
        """Run it; the exit code."""
        try:
            result = self._attempt.run()
            write_result(self._out, result)
        except Exception as error:  # noqa: BLE001  # whatever an engine raises becomes the structured error
            failure = attempt_error(error, self._log.phase_name)
            write_error(self._out, self._spec.experiment_hash, failure)
            print(failure.traceback, file=sys.stderr, flush=True)
            self._log.say(f"FAILED: {failure.type}: {failure.message}")
            self._attempt.stop_sampler()
            return EXIT_FAILED
        window, meter = result.window, result.meter
        self._log.say(
            f"done: {window.requests} requests, {window.output_tokens} tokens in {window.duration_s:.1f} s, "
            f"{window.output_tokens / window.duration_s:.1f} tok/s; power {meter.kind} ({meter.energy_kind})"
        )
        return 0

    def close(self) -> None:
        """Give back what the attempt holds."""
        self._attempt.close()
        self._log.close()

    def terminate(self, number: int) -> None:
        """Keep what is written and leave, without waiting for the main thread."""
        self._log.note(f"ended by {signal.Signals(number).name}")
        stopping = threading.Thread(target=self._attempt.stop_sampler, daemon=True)
        stopping.start()
        stopping.join(_STOP_SAMPLER_S)
        sys.stdout.flush()
        os._exit(128 + number)


def _attempt(spec: ExperimentSpec, out: Path, log: EventLog, living: LivingEngine | None) -> Attempt:
    if spec.config.get("serving_mode", "offline") == "offline":
        return Attempt(spec, out, log, living)
    from llem_airflow.measurement.server.attempt import ServerAttempt  # noqa: PLC0415  # asyncio and more, only there

    return ServerAttempt(spec, out, log, living)


def leave_within(code: int) -> None:
    """Leave with this exit code, if need be by force.

    Engines leave threads behind that never end; what matters has been written by now.
    """

    def leave() -> None:
        time.sleep(_EXIT_GRACE_S)
        os._exit(code)

    threading.Thread(target=leave, name="exit", daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
