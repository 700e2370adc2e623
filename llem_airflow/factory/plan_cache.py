"""Expanded studies on disk: a worker reads its one experiment instead of expanding thousands for every task.

An entry is a SQLite file named by the hash of all that decides its content: the study file's text, its place, this
package's code. Its base file is compared with the hash that the entry holds. It is written aside and renamed, so that
any number of processes may read and write; what cannot be read is made anew.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from functools import cache
from hashlib import sha256
from itertools import starmap
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

from llem_airflow import __version__, study
from llem_airflow.study.file.document import read_document
from llem_airflow.study.file.yaml import Source, read_text
from llem_airflow.study.load import load_study
from llem_airflow.study.plan.model import (
    ByName,
    Duplicates,
    Experiment,
    GpuRequest,
    Plan,
    PlannedCycle,
    Skipped,
    Study,
)
from llem_airflow.study.problems import StudyWarning
from llem_airflow.text.wording import counted

log = logging.getLogger(__name__)

FORMAT = 2
_KEPT = 64
"""Entries that stay; the oldest go. One study that is edited makes one entry for each text."""
_SCALARS = ("declared", "valid", "cycles", "wall_clock_s", "gpus")
_TABLES = ("planned_cycles", "skipped", "duplicates", "experiments")
_UNREADABLE = (sqlite3.Error, OSError, ValueError, TypeError, KeyError)

T = TypeVar("T")


def cached_study(path: str | Path, folder: Path) -> Study:
    """As ``load_study(path)``; experiments of a study that was expanded before are read when they are looked at.

    Args:
        path: The study file.
        folder: Where entries lie; made when it is not there.

    Raises:
        StudyFileError: As ``load_study``.
    """
    file = Path(path)
    text = read_text(file, str(path))
    entry = folder / f"{_key(file, text)}.sqlite"
    try:
        return _stored(entry, file, text)
    except FileNotFoundError:
        pass
    except _UNREADABLE as error:
        log.info("the expanded study %s cannot be used and is made anew: %s", entry, error)
    begun_ns = time.time_ns()
    study = load_study(path)
    try:
        _store(entry, study, begun_ns)
    except (sqlite3.Error, OSError) as error:
        log.warning(
            "expanded studies cannot be kept in %s ([llem] plan_cache), so every task expands its own: %s",
            folder,
            error,
        )
    return study


def _key(file: Path, text: str) -> str:
    parts = (str(FORMAT), __version__, _code(), str(file.absolute()), text)
    return sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:32]


@cache
def _code() -> str:
    """Changes with the code that expands, whose version stays the same while somebody works on it."""
    files = sorted(Path(study.__file__).parent.glob("**/*.[pj][ys]*"))
    return " ".join(f"{file.name}:{(found := file.stat()).st_size}:{found.st_mtime_ns}" for file in files)


def _stored(entry: Path, file: Path, text: str) -> Study:
    rows = _Entry(entry, file)
    head = json.loads(rows.body("head", 0))
    if (base := head["base"]) is not None and _digest(Path(base["path"])) != base["sha256"]:
        raise ValueError(f"the base file {base['path']} has changed")
    sizes = head["sizes"]
    plan = Plan(
        planned_cycles=_Rows(
            rows, "planned_cycles", sizes["planned_cycles"], lambda row: PlannedCycle(**row)
        ),
        skipped=_Rows(rows, "skipped", sizes["skipped"], lambda row: Skipped(**row)),
        duplicates=_Rows(rows, "duplicates", sizes["duplicates"], _duplicates),
        experiments=_Rows(rows, "experiments", sizes["experiments"], _experiment),
        warnings=tuple(starmap(StudyWarning, head["warnings"])),
        **head["plan"],
    )
    keys = read_document(Source(str(file), text), file.parent, set()).keys
    return Study(head["name"], file, file.parent, text, plan, keys)


def _experiment(row: dict[str, Any]) -> Experiment:
    return Experiment(**row | {"gpus": GpuRequest(**row["gpus"] | {"ids": tuple(row["gpus"]["ids"])})})


def _duplicates(row: dict[str, Any]) -> Duplicates:
    return Duplicates(row["experiment_id"], tuple(row["members"]), tuple(row["ignored"]))


def _store(entry: Path, study: Study, begun_ns: int) -> None:
    base = _base_of(study)
    if base is not None and base.stat().st_mtime_ns >= begun_ns:
        return  # it changed while it was read: which text was it?
    tables: dict[str, Sequence[Any]] = {name: getattr(study.plan, name) for name in _TABLES}
    head = {
        "name": study.name,
        "warnings": [(each.code, each.message, each.line) for each in study.warnings],
        "plan": {name: getattr(study.plan, name) for name in _SCALARS},
        "sizes": {kind: len(rows) for kind, rows in tables.items()},
        "base": None if base is None else {"path": str(base), "sha256": _digest(base)},
    }
    entry.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    aside = entry.with_name(f".{entry.stem}.{uuid.uuid4().hex}")
    try:
        with closing(sqlite3.connect(aside)) as database, database:
            database.execute("pragma journal_mode = off")
            database.execute("create table row (kind text, position integer, name text, body text)")
            database.execute("insert into row values ('head', 0, '', ?)", (_text(head),))
            for kind, rows in tables.items():
                database.executemany(
                    "insert into row values (?, ?, ?, ?)",
                    ((kind, index, getattr(row, "name", None), _text(row)) for index, row in enumerate(rows)),
                )
            database.execute("create unique index place on row (kind, position)")
            database.execute("create index name on row (kind, name)")
        aside.replace(entry)
    finally:
        aside.unlink(missing_ok=True)
    for old in sorted(entry.parent.glob("*.sqlite"), key=_age)[:-_KEPT]:
        old.unlink(missing_ok=True)


def _base_of(study: Study) -> Path | None:
    name = study.keys.base
    if name is None or study.path is None:
        return None
    return Path(study.path.parent, os.path.expanduser(name))  # noqa: PTH111  # as when it was read


def _digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # another process was faster
        return 0.0


def _text(value: Any) -> str:
    fields = value if isinstance(value, dict) else {name: getattr(value, name) for name in value.__slots__}
    return json.dumps(fields, default=_plain)


def _plain(value: Any) -> dict[str, Any]:
    return asdict(value) if isinstance(value, GpuRequest) else dict(value)


@dataclass(frozen=True, slots=True)
class _Entry:
    """One file. It is opened for each look, so that it survives a fork and may be replaced at any time."""

    entry: Path
    study: Path

    def body(self, kind: str, position: int) -> str:
        return str(self._rows("kind = ? and position = ?", kind, position)[0][0])

    def named(self, kind: str, name: str) -> list[str]:
        return [body for (body,) in self._rows("kind = ? and name = ?", kind, name)]

    def all(self, kind: str) -> list[str]:
        return [body for (body,) in self._rows("kind = ? order by position", kind)]

    def _rows(self, where: str, *values: Any) -> list[Any]:
        if not self.entry.exists():
            raise FileNotFoundError(self.entry)
        with closing(sqlite3.connect(f"{self.entry.absolute().as_uri()}?mode=ro", uri=True)) as database:
            return database.execute(f"select body from row where {where}", values).fetchall()  # noqa: S608 - ours


class _Rows(ByName[T], Generic[T]):
    """Rows of an entry, read when they are looked at; an entry that went away meanwhile is replaced by the study."""

    def __init__(self, entry: _Entry, kind: str, size: int, make: Callable[[dict[str, Any]], T]) -> None:
        self._entry = entry
        self._kind = kind
        self._size = size
        self._make = make
        self._all: tuple[T, ...] | None = None

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[T]:
        return iter(self._every())

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        return self._every()[index]

    def named(self, name: str) -> T | None:
        """The first row of that name, without reading the others."""
        if self._all is None:
            with suppress(*_UNREADABLE):
                if found := self._entry.named(self._kind, name):
                    return self._make(json.loads(found[0]))
        return next((row for row in self._every() if getattr(row, "name", None) == name), None)

    def _every(self) -> tuple[T, ...]:
        if self._all is None:
            try:
                rows = json.loads(f"[{','.join(self._entry.all(self._kind))}]")
                if len(rows) != self._size:
                    raise ValueError(f"{counted(len(rows), 'row')} instead of {self._size}")
                self._all = tuple(map(self._make, rows))
            except _UNREADABLE as error:
                log.info("the expanded study %s cannot be used: %s", self._entry.entry, error)
                self._all = tuple(getattr(load_study(self._entry.study).plan, self._kind))
        return self._all
