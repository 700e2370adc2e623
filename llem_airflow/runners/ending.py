"""The end of an attempt: its result, or what it means that there is none."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path

from llem_airflow.protocol import PROTOCOL_VERSION
from llem_airflow.protocol.files import EVENTS, error_name, result_name
from llem_airflow.protocol.result import ERROR_CATEGORIES, AttemptError, CycleResult
from llem_airflow.protocol.spec import ExperimentSpec
from llem_airflow.protocol.typed_json import ProtocolError
from llem_airflow.runners.failures import AttemptFailedError, Failure, classify, failure, headline_of
from llem_airflow.runners.output import GPU_IDLE, SILENCE, WALL_CLOCK, TimeLimits

CONTAINER_LOG = "container.log"
INSPECT = "inspect.json"


def read_result(folder: Path, spec: ExperimentSpec) -> CycleResult:
    """Read the result of the attempt that was told ``spec``.

    Raises:
        ProtocolError: It is missing, not valid, or of another experiment or cycle.
    """
    path = folder / result_name(spec.experiment_hash)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ProtocolError(f"{path.name}: the attempt wrote no result") from None
    except UnicodeDecodeError as error:
        raise ProtocolError(f"{path.name}: not UTF-8: {error}") from error
    result = CycleResult.loads(text, path.name)
    if (result.experiment_hash, result.cycle) != (spec.experiment_hash, spec.cycle):
        raise ProtocolError(
            f"{path.name}: is of experiment {result.experiment_hash} cycle {result.cycle}; "
            f"expected {spec.experiment_hash} cycle {spec.cycle}"
        )
    return result


_NO_NETWORK = "the container has no network: put the model into the models folder, or set network_mode"


@dataclass(frozen=True, slots=True)
class Ended:
    """How an attempt ended.

    Attributes:
        what: ``container`` or ``process``.
        exit_code: Its exit code.
        oom_killed: Whether the kernel ended one of its processes for want of memory.
        fired: The limit of time that ended it, or None.
        tail: Last lines of its output.
        memory: Its own limit of memory, for people; empty for none.
        offline: Whether it had no network.
    """

    what: str
    exit_code: int
    oom_killed: bool
    fired: str | None
    tail: tuple[str, ...]
    memory: str = ""
    offline: bool = False


def failed(
    folder: Path, spec: ExperimentSpec, problem: ProtocolError, ended: Ended, limits: TimeLimits
) -> AttemptFailedError:
    """The failure of an attempt that ended without a valid result; its error file is written where it has none.

    Args:
        folder: What was collected.
        spec: What the attempt was told.
        problem: What is wrong with the result.
        ended: How it ended.
        limits: Its limits of time.
    """
    found, headline = _what_happened(folder, spec, problem, ended, limits)
    error = AttemptFailedError(found, headline, folder=folder, log_tail=ended.tail, exit_code=ended.exit_code)
    path = folder / error_name(spec.experiment_hash)
    if not path.exists():
        said = AttemptError(
            schema_version=PROTOCOL_VERSION,
            type=f"Ended{found.category.title().replace('_', '')}",
            message=f"{headline}\n{found.hint}",
            traceback="",
            phase=_last_phase(folder / EVENTS),
            retryable_hint=found.retryable,
            category=found.category if found.category in ERROR_CATEGORIES else None,
        )
        path.write_text(said.dumps(), encoding="utf-8")
    return error


def _what_happened(
    folder: Path, spec: ExperimentSpec, problem: ProtocolError, ended: Ended, limits: TimeLimits
) -> tuple[Failure, str]:
    if ended.fired is not None:
        category, headline = {
            WALL_CLOCK: (
                "timeout_wall_clock",
                f"it ran longer than its wall clock limit of {limits.wall_clock_s} s",
            ),
            SILENCE: ("timeout_silence", f"it printed nothing for its silence limit of {limits.silence_s} s"),
            GPU_IDLE: (
                "timeout_gpu_idle",
                f"its GPUs computed nothing for its limit of {limits.gpu_idle_s} s",
            ),
        }[ended.fired]
        return failure(category), f"{headline.replace('.0 s', ' s')} and was ended"
    said = _said(folder, spec)
    found = classify(ended.exit_code, "\n".join(ended.tail), oom_killed=ended.oom_killed, error=said)
    if found.category == "network" and ended.offline:
        found = failure("network", retryable=False, hint=_NO_NETWORK)
    if said is not None:
        return found, headline_of(said, found)
    if ended.oom_killed and found.category == "out_of_memory_host":
        limit = ended.memory or "the host's memory"
        return (
            found,
            f"the {ended.what} ran out of memory (limit: {limit}; exit code {ended.exit_code})",
        )
    return found, f"the {ended.what} ended with exit code {ended.exit_code} and no valid result ({problem})"


def _last_phase(events: Path) -> str:
    """The phase of the last whole event; an attempt that was killed may have left half a line behind it."""
    with contextlib.suppress(OSError):
        for line in reversed(events.read_bytes().splitlines()):
            with contextlib.suppress(ValueError, KeyError, TypeError):
                return str(json.loads(line)["phase"])
    return "start"


def _said(folder: Path, spec: ExperimentSpec) -> AttemptError | None:
    """What the attempt said about its failure, or None when it said nothing that can be read."""
    path = folder / error_name(spec.experiment_hash)
    try:
        return AttemptError.loads(path.read_text(encoding="utf-8"), path.name)
    except (OSError, UnicodeDecodeError, ProtocolError):
        return None
