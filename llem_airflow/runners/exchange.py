"""The exchange: what goes into a container before its start and comes out after its end.

By the archive API, so that a remote engine, a socket proxy or Airflow in a container need no shared path. A call of it
costs an engine 50 to 150 ms, as it mounts the container's file system for it. A worker that is root on the engine's own
host needs none: the volume is a folder there. Its name is that of one try of one task, so a folder of that name on this
machine is that volume. What lies in it was written by a container: nothing is followed, only plain files are read, and
every path is taken relative to an open folder.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import stat
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import docker

from llem_airflow.protocol.files import BUNDLE, EXCHANGE_DIR, OUT_DIR, config_name
from llem_airflow.protocol.redaction import Redactor
from llem_airflow.protocol.session import ATTEMPTS
from llem_airflow.protocol.spec import ExperimentSpec
from llem_airflow.runners.ending import CONTAINER_LOG

MAX_FILES = 200
MAX_BYTES = 4 * 1024**3
"""Most that is taken out of one container. A whole day of samples is below 1 GiB."""


class CollectError(RuntimeError):
    """What the container wrote could not be brought out."""


def hand_in(
    api: docker.APIClient,
    container: str,
    direct: Path | None,
    bundle: Path,
    spec: ExperimentSpec,
    user: str | None,
) -> None:
    """Put bundle and spec into the exchange volume, and the folder for what comes out.

    Args:
        api: The engine.
        container: Id of the created container.
        direct: The volume's folder, where it is to be seen.
        bundle: The bundle to run.
        spec: What the attempt is told.
        user: The container's user, who must be able to write into ``out/``.
    """
    files = {BUNDLE: bundle.read_bytes(), config_name(spec.experiment_hash): spec.dumps().encode()}
    if direct is not None:
        fill(direct, files, OUT_DIR, _owner(user))
        return
    api.put_archive(container, EXCHANGE_DIR, packed(files, [OUT_DIR], user))


def packed(files: Mapping[str, bytes], folders: Iterable[str], user: str | None) -> bytes:
    """An archive of files that everybody may read, and of folders before them.

    Args:
        files: Content by name.
        folders: Names of folders in which the user must be able to write.
        user: The container's user.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in folders:
            archive.addfile(_folder(name, _owner(user)))
        for name, content in files.items():
            _add_file(archive, name, content)
    return buffer.getvalue()


def shared_folder(name: str) -> bytes:
    """The archive of one empty folder in which every user may write, as in /tmp: for a cache that containers share."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        entry = tarfile.TarInfo(name)
        entry.type, entry.mode = tarfile.DIRTYPE, 0o1777
        archive.addfile(entry)
    return buffer.getvalue()


def collect(
    api: docker.APIClient,
    container: str,
    folder: Path,
    redactor: Redactor,
    direct: Path | None = None,
    exchange: str = EXCHANGE_DIR,
) -> tuple[str, ...]:
    """Bring the files of ``out/`` into ``folder``.

    Only plain files directly in ``out/`` are taken: a name cannot lead outside, and a link is not followed.

    Args:
        api: The engine.
        container: Id of the container, running or not.
        folder: Where the files go.
        redactor: Blanks the secrets in what comes out.
        direct: The volume's folder, where it is to be seen.
        exchange: The folder that holds ``out/``, as the container sees it.

    Returns:
        Names of the files.

    Raises:
        CollectError: There is more than the bounds allow, or the archive is broken.
        docker.errors.APIError: The engine refused.
    """
    if direct is not None:
        return tuple(_take(plain_files(direct, OUT_DIR), folder, redactor))
    chunks, _ = api.get_archive(container, f"{exchange}/{OUT_DIR}")
    return unpack(chunks, folder, redactor)


def unpack(chunks: Iterable[bytes], folder: Path, redactor: Redactor) -> tuple[str, ...]:
    """Bring the files of an archive of ``out/`` into ``folder``, under the same rules.

    Args:
        chunks: The archive.
        folder: Where the files go.
        redactor: Blanks the secrets in what comes out.

    Returns:
        Names of the files.

    Raises:
        CollectError: There is more than the bounds allow, or the archive is broken.
    """
    with _opened_archive(chunks, f"{OUT_DIR}/") as archive:
        return tuple(_take(_members(archive), folder, redactor))


@contextlib.contextmanager
def _opened_archive(chunks: Iterable[bytes], what: str) -> Iterator[tarfile.TarFile]:
    chunks = iter(chunks)
    try:
        with tarfile.open(fileobj=_Reader(chunks), mode="r|") as archive:
            yield archive
        for _ in chunks:  # what follows the archive's end, so that the connection can be used again
            pass
    except tarfile.TarError as error:
        raise CollectError(f"the archive of {what} is broken: {error}") from error


_ATTEMPT = "attempt"
_SPEC = config_name("[0-9a-f]{16}")
_OF_AN_ATTEMPT = re.compile(
    rf"[^/]+/(?:{ATTEMPTS}/(?P<key>[0-9a-f]{{16}})/)?(?:(?P<told>{_SPEC})|(?P<said>output)|{OUT_DIR}/(?P<wrote>[^/]+))"
)


def collect_attempts(api: docker.APIClient, container: str, folder: Path, redactor: Redactor) -> list[Path]:
    """Bring out every attempt of an exchange: the one of a container of its own, or those that lie in a session's.

    Args:
        api: The engine.
        container: Name or id of the container, running or not.
        folder: Where the attempts go.
        redactor: Blanks the secrets in what comes out.

    Returns:
        Of each attempt the folder with what it was told, what it printed in a session, and what it wrote.

    Raises:
        CollectError: There is more than the bounds allow, or the archive is broken.
        docker.errors.APIError: The engine refused.
    """
    found: dict[Path, int] = {}
    total_bytes = 0
    with _opened_archive(api.get_archive(container, EXCHANGE_DIR)[0], container) as archive:
        for member in archive:
            name, key = _part_of_attempt(member)
            source = archive.extractfile(member) if name else None
            if source is None:
                continue
            target = folder / key
            target.mkdir(exist_ok=True)
            total_bytes += member.size
            found[target] = found.get(target, 0) + 1
            if found[target] > MAX_FILES or total_bytes > MAX_BYTES:
                raise CollectError(
                    f"{container} holds more than {MAX_FILES} files of an attempt or {MAX_BYTES} bytes"
                )
            with source, (target / redactor.text(name)).open("wb") as file:
                redactor.copy(source, file)
    return list(found)


def _part_of_attempt(member: tarfile.TarInfo) -> tuple[str, str]:
    """Name of the file among those of its attempt, and the attempt's; empty for what is none of an attempt's."""
    part = _OF_AN_ATTEMPT.fullmatch(member.name)
    if part is None or not member.isreg():
        return "", ""
    name = part["told"] or (CONTAINER_LOG if part["said"] else part["wrote"])
    # What the attempt wrote takes the place of nothing that it was told.
    forged = part["wrote"] and (re.fullmatch(_SPEC, name) or name in (".", "..", CONTAINER_LOG))
    return ("" if forged else name), part["key"] or _ATTEMPT


def _members(archive: tarfile.TarFile) -> Iterator[tuple[str, int, IO[bytes]]]:
    for member in archive:
        parent, _, name = member.name.partition("/")
        if not member.isreg() or parent != OUT_DIR or not name or "/" in name or name in (".", ".."):
            continue
        source = archive.extractfile(member)
        if source is not None:
            with source:
                yield name, member.size, source


def _take(files: Iterator[tuple[str, int, IO[bytes]]], folder: Path, redactor: Redactor) -> Iterator[str]:
    total_bytes = 0
    for count, (name, size_bytes, source) in enumerate(files, start=1):
        total_bytes += size_bytes
        if count > MAX_FILES or total_bytes > MAX_BYTES:
            raise CollectError(f"{OUT_DIR}/ holds more than {MAX_FILES} files or {MAX_BYTES} bytes")
        clean_name = redactor.text(name)
        with (folder / clean_name).open("wb") as target:
            redactor.copy(source, target)
        yield clean_name


def _add_file(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    info.mode = 0o444
    archive.addfile(info, io.BytesIO(content))


def _owner(user: str | None) -> tuple[int, int] | None:
    """Uid and gid of the container's user; None for a name, as only the image knows the number."""
    uid, _, gid = (user or "0").partition(":")
    return (int(uid), int(gid or 0)) if uid.isdecimal() and (gid.isdecimal() or not gid) else None


def _folder(name: str, owner: tuple[int, int] | None) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = tarfile.DIRTYPE
    # The volume belongs to this attempt alone, so everybody may write where the user's number is not known.
    (info.uid, info.gid), info.mode = owner or (0, 0), 0o755 if owner else 0o777
    return info


class _Reader(io.RawIOBase):
    """The chunks of a response as something that tarfile can read."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._rest = b""

    def read(self, size: int = -1) -> bytes:
        while size < 0 or len(self._rest) < size:
            chunk = next(self._chunks, None)
            if chunk is None:
                break
            self._rest += chunk
        size = len(self._rest) if size < 0 else size
        out, self._rest = self._rest[:size], self._rest[size:]
        return out


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
