"""Folder: one folder of a results root, on any file system that fsspec knows; files are written whole or not at all.

What an error of a disk or store says, and what to do about it, is here too.
"""

from __future__ import annotations

import errno
import glob
import json
import os
import re
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, replace
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import IO, Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from llem_airflow.protocol.failures import causes, how_to_rerun

ABANDONED_NS = 3_600_000_000_000
"""A living writer has written within the hour."""
_BUCKETS = ("s3", "s3a", "s3n", "gs", "gcs")
"""Schemes of which a name before the bucket is a connection of Airflow's: ``s3://conn_id@bucket/path``."""
_CONNECTIONS = "llem_airflow.operators.object_store"
"""By name: what reads results elsewhere needs no Airflow."""
_NO_CREDENTIALS = re.compile(
    "NoCredentialsError|PartialCredentialsError|CredentialRetrievalError|Unable to locate credentials"
)
_AWAY = re.compile("EndpointConnectionError|ConnectTimeoutError|ReadTimeoutError|ConnectionClosedError")
_NO_BUCKET = re.compile("NoSuchBucket|bucket does not exist")
_REFUSED = re.compile(
    "AccessDenied|InvalidAccessKeyId|SignatureDoesNotMatch|Forbidden|PermissionError|\\(403\\)"
)
_THROTTLED = re.compile("SlowDown|Throttl|reduce your request rate|TooManyRequests|\\((?:503|429)\\)")
_CLIENTS = frozenset({"aiobotocore", "aiohttp", "botocore", "fsspec", "gcsfs", "s3fs"})


class ResultReadError(ValueError):
    """A stored file is missing or damaged; the message names it."""


class StoreConnectionError(ValueError):
    """A connection of Airflow's opens no store; the message says what to do."""


class ResultsWriteError(OSError):
    """Something could not be written; nothing that was committed before is touched."""


@dataclass(frozen=True)
class Folder:
    """A folder and the few things that the store does with one.

    Attributes:
        fs: The fsspec file system.
        path: Path on that file system, without a trailing slash.
        conn_id: Airflow's connection that the file system was opened with; empty for none.
    """

    fs: Any
    path: str
    conn_id: str = ""

    @classmethod
    def at(cls, url: str | Path, **options: Any) -> Folder:
        """The folder at a URL or local path.

        Args:
            url: ``file:///…``, ``s3://bucket/…`` or a path; a relative path is taken from the current folder.
                ``s3://conn_id@bucket/…`` takes address and credentials from a connection of Airflow's.
            options: What fsspec needs for that file system, such as ``endpoint_url``.

        Raises:
            StoreConnectionError: There is no such connection, or Airflow cannot open a store with it.
        """
        scheme, conn_id, bucket = by_connection(str(url))
        if conn_id:
            # A command's own output has nothing of what Airflow says at its import.
            with redirect_stdout(sys.stderr):
                store = import_module(_CONNECTIONS)
            fs = store.file_system(scheme, conn_id, options)
            return cls(fs, bucket.rstrip("/"), conn_id)
        fs, path = fsspec.core.url_to_fs(str(url), **options)
        return cls(fs, path.rstrip("/"))

    @property
    def local(self) -> Path | None:
        """The folder as a local path, or None on an object store."""
        return Path(self.path) if isinstance(self.fs, LocalFileSystem) else None

    @property
    def url(self) -> str:
        """The folder as text: a plain path when local, else a URL that opens it again."""
        if self.local:
            return self.path
        url = str(self.fs.unstrip_protocol(self.path))
        return url.replace("://", f"://{self.conn_id}@", 1) if self.conn_id else url

    @property
    def name(self) -> str:
        """Last component."""
        return self.path.rsplit("/", 1)[-1]

    def child(self, *names: str) -> Folder:
        """The folder below; every name must be one plain component."""
        for name in names:
            if not name or name in {".", ".."} or "/" in name or "\\" in name or "\0" in name:
                raise ValueError(f"{self.url}: {name!r} is not a name of a folder")
        return replace(self, path="/".join((self.path, *names)))

    def above(self, levels: int = 1) -> Folder:
        """The folder so many levels up."""
        return replace(self, path=self.path.rsplit("/", levels)[0])

    def exists(self, name: str) -> bool:
        """Whether the file or folder ``name`` is here."""
        self.fs.invalidate_cache()
        return bool(self.fs.exists(f"{self.path}/{name}"))

    def folders(self) -> list[str]:
        """Names of the folders in it that are not hidden, sorted."""
        return self._entries("directory")

    def files(self) -> list[str]:
        """Names of the files in it that are not hidden, sorted."""
        return self._entries("file")

    def versions(self) -> dict[str, str]:
        """Of each file in it, by its name, what changes when it is written again."""
        return {name: version_in(row) for name, row in self._rows("file")}

    def read(self, name: str) -> bytes:
        """Content of a file."""
        # Where s3fs can read several parts at once, it asks for the size first: twice the requests for small ones.
        takes = () if self.local else signature(self.fs.cat_file).parameters
        whole = {"max_concurrency": 1} if "max_concurrency" in takes else {}
        data: bytes = self.fs.cat_file(f"{self.path}/{name}", **whole)
        return data

    def read_evidence(self, name: str) -> bytes:
        """Content of a file that ought to be there.

        Raises:
            ResultReadError: It is missing, or cannot be read.
        """
        try:
            return self.read(name)
        except OSError as error:
            raise ResultReadError(f"{self.url}/{name}: cannot be read: {first_line(error)}") from error

    def read_object(self, name: str, *, optional: bool = False) -> dict[str, Any]:
        """The object in a JSON file.

        Args:
            name: The file.
            optional: Whether it may be absent, which is an empty object.

        Raises:
            ResultReadError: It is missing, or holds no object.
        """
        try:
            data = parsed_json(self.read(name))
        except (FileNotFoundError, NotADirectoryError) as error:
            if optional:
                return {}
            raise ResultReadError(f"{self.url}/{name}: is missing") from error
        except (OSError, ValueError, RecursionError) as error:
            raise ResultReadError(f"{self.url}/{name}: not JSON: {first_line(error)}") from error
        if not isinstance(data, dict):
            raise ResultReadError(f"{self.url}/{name}: expected an object")
        return data

    def open(self, name: str) -> IO[bytes]:
        """A file to read from."""
        file: IO[bytes] = self.fs.open(f"{self.path}/{name}", "rb")
        return file

    def size(self, name: str) -> int:
        """Bytes of a file."""
        return int(self.fs.size(f"{self.path}/{name}"))

    def write(self, name: str, data: bytes) -> None:
        """Write a file whole: readers see the old content or the new, never a part."""
        with self.atomic_write(name) as file:
            file.write(data)

    def create(self, name: str, data: bytes) -> bool:
        """Write a file that is not there yet; of several who try at the same time exactly one succeeds.

        Raises:
            ResultsWriteError: The place cannot be written.
        """
        try:
            if self.local is None:
                self.fs.pipe_file(f"{self.path}/{name}", data, mode="create")
            else:
                self.local.mkdir(parents=True, exist_ok=True)
                with (self.local / name).open("xb") as file:
                    file.write(data)
        except FileExistsError:
            return False
        except OSError as error:
            if "(PreconditionFailed)" in str(
                error.__cause__
            ):  # servers of S3 need not say which condition it was
                return False
            raise write_error(error, f"{self.url}/{name}") from error
        return True

    @contextmanager
    def atomic_write(self, name: str, *, durable: bool = True) -> Iterator[IO[bytes]]:
        """A file that appears under its name when the block ends well, and not at all otherwise.

        Args:
            name: The file.
            durable: Whether it must outlive a crash of the machine; waiting for the disk disturbs whoever measures.

        Raises:
            ResultsWriteError: The disk is full, or the place cannot be written.
        """
        try:
            if self.local is None:
                with tempfile.NamedTemporaryFile() as file:
                    yield file
                    file.flush()
                    self.fs.put_file(file.name, f"{self.path}/{name}")
            else:
                with _atomic_local(self.local / name, durable=durable) as file:
                    yield file
        except OSError as error:
            raise write_error(error, f"{self.url}/{name}") from error

    def remove(self) -> None:
        """Remove the folder and everything in it."""
        if self.local is not None:
            shutil.rmtree(self.local, ignore_errors=True)
        elif self.fs.exists(self.path):
            self.fs.rm(self.path, recursive=True)

    def _entries(self, kind: str) -> list[str]:
        return sorted(name for name, _ in self._rows(kind) if not name.startswith("."))

    def _rows(self, kind: str) -> list[tuple[str, dict[str, Any]]]:
        self.fs.invalidate_cache()
        try:
            rows: list[dict[str, Any]] = self.fs.ls(self.path, detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [(row["name"].rstrip("/").rsplit("/", 1)[-1], row) for row in rows if row["type"] == kind]


def version_in(info: Mapping[str, Any]) -> str:
    """What changes when a file is written again: its size and its time or tag."""
    return repr([info.get(key) for key in ("size", "mtime", "ino", "ETag", "LastModified")])


def by_connection(url: str) -> tuple[str, str, str]:
    """Scheme, connection of Airflow's and rest of a URL that names one; the connection is empty for another."""
    scheme, _, rest = url.partition("://")
    conn_id, at, bucket = rest.partition("@")
    named = at and scheme in _BUCKETS and "/" not in conn_id
    return (scheme, conn_id, bucket) if named else (scheme, "", rest)


def parsed_json(text: bytes) -> Any:
    """The value of a JSON text; half a surrogate pair, which no encoding has, becomes the sign for what cannot be read.

    Raises:
        ValueError: It is no JSON.
        RecursionError: It is nested too deep.
    """
    value = json.loads(text)
    return _encodable(value) if b"\\ud" in text.lower() else value


def _encodable(value: Any) -> Any:
    if isinstance(value, dict):
        return {_encodable(key): _encodable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_encodable(item) for item in value]
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return value


def json_bytes(value: Any) -> bytes:
    """JSON as the store writes it: sorted, indented, no NaN, ending in a newline."""
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def first_line(error: Exception) -> str:
    """What an error says, as far as a message of one line has room for it."""
    return str(error).split("\n", 1)[0] or type(error).__name__


def write_error(error: OSError, where: str) -> ResultsWriteError:
    """The same error with what to do about it."""
    if isinstance(error, ResultsWriteError):
        return error
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        advice = (
            "the disk is full: free some (`llem-airflow results prune` lists what can go), "
            f"{how_to_rerun('the task')}"
        )
    elif error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        advice = "no permission to write there: check the owner of the results root"
    else:
        advice = "nothing that was committed before is affected"
    return ResultsWriteError(error.errno, f"cannot write {where}: {error.strerror or error}; {advice}")


def why_store_fails(error: Exception, url: str = "") -> str:
    """What a store's error says and what to do, in one line.

    Args:
        error: What was raised.
        url: Of the results: whose connection, where it names one, is to be corrected.
    """
    said = getattr(error, "strerror", None) or first_line(error)
    if isinstance(error, StoreConnectionError) or getattr(error, "errno", None) in {
        errno.ENOSPC,
        errno.EDQUOT,
    }:
        return said  # it has the advice
    if url and "://" not in url:
        return said
    text = " ".join(f"{type(one).__name__}: {one}" for one in causes(error))
    conn_id = by_connection(url)[1]
    correct = f"correct the connection {conn_id!r} (Admin > Connections)" if conn_id else ""
    if _NO_CREDENTIALS.search(text):
        otherwise = (
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile, for the worker's process, or name a "
            "connection of Airflow's in the results root (s3://conn_id@bucket/…)"
        )
        return f"{said}: the object store wants credentials, and this worker has none; {correct or otherwise}"
    if _AWAY.search(text):
        where = f"endpoint_url of the connection {conn_id!r}" if conn_id else "AWS_ENDPOINT_URL"
        return f"{said}: the object store does not answer; check its address ({where}) and the network"
    if _NO_BUCKET.search(text):
        return f"{said}: there is no such bucket; make it, or correct [llem] results_root"
    if _THROTTLED.search(text):
        return f"{said}: the object store throttles; a later try stores it"
    if _REFUSED.search(text):
        needs = "it needs read, write and list in the bucket"
        return (
            f"{said}: the store refuses this worker's credentials; {f'{correct}: ' if correct else ''}{needs}"
        )
    return said


def is_of_store(error: BaseException) -> bool:
    """Whether a store, or its client, raised it."""
    return isinstance(error, (OSError, StoreConnectionError)) or any(
        cls.__module__.partition(".")[0] in _CLIENTS for cls in type(error).__mro__
    )


@contextmanager
def _atomic_local(target: Path, *, durable: bool) -> Iterator[IO[bytes]]:
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(target)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _remove_abandoned(target: Path) -> None:
    """Remove the temporary files of killed writers of the same file; a living one has written within the hour."""
    oldest_ns = time.time_ns() - ABANDONED_NS
    for temporary in target.parent.glob(f".{glob.escape(target.name)}.*"):
        with suppress(FileNotFoundError):  # another writer removed it
            if temporary.stat().st_mtime_ns < oldest_ns:
                temporary.unlink()
