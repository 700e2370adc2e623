"""What an attempt left on the worker once its box is gone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llem_airflow.protocol.files import result_name
from llem_airflow.protocol.result import CycleResult
from llem_airflow.protocol.spec import ExperimentSpec
from llem_airflow.protocol.typed_json import ProtocolError

CONTAINER_LOG = "container.log"
INSPECT = "inspect.json"


@dataclass(frozen=True, slots=True)
class Collected:
    """A successful attempt.

    Attributes:
        folder: Holds the raw files of ``out/`` and the log.
        exit_code: Exit code of the container or process, or None when it is not known.
        adopted: Whether an earlier try had started it.
        image: Name of the image; None for a process.
        image_digest: Repository digest of the image, else its id; None for a process.
        log: The log file.
        host: Facts about the engine's host; what else was on it (neighbours.py); ``on_cpu``, why a host that
            has GPUs gave none; ``privileged``, when its container was.
        gpus: Device ids that it had.
    """

    folder: Path
    exit_code: int | None
    adopted: bool
    image: str | None
    image_digest: str | None
    log: Path
    host: dict[str, Any]
    gpus: tuple[str, ...]


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
