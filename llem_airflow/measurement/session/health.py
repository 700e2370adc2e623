"""Health between cycles: what an attempt may not leave behind for the next one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llem_airflow.measurement.session.folder import SessionFolder, processes
from llem_airflow.measurement.session.work import ENGINE_COMMAND, engine_problem, living_engine
from llem_airflow.protocol.gpus import SLOWDOWNS
from llem_airflow.protocol.session import COMMAND, HEALTH

BASELINE = "baseline.jsonl"

MEMORY_LIMIT_BYTES = 512 << 20
"""What a GPU may hold more than at the session's start."""

SETTLE_S = 5.0
"""How long memory may take to be given back, and processes to go, in seconds."""

_AGAIN_S = 0.25
_SLOWED = {**SLOWDOWNS, 0x80: "hardware power brake"}
"""Bits of nvmlDeviceGetCurrentClocksEventReasons (nvml.h) that an idle GPU must not have."""


def check(folder: SessionFolder, position: int) -> list[str]:
    """Look until nothing is wrong, for a few seconds; note what was seen.

    Args:
        folder: Of the session.
        position: How many attempts have run so far.

    Returns:
        What is wrong; empty when the session is healthy.
    """
    died = engine_problem(folder)
    baseline = _baseline(folder)
    deadline_s = time.monotonic() + SETTLE_S
    while True:
        seen = look(folder)
        problems = [died] if died else judge(seen, baseline)
        if died or not problems or time.monotonic() >= deadline_s:
            break
        time.sleep(_AGAIN_S)
    folder.append(HEALTH, {**seen, "after_attempts": position, "problems": problems})
    return problems


def _baseline(folder: SessionFolder) -> dict[str, Any]:
    """What may be held: as at the session's start; where an engine lives on, as after its first attempt."""
    at_start = (folder.read_lines(BASELINE) or [{"gpus": []}])[0]
    if living_engine(folder) is None:
        return at_start
    engine = folder.engine() or {}
    with_engine = f"baseline-{engine.get('pid')}-{engine.get('began')}.jsonl"
    if not folder.read_lines(with_engine):
        folder.append(with_engine, {**look(), "since": "the end of the engine's first cycle"})
    return folder.read_lines(with_engine)[0]


def look(folder: SessionFolder | None = None) -> dict[str, Any]:
    """The GPUs and the processes as they are now; memory in bytes, temperature in degrees Celsius.

    Args:
        folder: Of the session, whose own processes do not count; None at its start.
    """
    gpus, driver = _gpus()
    left, zombies = _left(living_engine(folder)) if folder is not None else ([], [])
    return {
        "t_mono_ns": time.monotonic_ns(),
        "gpus": gpus,
        "driver": driver,
        "left": left,
        "zombies": zombies,
    }


def judge(seen: dict[str, Any], baseline: dict[str, Any]) -> list[str]:
    """What is wrong with what was seen, in words.

    Args:
        seen: Of :func:`look`.
        baseline: The same at the session's start.
    """
    problems = [f"a process was left running: {one}" for one in seen["left"]]
    problems += [f"a process was left unreaped: {one}" for one in seen["zombies"]]
    now = {gpu["uuid"]: gpu for gpu in seen["gpus"]}
    for before in baseline["gpus"]:
        gpu = now.get(before["uuid"])
        if gpu is None:
            problems.append(f"GPU {before['uuid']} is not there any more: {seen['driver'] or 'not listed'}")
        else:
            since = baseline.get("since", "the session's start")
            problems += [f"GPU {before['uuid']}: {text}" for text in _wrong(gpu, before, since)]
    return problems


def _wrong(gpu: dict[str, Any], before: dict[str, Any], since: str) -> list[str]:
    found = []
    used, at_start = gpu["memory_used_bytes"], before["memory_used_bytes"]
    if used is None and at_start is not None:
        found.append(f"its memory cannot be read: {gpu['error']}")
    elif used is not None and at_start is not None and used - at_start > MEMORY_LIMIT_BYTES:
        found.append(
            f"{(used - at_start) / 2**20:.0f} MiB more are in use than at {since}; allowed: "
            f"{MEMORY_LIMIT_BYTES / 2**20:.0f}"
        )
    reasons = gpu["event_reasons"] or 0
    found += [f"slowed down while idle: {text}" for bit, text in _SLOWED.items() if reasons & bit]
    strangers = sorted(set(gpu["processes"] or ()) - set(before["processes"] or ()))
    if strangers:
        found.append(f"processes of others compute on it: {', '.join(map(str, strangers))}")
    return found


def _gpus() -> tuple[list[dict[str, Any]], str]:
    """What the driver says of each GPU here, and why it says nothing."""
    try:
        import pynvml as nvml  # noqa: PLC0415  # 8,000 lines, and only between cycles is the driver open
    except ImportError as error:
        return [], str(error)
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return [], type(error).__name__
    try:
        return [_gpu(nvml, handle) for handle in _handles(nvml)], ""
    except nvml.NVMLError as error:
        return [], type(error).__name__
    finally:
        nvml.nvmlShutdown()


def _handles(nvml: Any) -> list[Any]:
    """Boards, or the slices that the container was given: a board whose slice it has tells it no memory."""
    given = os.environ.get("NVIDIA_VISIBLE_DEVICES", "").split(",")
    slices = [one for one in given if one.startswith("MIG-")]
    if slices:
        return [nvml.nvmlDeviceGetHandleByUUID(one) for one in slices]
    return [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]


def _gpu(nvml: Any, handle: Any) -> dict[str, Any]:
    errors: list[str] = []

    def told(ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except nvml.NVMLError as error:
            errors.append(type(error).__name__)
            return None

    uuid = nvml.nvmlDeviceGetUUID(handle)
    memory_bytes = told(lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used)
    error = errors[0] if errors else None
    return {
        "uuid": uuid.decode() if isinstance(uuid, bytes) else uuid,
        "memory_used_bytes": memory_bytes,
        "error": error,
        "temperature_c": told(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
        "event_reasons": told(lambda: nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)),
        "processes": told(lambda: [one.pid for one in nvml.nvmlDeviceGetComputeRunningProcesses(handle)]),
    }


def _left(engine: int | None) -> tuple[list[str], list[str]]:
    """Processes below the container's init that are no command of ours nor the engine's; running, and unreaped.

    What was executed from outside (a look by ``docker exec``, Docker's healthcheck) has no parent in the container.
    """
    left: list[str] = []
    zombies: list[str] = []
    for pid, fields in processes().items():
        state, parent = fields[0], int(fields[1])
        if pid == 1 or parent == 0 or int(fields[3]) == engine or _is_ours(pid):
            continue
        (zombies if state == "Z" else left).append(f"{pid} {_command(pid)}")
    return left, zombies


def _command(pid: int) -> str:
    argv = _argv(pid)
    return " ".join(argv)[:200] if argv else "(ended)"


def _is_ours(pid: int) -> bool:
    argv = _argv(pid)[1:4]
    return COMMAND in argv and ENGINE_COMMAND not in argv  # an engine that nobody knows is none of ours


def _argv(pid: int) -> list[str]:
    try:
        text = Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return [word for word in text.split("\0") if word]
