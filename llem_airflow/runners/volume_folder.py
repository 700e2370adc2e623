"""The exchange's shorter way: the volume's folder itself, where this process sees it.

A call of the archive API costs an engine 50 to 150 ms, as it mounts the container's file system for it. A worker that
is root on the engine's own host needs none: the volume is a folder there. Its name is that of one try of one task, so
a folder of that name on this machine is that volume. What lies in it was written by a container: nothing is followed,
only plain files are read, and every path is taken relative to an open folder.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
_READ_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def volume_folder(source: object, name: str | None) -> Path | None:
    """The folder of a volume, or None where it is not to be seen or its owners are renumbered (rootless, userns).

    Args:
        source: Where the engine says that it lies.
        name: The volume's name.
    """
    if not isinstance(source, str) or not name or name not in Path(source).parts or os.geteuid() != 0:
        return None
    try:
        found = Path(source).lstat()
    except OSError:
        return None
    return Path(source) if stat.S_ISDIR(found.st_mode) and found.st_uid == 0 else None


def mounted_at(inspection: Mapping[str, Any], target: str) -> Path | None:
    """The folder of the volume that a container has at ``target``."""
    for mount in inspection.get("Mounts") or ():
        if mount.get("Destination") == target and mount.get("Type") == "volume":
            return volume_folder(mount.get("Source"), mount.get("Name"))
    return None


def fill(folder: Path, files: Mapping[str, bytes], out: str, owner: tuple[int, int] | None) -> None:
    """Write the files and make the folder for what comes out.

    Args:
        folder: The volume's folder.
        files: Content by name.
        out: Name of the folder for what comes out.
        owner: Its uid and gid; None where only the image knows them, then everybody may write.
    """
    with _opened(folder) as root:
        for name, content in files.items():
            handle = os.open(name, _NEW_FILE, 0o444, dir_fd=root)
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                os.fchmod(file.fileno(), 0o444)
        with contextlib.suppress(FileExistsError):
            os.mkdir(out, dir_fd=root)
        with _opened(out, root) as inner:
            os.fchown(inner, *(owner or (0, 0)))
            os.fchmod(inner, 0o755 if owner else 0o777)


def plain_files(folder: Path, out: str) -> Iterator[tuple[str, int, IO[bytes]]]:
    """Name, size in bytes and content of each plain file directly in ``out``."""
    with _opened(folder) as root, _opened(out, root) as inner:
        for name in sorted(os.listdir(inner)):  # noqa: PTH208  # an open folder has no path
            try:
                handle = os.open(name, _READ_FILE, dir_fd=inner)
            except OSError:  # a link, or something that cannot be opened
                continue
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode):
                os.close(handle)
                continue
            with os.fdopen(handle, "rb") as file:
                yield name, found.st_size, file


@contextlib.contextmanager
def _opened(path: Path | str, at: int | None = None) -> Iterator[int]:
    handle = os.open(path, _FOLDER, dir_fd=at)
    try:
        yield handle
    finally:
        os.close(handle)
