"""The runner of processes: the same bundle under the same protocol, in a process group of its own."""

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
from llem_airflow.protocol.gpus import BY_BUS, ORDER, VARIABLE, AmbiguousDeviceError, visible_to_cuda
from llem_airflow.protocol.live import ENV_LIVE
from llem_airflow.protocol.processes import host_oom_kills, oom_kills
from llem_airflow.protocol.redaction import Redactor, secrets_in
from llem_airflow.protocol.spec import ExperimentSpec
from llem_airflow.protocol.typed_json import ProtocolError
from llem_airflow.results.cleanup import remove_scratch_orphans, scratch_folder
from llem_airflow.runners.attempt import Attempt
from llem_airflow.runners.base import Busy, Collected, Place, Runner, Store, Wait, placed_with
from llem_airflow.runners.bundle import build_bundle
from llem_airflow.runners.claims import demand_for, new_ticket, on_cpu, unknown
from llem_airflow.runners.ending import CONTAINER_LOG, Ended, failed, read_result
from llem_airflow.runners.failures import AttemptFailedError, classify, failure, told_without_secrets
from llem_airflow.runners.gpus import GpuLookError, Inventory, kernel_gpus, local_inventory
from llem_airflow.runners.leases import Patience, ProcessLease, take
from llem_airflow.runners.output import LogSink, OnLive, watchdog
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
        gpu_request: GPUs to choose from those that this machine has, or None for none.
        gpu_quota: GPUs that experiments may hold on this machine together, or None for any number.
        engine: The Docker engine of this machine, whose containers hold GPUs too; None where none answers.
    """

    python: str = sys.executable
    environment: Mapping[str, str] = field(default_factory=dict)
    private_environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    wall_clock_s: float | None = None
    silence_s: float | None = None
    gpu_idle_s: float | None = None
    stop_grace_s: float = 10.0
    gpu_request: GpuRequest | None = None
    gpu_quota: int | None = None
    engine: docker.APIClient | None = None

    def secrets(self) -> list[str]:
        """Values that no log, file or message of ours may show: a process inherits Airflow's own, too."""
        return [*self.private_environment.values(), *secrets_in({**os.environ, **self.environment})]


@dataclass(frozen=True)
class ProcessPlace(Place):
    """GPUs of this machine that a process may use.

    Attributes:
        lease: Holds them.
        environment: Variables that hide all others from the process.
    """

    lease: ProcessLease = field(kw_only=True)
    environment: Mapping[str, str] = field(default_factory=dict)


class ProcessRunner(Runner):
    """Runs an attempt as a process of this machine, in a temporary folder; it ends with its worker.

    Args:
        attempt: Who this is.
        settings: How the process is run.
        folder: Folder for the raw files of ``out/`` and the log.
        on_line: Called with every line of output, in the caller's thread.
        on_live: Called with every live record, likewise.
        bundle: What runs; default: the bundle of the installed packages.
    """

    name = "process"
    own_files = False
    outlives_worker = False

    def __init__(
        self,
        attempt: Attempt,
        settings: ProcessSettings,
        *,
        folder: Path,
        on_line: Callable[[str], None],
        on_live: OnLive | None = None,
        bundle: Path | None = None,
    ) -> None:
        self._attempt = attempt
        self._settings = settings
        self._folder = folder
        self._bundle = bundle
        self._sink = LogSink(folder / CONTAINER_LOG, on_line, settings.secrets(), on_live=on_live)
        self._process: subprocess.Popen[bytes] | None = None
        self._lease: ProcessLease | None = None
        self._killed = False

    def place(self, spec: ExperimentSpec, wait: Wait = Wait()) -> Place | Busy:  # noqa: B008  # frozen
        """Lease GPUs of this machine; who waits for them waits in this process, which is the only one that can tell."""
        return placed_with(self._sink, lambda: self._claim(spec, wait))

    def run(self, place: Place, spec: ExperimentSpec, store: Store) -> Collected:
        """Run the process to its end, bring out what it wrote and store it."""
        assert isinstance(place, ProcessPlace)
        told = place.told(spec)
        try:
            with (
                contextlib.closing(self._sink),
                told_without_secrets(self._sink.redactor),
                scratch_folder() as exchange,
            ):
                _fill(exchange, self._bundle or build_bundle(), told)
                killed_before = oom_kills(), host_oom_kills()
                try:
                    exit_code, fired = self._see_through(told, exchange, place)
                finally:
                    _bring_out(exchange / OUT_DIR, self._folder, self._sink.redactor)
                oom_killed = _oom_killed(killed_before, exit_code)
                self._check(spec, Ended(self.name, exit_code, oom_killed, fired, self._sink.tail))
        finally:
            place.lease.end()
        collected = Collected(
            folder=self._folder,
            exit_code=exit_code,
            adopted=False,
            image=None,
            image_digest=None,
            log=self._sink.path,
            host={
                "name": os.uname().nodename,
                "cpus": os.cpu_count(),
                "kernel": os.uname().release,
                **({"on_cpu": place.on_cpu} if place.on_cpu else {}),
            },
            gpus=place.gpus,
        )
        store(collected)
        return collected

    def kill(self) -> None:
        """End the process group; a place that has no process yet is given back, and gets none."""
        self._killed = True
        if self._process is not None:
            _end(self._process, _KILL_GRACE_S)
        elif self._lease is not None:
            self._lease.end()
            self._sink.close()

    def release(self) -> None:
        """A process ends with its worker; what may be left is its folder."""
        remove_scratch_orphans()

    def _claim(self, spec: ExperimentSpec, wait: Wait) -> ProcessPlace | Busy:
        settings = self._settings
        known = _usable(settings, self._sink)
        demand = demand_for(settings.gpu_request, known, self._sink, quota=settings.gpu_quota)
        why = "" if demand.count else on_cpu(known, self._sink, spec.meter.kind)
        patience, ticket = Patience(wait, demand, self._sink.line), new_ticket(self._attempt)
        while True:
            lease, held = take(self._attempt, ticket, demand, known, settings.engine)
            if lease is not None:
                self._lease = lease
                hidden = _environment(lease.gpus, known)
                return ProcessPlace(
                    lease.gpus, on_cpu=why, waited_s=patience.waited_s, lease=lease, environment=hidden
                )
            if busy := patience.busy(held):
                return busy
            patience.pause(held)

    def _see_through(
        self, spec: ExperimentSpec, exchange: Path, place: ProcessPlace
    ) -> tuple[int, str | None]:
        """Run the process to its end; its exit code, and which limit ended it, if one did."""
        settings = self._settings
        if self._killed:
            raise AttemptFailedError(
                failure("cancelled"), "it was ended before its start", folder=self._folder
            )
        process = self._process = _spawn(settings, spec, exchange, self._folder, place)
        try:
            with watchdog(
                lambda: _end(process, settings.stop_grace_s), settings, place.gpus, self._sink.line
            ) as dog:
                for data in _output(process):
                    if self._sink.feed(data):
                        dog.heard()
                exit_code = process.wait()
            self._sink.finish()
            return exit_code, dog.fired
        finally:
            # Nothing of the group stays, whatever ended the wait: a sampler, a worker of the engine.
            _end(process, 0.0)
            self._process = None
            if process.stdout is not None:
                process.stdout.close()

    def _check(self, spec: ExperimentSpec, ended: Ended) -> None:
        try:
            read_result(self._folder, spec)
        except ProtocolError as problem:
            raise failed(self._folder, spec, problem, ended, self._settings) from problem


def _usable(settings: ProcessSettings, sink: LogSink) -> Inventory:
    """This machine's GPUs, without those that the worker's own CUDA_VISIBLE_DEVICES hides."""
    try:
        known = local_inventory()
    except GpuLookError as error:
        raise unknown(error, sink) from error
    if known is None or not known.gpus:
        count = kernel_gpus()
        absent = "this machine shows no NVIDIA driver"
        if count:
            absent = f"this machine has {count} NVIDIA GPU(s), and its driver's library is not installed here"
        return Inventory(absent=absent, hidden=bool(count))
    boards = known.boards
    try:
        left = visible_to_cuda(
            {**os.environ, **settings.environment}, [gpu.id for gpu in boards], [gpu.name for gpu in boards]
        )
    except AmbiguousDeviceError as error:
        found = failure("gpu_access", hint="name the boards by their UUIDs in the worker's environment")
        raise AttemptFailedError(found, str(error), folder=sink.path.parent) from error
    if left is None:
        return known
    hidden = f"{VARIABLE} of the worker hides {'every' if not left else 'the other'} GPU(s)"
    gpus = tuple(gpu for gpu in known.gpus if gpu.id in left or (gpu.parent in left))
    return replace(known, gpus=gpus, absent=hidden, hidden=not gpus)


def _environment(gpus: tuple[str, ...], known: Inventory) -> dict[str, str]:
    """Nothing is hidden where there is nothing of NVIDIA's: another vendor's boards have variables of their own."""
    if not known.gpus and not gpus:
        return {VARIABLE: ""} if known.hidden else {}
    return {VARIABLE: ",".join(gpus), ORDER: BY_BUS}


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
    settings: ProcessSettings, spec: ExperimentSpec, exchange: Path, folder: Path, place: ProcessPlace
) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "PYTHONUNBUFFERED": "1",
        **settings.environment,
        **settings.private_environment,
        **place.environment,
        ENV_LIVE: "1",
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
            pass_fds=(place.lease.descriptor,),
        )
    except OSError as error:
        raise AttemptFailedError(
            classify(None, str(error), error=error),
            f"the interpreter {settings.python} cannot be started: {error}",
            folder=folder,
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
