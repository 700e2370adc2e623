"""The process runner: the same bundle under the same protocol, in a process group of its own."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import docker

from llem_airflow.protocol.files import BUNDLE, ENV_CONFIG_PATH, ENV_OUTPUT_DIR, OUT_DIR, config_name
from llem_airflow.protocol.oom import host_oom_kills, oom_kills
from llem_airflow.protocol.redaction import Redactor, secrets_in
from llem_airflow.protocol.spec import ExperimentSpec
from llem_airflow.protocol.typed_json import ProtocolError
from llem_airflow.results.scratch import scratch_folder
from llem_airflow.runners.attempt import Attempt
from llem_airflow.runners.bundle import build_bundle
from llem_airflow.runners.collected import CONTAINER_LOG, Collected, read_result
from llem_airflow.runners.failures import AttemptFailedError, classify, headline_of, told_without_secrets
from llem_airflow.runners.gpu_use import watched
from llem_airflow.runners.leased import Leased, leased
from llem_airflow.runners.logs import LogSink
from llem_airflow.runners.outcome import read_error, timed_out, with_error_file
from llem_airflow.runners.watch import Watchdog
from llem_airflow.study import GpuRequest

_READ_BYTES = 64 * 1024
_KILL_GRACE_S = 3.0
_LOOK_EVERY_S = 0.5

# The attempt must not outlive a killed worker. PR_SET_PDEATHSIG (1) survives the exec that follows; it is set
# in the child itself, as preexec_fn is not safe beside threads. The check of the parent closes the gap.
_LAUNCHER = """\
import ctypes, os, signal, sys
parent = int(sys.argv[1])
try:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
except (OSError, AttributeError):
    pass
if os.getppid() != parent:
    sys.exit(143)
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""

_running: dict[str, subprocess.Popen[bytes]] = {}


@dataclass(frozen=True, slots=True)
class ProcessSettings:
    """Settings of the process runner.

    Attributes:
        python: Interpreter that has the engine.
        environment: Variables besides the worker's own.
        private_environment: Variables whose values are secrets: they appear in no log or file of ours.
        wall_clock_s: Longest life, in seconds, or None.
        silence_s: Longest time without output, in seconds, or None.
        gpu_idle_s: Longest time in which its GPUs compute nothing, in seconds, or None.
        stop_grace_s: Time between SIGTERM and SIGKILL, in seconds.
        log_bytes: Most bytes of output that are kept in container.log.
        gpu_request: GPUs to choose from those that this machine has, or None for none.
        gpu_quota: GPUs that experiments may hold on this machine together, or None for any number.
        gpu_wait_s: How long to wait for GPUs, in seconds.
        engine: The Docker engine of this machine, whose containers hold GPUs too; None where none answers.
    """

    python: str = sys.executable
    environment: Mapping[str, str] = field(default_factory=dict)
    private_environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    wall_clock_s: float | None = None
    silence_s: float | None = None
    gpu_idle_s: float | None = None
    stop_grace_s: float = 10.0
    log_bytes: int = 64 * 1024 * 1024
    gpu_request: GpuRequest | None = None
    gpu_quota: int | None = None
    gpu_wait_s: float = 180.0
    engine: docker.APIClient | None = None

    def secrets(self) -> list[str]:
        """Values that no log, file or message of ours may show: a process inherits Airflow's own, too."""
        return [*self.private_environment.values(), *secrets_in({**os.environ, **self.environment})]


def run_process(
    attempt: Attempt,
    spec: ExperimentSpec,
    settings: ProcessSettings,
    *,
    collect_to: Path,
    on_line: Callable[[str], None],
    bundle: Path | None = None,
) -> Collected:
    """Run one attempt as a process of this machine, in a temporary folder.

    The process ends with the thread that calls this, whatever ends that.

    Args:
        attempt: Who this is.
        spec: What the attempt is told.
        settings: How the process is run.
        collect_to: Folder for the raw files of ``out/`` and the log.
        on_line: Called with every line of output, in the caller's thread.
        bundle: What runs; default: the bundle of the installed packages.

    Raises:
        AttemptFailedError: There is no valid result. Processes and temporary folder are gone.
    """
    collect_to.mkdir(parents=True, exist_ok=True)
    with (
        scratch_folder() as exchange,
        LogSink(collect_to / CONTAINER_LOG, on_line, settings.secrets(), settings.log_bytes) as sink,
        told_without_secrets(sink.redactor),
    ):
        with leased(attempt, settings, sink, spec.meter.kind) as lease:
            told = replace(spec, meter=replace(spec.meter, gpus=lease.gpus)) if lease.gpus else spec
            _fill(exchange, bundle or build_bundle(), told)
            killed_before = oom_kills(), host_oom_kills()
            try:
                exit_code, fired = _run(attempt, told, settings, exchange, sink, lease)
            finally:
                _bring_out(exchange / OUT_DIR, collect_to, sink.redactor)
        oom_killed = _oom_killed(killed_before, exit_code)
        _check(collect_to, spec, settings, exit_code, fired, sink.tail, oom_killed=oom_killed)
        return Collected(
            folder=collect_to,
            exit_code=exit_code,
            adopted=False,
            image=None,
            image_digest=None,
            log=sink.path,
            host={
                "name": os.uname().nodename,
                "cpus": os.cpu_count(),
                "kernel": os.uname().release,
                **({"on_cpu": lease.on_cpu} if lease.on_cpu else {}),
            },
            gpus=told.meter.gpus,
        )


def kill_process(attempt: Attempt) -> None:
    """End the process group of this attempt; takes less than five seconds."""
    process = _running.get(attempt.container_name)
    if process is not None:
        _end(process, _KILL_GRACE_S)


def _oom_killed(before: tuple[int | None, int | None], exit_code: int) -> bool:
    """Whether the kernel says that it has killed for want of memory meanwhile.

    Others of the host are killed, too: its count means this process only when it was killed itself.
    """
    in_cgroup, on_host = (oom_kills() or 0) > (before[0] or 0), (host_oom_kills() or 0) > (before[1] or 0)
    return in_cgroup or (on_host and exit_code in (-signal.SIGKILL, 128 + signal.SIGKILL))


def _fill(exchange: Path, bundle: Path, spec: ExperimentSpec) -> None:
    (exchange / OUT_DIR).mkdir()
    shutil.copyfile(bundle, exchange / BUNDLE)
    (exchange / config_name(spec.experiment_hash)).write_text(spec.dumps(), encoding="utf-8")


def _run(
    attempt: Attempt,
    spec: ExperimentSpec,
    settings: ProcessSettings,
    exchange: Path,
    sink: LogSink,
    lease: Leased,
) -> tuple[int, str | None]:
    process = _spawn(settings, spec, exchange, sink, lease)
    _running[attempt.container_name] = process
    try:
        with (
            watched(lease.gpus, settings.gpu_idle_s, sink.line) as computes,
            Watchdog(
                lambda: _end(process, settings.stop_grace_s),
                wall_clock_s=settings.wall_clock_s,
                silence_s=settings.silence_s,
                gpu_idle_s=settings.gpu_idle_s,
                computes=computes,
            ) as dog,
        ):
            for data in _output(process):
                dog.heard()
                sink.feed(data)
            exit_code = process.wait()
        sink.finish()
        return exit_code, dog.fired
    finally:
        # Nothing of the group stays, whatever ended the wait: a sampler, a worker of the engine.
        _end(process, 0.0)
        _running.pop(attempt.container_name, None)
        if process.stdout is not None:
            process.stdout.close()


def _output(process: subprocess.Popen[bytes]) -> Iterator[bytes]:
    """Output until the process has ended: a child that outlives it may hold the pipe open for ever."""
    assert process.stdout is not None
    pipe = process.stdout.fileno()
    while True:
        ended = process.poll() is not None
        ready, _, _ = select.select([pipe], [], [], 0 if ended else _LOOK_EVERY_S)
        if ready:
            data = os.read(pipe, _READ_BYTES)
            if not data:
                return
            yield data
        elif ended:
            return


def _spawn(
    settings: ProcessSettings, spec: ExperimentSpec, exchange: Path, sink: LogSink, lease: Leased
) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "PYTHONUNBUFFERED": "1",
        **settings.environment,
        **settings.private_environment,
        **lease.environment,
        ENV_CONFIG_PATH: str(exchange / config_name(spec.experiment_hash)),
        ENV_OUTPUT_DIR: str(exchange / OUT_DIR),
    }
    # What the worker runs with must not shadow the bundle.
    environment.pop("PYTHONPATH", None) if "PYTHONPATH" not in settings.environment else None
    try:
        return subprocess.Popen(
            [settings.python, "-c", _LAUNCHER, str(os.getpid()), str(exchange / BUNDLE)],
            cwd=exchange,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=lease.descriptors,
        )
    except OSError as error:
        raise AttemptFailedError(
            classify(None, str(error), error=error),
            f"the interpreter {settings.python} cannot be started: {error}",
            folder=sink.path.parent,
        ) from error


def _end(process: subprocess.Popen[bytes], grace_s: float) -> None:
    """SIGTERM to the group, then SIGKILL to what is left of it."""
    if grace_s > 0 and process.poll() is None:
        _signal(process, signal.SIGTERM)
        deadline_s = time.monotonic() + grace_s
        while process.poll() is None and time.monotonic() < deadline_s:
            time.sleep(0.02)
    _signal(process, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=1)


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _bring_out(out: Path, folder: Path, redactor: Redactor) -> None:
    for path in out.iterdir():
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as source, (folder / redactor.text(path.name)).open("wb") as target:
                redactor.copy(source, target)
            path.unlink()  # there may be no room for two of a large file


def _check(
    folder: Path,
    spec: ExperimentSpec,
    settings: ProcessSettings,
    exit_code: int,
    fired: str | None,
    tail: tuple[str, ...],
    *,
    oom_killed: bool,
) -> None:
    try:
        read_result(folder, spec)
    except ProtocolError as problem:
        if fired is not None:
            ended = timed_out(folder, fired, settings, tail, exit_code)
            raise with_error_file(ended, spec) from problem
        said = read_error(folder, spec)
        found = classify(exit_code, "\n".join(tail), oom_killed=oom_killed, error=said)
        headline = f"the process ended with exit code {exit_code} and no valid result ({problem})"
        if said is not None:
            headline = headline_of(said, found)
        ended = AttemptFailedError(found, headline, folder=folder, log_tail=tail, exit_code=exit_code)
        raise with_error_file(ended, spec) from problem
