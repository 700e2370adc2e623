"""Staging: the collected files of one attempt become the files of one stored cycle."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llem_airflow import __version__
from llem_airflow.protocol import files as raw
from llem_airflow.results import names
from llem_airflow.results.folder import json_bytes

_HASHED = re.compile(r"[0-9a-f]{8,64}_(?P<kind>config|result|error)\.json")
_SKIPPED = {raw.BUNDLE}
_POWER = {raw.POWER: names.POWER, raw.POWER_CHECK: names.POWER_CHECK}


def stage(source: Path, target: Path, provenance: Mapping[str, Any]) -> None:
    """Fill ``target`` with the files of a stored cycle.

    Streams become Parquet. One that cannot be converted is kept as it is and named in provenance.json:
    a damaged series must not take the rest of the evidence with it. Only plain files are taken, as a
    link that a container left would point outside.

    Args:
        source: Folder of the collected raw files; may be absent.
        target: Empty folder to fill.
        provenance: What provenance.json says besides the notes and hashes added here.
    """
    notes: list[str] = []
    for file in sorted(source.iterdir()) if source.is_dir() else []:
        if file.is_symlink() or not file.is_file() or file.name in _SKIPPED:
            continue
        if file.name in _POWER:
            _convert_power(file, target, _POWER[file.name], notes)
        elif file.name == raw.REQUESTS:
            _convert_requests(file, target, notes)
        else:
            shutil.copyfile(file, target / _stored_name(file.name))
    written = sorted(target.iterdir())
    record = {
        **provenance,
        "stored_by": f"llem-airflow {__version__}",
        "storage_notes": notes,
        "sha256": {file.name: _sha256(file) for file in written},
    }
    (target / names.PROVENANCE).write_bytes(json_bytes(record))
    for file in target.iterdir():
        _flush(file)


def _stored_name(name: str) -> str:
    match = _HASHED.fullmatch(name)
    return f"{match['kind']}.json" if match else name


def _convert_power(file: Path, target: Path, parquet: str, notes: list[str]) -> None:
    import pyarrow as pa  # noqa: PLC0415 - see _convert_requests

    from llem_airflow.results.convert import power_to_parquet  # noqa: PLC0415

    try:
        power_to_parquet(file, target / parquet)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        _keep_raw(file, target, parquet, notes, error)


def _convert_requests(file: Path, target: Path, notes: list[str]) -> None:
    # Airflow imports this room before every task, and Arrow takes half a second that is owed only now.
    import pyarrow as pa  # noqa: PLC0415

    from llem_airflow.results.convert import requests_to_parquet  # noqa: PLC0415

    try:
        _, broken = requests_to_parquet(file, target / names.REQUESTS)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        _keep_raw(file, target, names.REQUESTS, notes, error)
        return
    if broken:
        notes.append(f"{file.name}: {broken} lines could not be read and were left out")


def _keep_raw(file: Path, target: Path, parquet: str, notes: list[str], error: Exception) -> None:
    (target / parquet).unlink(missing_ok=True)
    shutil.copyfile(file, target / file.name)
    detail = str(error).split("\n", 1)[0]
    notes.append(f"{file.name}: kept as it is, because it could not be converted: {detail}")


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _flush(file: Path) -> None:
    handle = os.open(file, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
