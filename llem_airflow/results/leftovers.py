"""What killed commits, writers and removals left under a local root, and sweeping it away.

A commit sweeps what earlier ones of its run left; this is for runs that see no further commit. On an object store
nothing is left: what is written aside lies on the worker.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from llem_airflow.results import names
from llem_airflow.results.folder import ABANDONED_NS, Folder

_ASIDE = re.compile(r"\..+\.[0-9a-f]{32}")
_REMOVED = ".removed-"


def sweep_run(folder: Folder, now_epoch_ns: int) -> list[str]:
    """Remove what was left in a run; returns the names.

    Args:
        folder: The run's.
        now_epoch_ns: The present. What changed within the hour is left alone, and so is what somebody holds.
    """
    if folder.local is None:
        return []
    staging = folder.local / names.STAGING_DIR
    found = list(staging.iterdir()) if staging.is_dir() else []
    found += [path for path in folder.local.rglob(".*") if path.is_file() and _ASIDE.fullmatch(path.name)]
    swept = _swept(iter(found), now_epoch_ns)
    with suppress(OSError):  # not there, or a commit is under way
        staging.rmdir()
    return swept


def sweep_study(folder: Folder, now_epoch_ns: int) -> list[str]:
    """Remove what killed removals of runs left in a study; returns the names.

    Args:
        folder: The study's.
        now_epoch_ns: As for ``sweep_run``.
    """
    if folder.local is None or not folder.local.is_dir():
        return []
    return _swept(folder.local.glob(f"{_REMOVED}*"), now_epoch_ns)


def _swept(paths: Iterator[Path], now_epoch_ns: int) -> list[str]:
    swept = []
    for path in paths:
        with suppress(OSError):  # it is gone already, or not ours
            if _changed_ns(path) < now_epoch_ns - ABANDONED_NS and not _held(path):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
                swept.append(str(path))
    return swept


def _changed_ns(path: Path) -> int:
    parts = [path, *path.rglob("*")]
    return max(part.stat(follow_symlinks=False).st_mtime_ns for part in parts)


def _held(path: Path) -> bool:
    """Whether a living process has locked it, as ``held_folder`` does."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False  # a file system without locks: the age alone decides
    finally:
        os.close(handle)
    return False
