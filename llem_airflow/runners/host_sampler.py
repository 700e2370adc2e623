"""The sampler on the GPU's host, beside the container: the same code from the bundle, in a process of this worker.

With ``power.sampling: host`` its series is the one that counts and the container's is the check. Both are on the one
monotonic clock of the machine, so they are two readings of one window; they are compared and never averaged.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from llem_airflow.protocol.files import METER_CHECK, POWER, POWER_CHECK, result_name
from llem_airflow.protocol.processes import MessagePipe
from llem_airflow.protocol.result import CycleResult, Meter
from llem_airflow.protocol.spec import ExperimentSpec, MeterSpec
from llem_airflow.protocol.typed_json import to_json
from llem_airflow.runners.failures import AttemptFailedError, failure

_START_S = 60.0
_STOP_S = 20.0
"""It goes on for a second after it is told to end; a busy host takes longer."""
_BESIDE_NS = 1_000_000_000
"""A series that counts begins and ends at least so far from the window."""


class HostSampler:
    """A sampling process of this worker, from ``with`` to the end of its block."""

    def __init__(self, spec: MeterSpec, folder: Path, bundle: Path) -> None:
        self._spec, self._folder, self._bundle = spec, folder, bundle
        self._power_csv = folder / f"host_{POWER}"
        self._process: subprocess.Popen[bytes] | None = None
        self._facts: dict[str, Any] = {}
        self._messages: MessagePipe | None = None

    def __enter__(self) -> HostSampler:
        command = [
            "-m",
            "llem_airflow.measurement.sampler",
            json.dumps(to_json(self._spec)),
            str(self._power_csv),
        ]
        self._process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(self._bundle), "PYTHONSAFEPATH": "1"},
        )
        assert self._process.stdout is not None
        self._messages = MessagePipe(self._process.stdout)
        opened = self._hear(_START_S)
        self._facts = opened.get("facts") or {}
        if not self._facts or not self._hear(_START_S):
            self._end()
            raise AttemptFailedError(
                failure("config", hint="use `power: {sampling: container}`, or a worker on the GPU's host"),
                "power.sampling: host needs a worker that sees the experiment's GPUs: "
                f"{opened.get('error') or 'the sampling process ended at its start'}",
                folder=self._folder,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def finish(self, spec: ExperimentSpec) -> bool:
        """Stop, and put both series into the folder of the collected files: the one that counts, and its check.

        Returns:
            Whether the host's series is the one that counts. It is not when it does not reach around the window, as
            after a try that took over a running container.
        """
        meter = self._stop()
        result_json = self._folder / result_name(spec.experiment_hash)
        result = CycleResult.loads(result_json.read_text(encoding="utf-8"), result_json.name)
        begin_ns, end_ns = _span(self._power_csv)
        window = result.window
        counts = (
            begin_ns <= window.t_begin_mono_ns - _BESIDE_NS and window.t_end_mono_ns + _BESIDE_NS <= end_ns
        )
        power_csv, check_csv = self._folder / POWER, self._folder / POWER_CHECK
        check = result.meter if counts else meter
        if counts:
            power_csv.rename(check_csv)
            self._power_csv.rename(power_csv)
            result_json.write_text(replace(result, meter=meter).dumps(), encoding="utf-8")
        else:
            self._power_csv.rename(check_csv)
        (self._folder / METER_CHECK).write_text(json.dumps(to_json(check), indent=1), encoding="utf-8")
        return counts

    def _stop(self) -> Meter:
        process = self._process
        report: dict[str, Any] = {}
        if process is not None and process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.write(b"stop 1\n")
                process.stdin.flush()
            report = self._hear(_STOP_S).get("stopped") or {}
        self._end()
        note = "Sampled on the host, beside the container."
        return Meter(
            kind=str(self._facts["kind"]),
            energy_kind=str(self._facts["energy_kind"]),
            boundary=str(self._facts["boundary"]),
            devices=tuple(self._facts["devices"]),
            requested_hz=self._spec.power_hz,
            achieved_hz=report.get("achieved_hz"),
            samples=int(report.get("samples", 0)),
            failed_reads=int(report.get("failed_reads", 0)),
            call_p50_s=report.get("call_p50_s"),
            sampler_cpu_s=report.get("sampler_cpu_s"),
            note=f"{note} {self._facts['note']}",
        )

    def _hear(self, timeout_s: float) -> dict[str, Any]:
        """The next message of the process; empty when there is none in time."""
        assert self._messages is not None
        return self._messages.receive(timeout_s) or {}

    def _end(self) -> None:
        """Close the pipes and see the process end."""
        process, self._process = self._process, None
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        process.kill()
        process.wait()


def _span(power_csv: Path) -> tuple[int, int]:
    """Monotonic nanoseconds of the first and the last row; (0, 0) without rows."""
    times = [int(line.split(",", 1)[0]) for line in power_csv.read_text(encoding="ascii").splitlines()[1:]]
    return (times[0], times[-1]) if times else (0, 0)
