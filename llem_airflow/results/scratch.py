"""Scratch folders: locked while they are used, so that the orphans of killed processes are known and removed."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SCRATCH = "llem-work-"
"""How the names of the attempts' folders on their worker begin."""

_TRIES = 100


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A temporary folder on this worker for one attempt."""
    with locked_folder(Path(tempfile.gettempdir()), SCRATCH, mode=0o700) as folder:
        yield folder


def remove_scratch_orphans() -> None:
    """Remove the folders that killed attempts left on this worker."""
    remove_orphans(Path(tempfile.gettempdir()), SCRATCH)


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
        _remove_unlocked(parent, prefix)
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


def remove_orphans(parent: Path, prefix: str) -> None:
    """Remove the folders of that beginning whose process is dead."""
    if parent.is_dir():
        with _locked_parent(parent):
            _remove_unlocked(parent, prefix)


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


def _remove_unlocked(parent: Path, prefix: str) -> None:
    # A name with a point before it is one that an earlier version had not locked yet.
    for orphan in (*parent.glob(f"{prefix}*"), *parent.glob(f".{prefix}*")):
        with suppress(OSError):
            if orphan.is_dir() and is_locked(orphan) is False:
                shutil.rmtree(orphan, ignore_errors=True)
