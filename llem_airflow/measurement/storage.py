"""Files written whole or not at all, and the two kinds of file that an attempt ends with."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from llem_airflow.protocol.files import error_name, result_name
from llem_airflow.protocol.result import AttemptError, CycleResult


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a reader sees all of it or nothing, even after a crash of the machine."""
    aside = path.with_name(path.name + ".part")
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object whole."""
    write_whole(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")


def write_result(out: Path, result: CycleResult) -> None:
    """Write the result: the attempt has succeeded from here on."""
    write_whole(out / result_name(result.experiment_hash), result.dumps() + "\n")


def write_error(out: Path, experiment_hash: str, error: AttemptError) -> None:
    """Write why the attempt failed."""
    write_whole(out / error_name(experiment_hash), error.dumps() + "\n")
