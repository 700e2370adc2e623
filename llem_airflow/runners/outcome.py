"""What the end of an attempt without a valid result means."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from llem_airflow.protocol import PROTOCOL_VERSION
from llem_airflow.protocol.files import EVENTS, error_name
from llem_airflow.protocol.result import ERROR_CATEGORIES, AttemptError
from llem_airflow.protocol.spec import ExperimentSpec
from llem_airflow.protocol.typed_json import ProtocolError
from llem_airflow.runners.failures import AttemptFailedError, classify, failure, headline_of
from llem_airflow.runners.settings import BoxSettings
from llem_airflow.runners.watch import GPU_IDLE, SILENCE, WALL_CLOCK

_NO_NETWORK = "the container has no network: put the model into the models folder, or set network_mode"


class Limited(Protocol):
    """What has limits of time, in seconds."""

    @property
    def wall_clock_s(self) -> float | None: ...  # noqa: D102
    @property
    def silence_s(self) -> float | None: ...  # noqa: D102
    @property
    def gpu_idle_s(self) -> float | None: ...  # noqa: D102


def failed(
    folder: Path,
    spec: ExperimentSpec,
    problem: ProtocolError,
    state: Mapping[str, Any],
    fired: str | None,
    tail: tuple[str, ...],
    limits: BoxSettings,
) -> AttemptFailedError:
    """The failure of a container that ended without a valid result.

    Args:
        folder: What was collected.
        spec: What the attempt was told.
        problem: What is wrong with the result.
        state: ``State`` of the container's inspection.
        fired: The limit that ended it, or None.
        tail: Last lines of output.
        limits: The settings, for the limits' values.
    """
    exit_code = int(state["ExitCode"])
    if fired is not None:
        return timed_out(folder, fired, limits, tail, exit_code)
    oom_killed = bool(state.get("OOMKilled"))
    said = read_error(folder, spec)
    found = classify(exit_code, "\n".join(tail), oom_killed=oom_killed, error=said)
    if found.category == "network" and limits.network_mode == "none":
        found = failure("network", retryable=False, hint=_NO_NETWORK)
    if said is not None:
        headline = headline_of(said, found)
    elif oom_killed and found.category == "out_of_memory_host":
        limit = limits.mem_limit or "the host's memory"
        headline = f"the container ran out of memory (limit: {limit}; exit code {exit_code})"
    else:
        headline = f"the container ended with exit code {exit_code} and no valid result ({problem})"
    return AttemptFailedError(found, headline, folder=folder, log_tail=tail, exit_code=exit_code)


def timed_out(
    folder: Path, fired: str, limits: Limited, tail: tuple[str, ...], exit_code: int | None
) -> AttemptFailedError:
    """The failure of an attempt that a watchdog ended."""
    category, headline = {
        WALL_CLOCK: (
            "timeout_wall_clock",
            f"it ran longer than its wall clock limit of {limits.wall_clock_s} s",
        ),
        SILENCE: ("timeout_silence", f"it printed nothing for its silence limit of {limits.silence_s} s"),
        GPU_IDLE: ("timeout_gpu_idle", f"its GPUs computed nothing for its limit of {limits.gpu_idle_s} s"),
    }[fired]
    return AttemptFailedError(
        failure(category),
        f"{headline.replace('.0 s', ' s')} and was ended",
        folder=folder,
        log_tail=tail,
        exit_code=exit_code,
    )


def with_error_file(failed: AttemptFailedError, spec: ExperimentSpec) -> AttemptFailedError:
    """Write the error file of an attempt that could not, as one that was killed, from what is known outside.

    Args:
        failed: The failure, with the folder of what was collected.
        spec: What the attempt was told.

    Returns:
        The failure, to be raised.
    """
    path = failed.folder / error_name(spec.experiment_hash)
    if not path.exists():
        found = failed.failure
        error = AttemptError(
            schema_version=PROTOCOL_VERSION,
            type=f"Ended{found.category.title().replace('_', '')}",
            message=f"{failed.headline}\n{found.hint}",
            traceback="",
            phase=_last_phase(failed.folder / EVENTS),
            retryable_hint=found.retryable,
            category=found.category if found.category in ERROR_CATEGORIES else None,
        )
        path.write_text(error.dumps(), encoding="utf-8")
    return failed


def _last_phase(events: Path) -> str:
    """The phase of the last whole event; an attempt that was killed may have left half a line behind it."""
    with contextlib.suppress(OSError):
        for line in reversed(events.read_bytes().splitlines()):
            with contextlib.suppress(ValueError, KeyError, TypeError):
                return str(json.loads(line)["phase"])
    return "start"


def read_error(folder: Path, spec: ExperimentSpec) -> AttemptError | None:
    """What the attempt said about its failure, or None when it said nothing that can be read."""
    path = folder / error_name(spec.experiment_hash)
    try:
        return AttemptError.loads(path.read_text(encoding="utf-8"), path.name)
    except (OSError, UnicodeDecodeError, ProtocolError):
        return None
