"""What is in use, and what may go: locked folders, what killed processes left, old runs.

Attempts and commits work in folders that are locked while they are used, so those of killed processes are known.
A commit removes the orphans of earlier ones of its run; ``remove_orphans`` is for runs that see no further commit.
An object store has none: what is not finished lies on the worker.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llem_airflow.results import layout
from llem_airflow.results.folder import ABANDONED_NS, Folder, write_error
from llem_airflow.text.wording import counted

if TYPE_CHECKING:
    from llem_airflow.results.store import ResultsRoot, StoredRun

SCRATCH = "llem-work-"
"""How the names of the attempts' folders on their worker begin."""

_TRIES = 100
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}")
_REMOVED = ".removed-"
_NS_PER_DAY = 86_400_000_000_000


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A temporary folder on this worker for one attempt."""
    with locked_folder(Path(tempfile.gettempdir()), SCRATCH, mode=0o700) as folder:
        yield folder


def remove_scratch_orphans() -> None:
    """Remove the folders that killed attempts left on this worker."""
    remove_unlocked(Path(tempfile.gettempdir()), SCRATCH)


@contextmanager
def locked_folder(parent: Path, prefix: str, *, mode: int) -> Iterator[Path]:
    """A folder that is locked while it is used.

    The kernel takes the lock from a killed process, so what such processes left is known; it is removed first.

    Args:
        parent: Where it is made; made too where it is not there.
        prefix: How its name begins.
        mode: Its permissions, before the umask.
    """
    # Whoever makes a folder or looks for dead ones holds the parent meanwhile: so none is seen that is made but not
    # locked yet, unless its maker was killed just there.
    with _locked_parent(parent):
        _remove_dead(parent, prefix)
        folder = parent / f"{prefix}{uuid.uuid4().hex}"
        folder.mkdir(mode)
        handle = os.open(folder, os.O_RDONLY)
        _lock(handle)
    try:
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(handle)


def remove_unlocked(parent: Path, prefix: str) -> None:
    """Remove the folders of that beginning whose process is dead."""
    if parent.is_dir():
        with _locked_parent(parent):
            _remove_dead(parent, prefix)


@contextmanager
def _locked_parent(parent: Path) -> Iterator[None]:
    handle = _open_locked(parent)
    try:
        yield
    finally:
        os.close(handle)


def _open_locked(parent: Path) -> int:
    for _ in range(_TRIES):
        parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # whoever ended just then has removed the parent
            handle = os.open(parent, os.O_RDONLY | os.O_DIRECTORY)
            _lock(handle)
            try:
                if os.path.samestat(os.fstat(handle), parent.stat()):
                    return handle
            except FileNotFoundError:
                pass
            os.close(handle)
    raise FileNotFoundError(errno.ENOENT, f"somebody keeps removing {parent}")


def _lock(handle: int) -> None:
    with suppress(OSError):  # a file system without locks: then nothing is swept either
        fcntl.flock(handle, fcntl.LOCK_EX)


def is_locked(path: Path) -> bool | None:
    """Whether a living process has locked it; None where the file system has no locks.

    Raises:
        OSError: It is gone, a link, or not ours.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(handle)
    return False


def _remove_dead(parent: Path, prefix: str) -> None:
    # A name with a point before it is one that an earlier version had not locked yet.
    for orphan in (*parent.glob(f"{prefix}*"), *parent.glob(f".{prefix}*")):
        with suppress(OSError):
            if orphan.is_dir() and is_locked(orphan) is False:
                shutil.rmtree(orphan, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Removal:
    """A run that may go.

    Attributes:
        run: The run.
        size_bytes: What it takes.
        reason: Why it may go.
    """

    run: StoredRun
    size_bytes: int
    reason: str


def removable(
    root: ResultsRoot,
    *,
    now_epoch_ns: int,
    keep_runs: int | None = None,
    keep_days: float | None = None,
    study: str | None = None,
) -> list[Removal]:
    """Runs that neither rule keeps, oldest first by study.

    A run that is not aggregated yet is always kept and takes nobody's place among the newest. Where it is not known
    when a run began, its age is not known either: both rules keep it. The rules are the newest ``keep_runs`` runs
    of each study, and the runs younger than ``keep_days``.

    Raises:
        ValueError: No rule is given, or one is negative or not a number.
    """
    if keep_runs is None and keep_days is None:
        raise ValueError("say what to keep: a number of runs (--keep-runs), of days (--keep-days), or both")
    for option, value in (("--keep-runs", keep_runs), ("--keep-days", keep_days)):
        if value is not None and not value >= 0:  # as NaN is not either
            raise ValueError(f"{option}: what to keep must be a number from 0, not {value}")
    found = []
    for name in [study] if study else root.studies():
        known = [run for run in root.aggregated(name) if run.started_epoch_ns() > 0]
        for run in known[: max(0, len(known) - (keep_runs or 0))]:
            age_days = (now_epoch_ns - run.started_epoch_ns()) / _NS_PER_DAY
            if keep_days is None or age_days >= keep_days:
                size_bytes = int(run.folder.fs.du(run.folder.path))
                found.append(Removal(run, size_bytes, f"{counted(round(age_days), 'day')} old"))
    return found


def remove(removals: Sequence[Removal]) -> None:
    """Remove the runs. Each leaves its place at once, so that no reader sees half a run.

    Raises:
        ResultsWriteError: One could not be removed.
    """
    for removal in removals:
        folder = removal.run.folder
        try:
            if folder.local is not None:
                trash = folder.local.with_name(f"{_REMOVED}{uuid.uuid4().hex}")
                folder.local.rename(trash)
                Folder(folder.fs, str(trash)).remove()
            else:
                removal.run.unmark()
                folder.remove()
        except OSError as error:
            raise write_error(error, folder.url) from error


def remove_orphans(study: Folder, now_epoch_ns: int) -> list[str]:
    """Remove what killed commits, writers and removals left in the folder of a study; what was removed.

    What changed within the hour stays, and so does what a living process has locked.
    """
    if study.local is None:
        return []
    found = [*study.local.glob(f"{_REMOVED}*"), *study.local.glob(f"*/{layout.STAGING_DIR}/*")]
    found += [path for path in study.local.rglob(".*") if path.is_file() and _TEMPORARY.fullmatch(path.name)]
    removed = []
    for path in found:
        with suppress(OSError):  # it is gone already, or not ours
            if _changed_ns(path) < now_epoch_ns - ABANDONED_NS and not is_locked(path):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
                removed.append(str(path))
    for staging in study.local.glob(f"*/{layout.STAGING_DIR}"):
        with suppress(OSError):  # a commit is under way
            staging.rmdir()
    return removed


def _changed_ns(path: Path) -> int:
    parts = [path, *path.rglob("*")]
    return max(part.stat(follow_symlinks=False).st_mtime_ns for part in parts)
