"""Commit: the collected files of an attempt become a stored folder that is there whole or not at all.

They are prepared in a staging folder and renamed; on an object store the file that readers look for comes last.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from llem_airflow import __version__
from llem_airflow.protocol import files as raw
from llem_airflow.protocol.result import CycleResult
from llem_airflow.protocol.typed_json import ProtocolError
from llem_airflow.results import layout
from llem_airflow.results.cleanup import locked_folder, remove_unlocked
from llem_airflow.results.folder import (
    Folder,
    ResultReadError,
    ResultsWriteError,
    first_line,
    json_bytes,
    write_error,
)
from llem_airflow.text.wording import counted

_STAGED = "commit-"
_MOST_REPEATS = 1000
_HASHED = re.compile(r"[0-9a-f]{8,64}_(?P<kind>config|result|error)\.json")
_LEFT_OUT = {raw.BUNDLE}
_POWER = {raw.POWER: layout.POWER, raw.POWER_CHECK: layout.POWER_CHECK}


def commit(
    run: Folder,
    source: Path,
    provenance: Mapping[str, Any],
    place: Callable[[int], Folder],
    *,
    marker: str,
) -> str:
    """Store the files of an attempt at the first place that is free.

    Args:
        run: The run's folder.
        source: The collected raw files; may be absent.
        provenance: As for ``stage``.
        place: The folder for the first such attempt (0), and for the k-th one after it.
        marker: The file without which no reader takes the folder for there.

    Returns:
        URL of the stored folder; that of an earlier commit where the very same result is stored already.

    Raises:
        ResultsWriteError: It cannot be written.
    """
    try:
        with _staging(run) as staged:
            stage(source, staged, provenance)
            for repeat in range(_MOST_REPEATS):
                target = place(repeat)
                if _is_same(target, staged, marker) or _publish(staged, target, marker):
                    return target.url
    except OSError as error:
        raise write_error(error, run.url) from error
    raise ResultsWriteError(
        errno.EEXIST, f"{run.url}: one cycle was stored {_MOST_REPEATS} times; something repeats it"
    )


def require_result(folder: Path) -> CycleResult:
    """The result of an attempt that succeeded.

    Raises:
        ResultReadError: There is no valid result among its files.
    """
    candidates = sorted(folder.glob("*_result.json")) + sorted(folder.glob(layout.RESULT))
    if not candidates:
        raise ResultReadError(f"{folder}: no *_result.json: the attempt did not succeed")
    try:
        return CycleResult.loads(candidates[0].read_text(), str(candidates[0]))
    except (OSError, UnicodeDecodeError, ProtocolError) as error:
        raise ResultReadError(str(error)) from error


def remove_orphan_commits(run: Folder) -> None:
    """Remove the staging folders of killed commits; those of living ones stay."""
    if run.local is not None:
        staging = run.local / layout.STAGING_DIR
        remove_unlocked(staging, _STAGED)
        with suppress(OSError):  # not there, or a commit is under way
            staging.rmdir()


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
        if file.is_symlink() or not file.is_file() or file.name in _LEFT_OUT:
            continue
        if file.name in _POWER or file.name == raw.REQUESTS:
            _convert(file, target, notes)
        else:
            match = _HASHED.fullmatch(file.name)
            shutil.copyfile(file, target / (f"{match['kind']}.json" if match else file.name))
    record = {
        **provenance,
        "stored_by": f"llem-airflow {__version__}",
        "storage_notes": notes,
        "sha256": {file.name: _sha256(file) for file in sorted(target.iterdir())},
    }
    (target / layout.PROVENANCE).write_bytes(json_bytes(record))
    for file in target.iterdir():
        _flush(file)


def _convert(file: Path, target: Path, notes: list[str]) -> None:
    # Airflow imports this package before every task, and Arrow takes half a second that is owed only now.
    import pyarrow as pa  # noqa: PLC0415

    from llem_airflow.results.parquet import power_to_parquet, requests_to_parquet  # noqa: PLC0415

    stored = target / _POWER.get(file.name, layout.REQUESTS)
    try:
        if file.name in _POWER:
            power_to_parquet(file, stored)
        elif broken := requests_to_parquet(file, stored)[1]:
            notes.append(f"{file.name}: {counted(broken, 'line')} left out, as unreadable")
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        stored.unlink(missing_ok=True)
        shutil.copyfile(file, target / file.name)
        notes.append(f"{file.name}: kept as it is, because it could not be converted: {first_line(error)}")


@contextmanager
def _staging(run: Folder) -> Iterator[Path]:
    if run.local is None:
        with tempfile.TemporaryDirectory(prefix="llem-") as folder:
            yield Path(folder)
        return
    staging = run.local / layout.STAGING_DIR
    try:
        with locked_folder(staging, _STAGED, mode=0o777) as path:
            yield path
    finally:
        with suppress(OSError):  # another commit of this run is under way
            staging.rmdir()


def _is_same(target: Folder, staged: Path, marker: str) -> bool:
    """Whether the very same result is stored there already (a task that was run again after its commit)."""
    if marker != layout.RESULT or not target.exists(marker):
        return False
    return target.read(marker) == (staged / marker).read_bytes()


def _publish(staged: Path, target: Folder, marker: str) -> bool:
    """Move the staged folder to its place; False when the place is taken."""
    if target.local is not None:
        return _rename(staged, target.local)
    if target.exists(marker):
        return False
    try:
        for file in sorted(staged.iterdir(), key=lambda file: (file.name == marker, file.name)):
            target.fs.put_file(str(file), f"{target.path}/{file.name}")
    except OSError as error:
        raise write_error(error, target.url) from error
    return True


def _rename(staged: Path, target: Path) -> bool:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staged.rename(target)
    except OSError as error:
        if error.errno in {errno.ENOTEMPTY, errno.EEXIST}:
            return False
        raise write_error(error, str(target)) from error
    _flush(target.parent)  # the rename itself must survive a power cut
    return True


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
