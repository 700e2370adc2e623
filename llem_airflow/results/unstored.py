"""Results that were measured and could not be stored: they stay on the worker's disk until a later try stores them.

So does a person, by `llem-airflow results recover`. A kept result is a folder with the collected files and, written
last, where they belong. Storing it twice stores it once.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llem_airflow.results.commit import require_result
from llem_airflow.results.folder import json_bytes
from llem_airflow.results.store import ResultsRoot, StoredRun

FOLDER = "llem-unstored"
_WHERE, _FILES = "belongs.json", "files"


@dataclass(frozen=True)
class Kept:
    """A result that waits to be stored.

    Attributes:
        folder: Where it lies.
        root: URL of the results root that it belongs to.
        study: Name of the study.
        run_id: Id of the run.
        experiment: ``<slug>-<hash8>``.
        cycle: Which repetition.
        provenance: What its provenance.json will say.
        reason: Why it could not be stored.
    """

    folder: Path
    root: str
    study: str
    run_id: str
    experiment: str
    cycle: int
    provenance: Mapping[str, Any]
    reason: str

    @property
    def name(self) -> str:
        """What it is, for people."""
        return f"{self.study}/{self.run_id} {self.experiment} cycle {self.cycle}"

    def store(self, root: ResultsRoot) -> str | None:
        """Store it under a root and remove it here; None where another process is doing so, or has done it.

        Raises:
            OSError: It cannot be stored; it stays. An object store may raise errors of its own.
        """
        try:
            handle = os.open(self.folder, os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not (self.folder / _WHERE).exists():
                return None
            run = root.run(self.study, self.run_id)
            url = run.commit_cycle(self.experiment, self.cycle, self.folder / _FILES, self.provenance)
            (self.folder / _WHERE).unlink()
            shutil.rmtree(self.folder, ignore_errors=True)
            return url
        except BlockingIOError:
            return None
        finally:
            os.close(handle)


def keep(
    run: StoredRun,
    experiment: str,
    cycle: int,
    files: Path,
    provenance: Mapping[str, Any],
    reason: str,
    home: Path,
) -> Path:
    """Keep a result that could not be stored; the same one again changes nothing.

    Args:
        run: Where it belongs.
        experiment: Its experiment.
        cycle: Which repetition.
        files: The collected files of the attempt.
        provenance: As for ``commit_cycle``.
        reason: Why it could not be stored.
        home: Folder of what this worker keeps. Where it takes nothing, the folder of temporary files does.

    Returns:
        The folder in which it is kept.

    Raises:
        OSError: No place takes it.
    """
    result = require_result(files).dumps()
    digest = hashlib.sha256(f"{run.url}\n{experiment}\n{cycle}\n{result}".encode()).hexdigest()[:16]
    said = {
        "root": run.root.url,
        "study": run.study,
        "run_id": run.run_id,
        "experiment": experiment,
        "cycle": cycle,
        "provenance": dict(provenance),
        "reason": reason,
    }
    name, first, otherwise = f"{experiment}-cycle-{cycle}-{digest}", *places(home)
    try:
        return _kept_in(first / name, files, json_bytes(said))
    except OSError:
        return _kept_in(otherwise / name, files, json_bytes(said))


def kept_results(home: Path) -> list[Kept]:
    """What waits on this worker, by name."""
    found = []
    for parent in places(home):
        for folder in sorted(parent.iterdir()) if parent.is_dir() else ():
            with suppress(OSError, ValueError, TypeError):  # a part of one, or nothing of ours
                found.append(Kept(folder, **json.loads((folder / _WHERE).read_text())))
    return found


def places(home: Path) -> tuple[Path, Path]:
    """The folders in which this worker keeps results: its own, and that of temporary files where that takes nothing."""
    return (home, Path(tempfile.gettempdir()) / FOLDER)


def _kept_in(target: Path, files: Path, said: bytes) -> Path:
    if (target / _WHERE).exists():
        return target
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(mode=0o700)
    try:
        shutil.copytree(files, target / _FILES, symlinks=True)
        part = target / f".{_WHERE}"
        with part.open("wb") as file:
            file.write(said)
            file.flush()
            os.fsync(file.fileno())
        part.replace(target / _WHERE)
    except OSError:
        shutil.rmtree(target, ignore_errors=True)
        raise
    return target
