"""Which run lies where and belongs to which DAG, without opening the results of any other run."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any

from llem_airflow.results import ResultsRoot, StoredRun, layout
from llem_airflow.results.folder import Folder
from llem_airflow.results.store import marks_in
from llem_airflow.web.kept import file_version

LARGEST_RUNS = 50_000
"""So many runs are remembered, about 0.5 KB each; above, the study that was looked at longest ago is forgotten."""
MISSED_S = 5.0
"""So long a run that was nowhere is not looked for again: its page asks every few seconds before it begins."""
_LARGEST_GUESSES = 1_000


@dataclass(frozen=True, slots=True)
class Entry:
    """A run as its run.json tells it, which is written once.

    Attributes:
        run: The run.
        dag_id: DAG that wrote it; empty for none.
        started_epoch_ns: When it began; 0 for not known.
        release: Model release that it measured; empty for none.
        version: Of what its aggregate wrote, by the mark that this left on an object store; empty where there is none.
    """

    run: StoredRun
    dag_id: str
    started_epoch_ns: int
    release: str
    version: str = ""

    def has(self, name: str) -> bool:
        """Whether a table of the aggregate is there."""
        return bool(self.version) or self.run.folder.exists(name)

    def version_of(self, name: str) -> str:
        """What changes when a table of the aggregate is written again; empty for none."""
        return self.version or file_version(self.run.folder, name)


class RunIndex:
    """The runs under a root by study and by DAG run. What it remembers is checked against the store before use.

    Args:
        root: Where they lie.
    """

    def __init__(self, root: ResultsRoot) -> None:
        self.root = root
        self._studies: OrderedDict[str, tuple[Any, tuple[Entry, ...]]] = OrderedDict()
        self._guesses: OrderedDict[str, OrderedDict[str, None]] = OrderedDict()
        self._missed: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._lock = threading.Lock()

    def studies(self) -> list[str]:
        """Names of the studies' folders."""
        return self.root.studies()

    def runs(self, study: str) -> tuple[Entry, ...]:
        """The runs in a study's folder, oldest first; one whose run.json is missing or damaged belongs to nobody."""
        folder = self.root.folder.child(study)
        changed = _changed(folder)
        with self._lock:
            known = self._studies.get(study)
        if known is not None and changed is not None and known[0] == changed:
            return known[1]
        before = {entry.run.folder.path: entry for entry in known[1]} if known and changed is None else {}
        names, marks = folder.folders(), marks_in(folder)
        found = [
            before.get(f"{folder.path}/{name}") or _entry(StoredRun.at(folder.child(name), marks.get(name)))
            for name in names
        ]
        entries = tuple(
            sorted(filter(None, found), key=lambda one: (one.started_epoch_ns, one.run.folder.path))
        )
        # A run that is only being opened has no run.json yet; writing it changes the run's folder, not the study's.
        self._remember(study, changed if all(found) else None, entries)
        return tuple(
            replace(one, version=marks[name].version) if (name := one.run.folder.name) in marks else one
            for one in entries
        )

    def find(self, dag_id: str, run_id: str) -> StoredRun | None:
        """The run that a DAG run wrote, by what run.json says: first where that DAG's runs were found before."""
        key = dag_id, run_id
        with self._lock:
            if time.monotonic() - self._missed.get(key, -MISSED_S) < MISSED_S:
                return None
            guesses = [*self._guesses.get(dag_id, ())]
        guesses = list(dict.fromkeys([*guesses, layout.folder_name(dag_id)]))
        for study in guesses:
            if run := self._at(study, dag_id, run_id):
                return run
        for study in self.studies():
            if study not in guesses and (run := self._at(study, dag_id, run_id)):
                return run
        with self._lock:
            self._missed[key] = time.monotonic()
            _shorten(self._missed)
        return None

    def _at(self, study: str, dag_id: str, run_id: str) -> StoredRun | None:
        entry = _entry(StoredRun.at(self.root.folder.child(study, layout.folder_name(run_id))), timed=False)
        if entry is None or (entry.dag_id, entry.run.run_id) != (dag_id, run_id):
            return None
        with self._lock:
            known = self._guesses.setdefault(dag_id, OrderedDict())
            known[study] = None
            known.move_to_end(study, last=False)
            _shorten(known, 20)
            _shorten(self._guesses)
        return entry.run

    def _remember(self, study: str, changed: Any, entries: tuple[Entry, ...]) -> None:
        with self._lock:
            self._studies[study] = changed, entries
            self._studies.move_to_end(study)
            while (
                len(self._studies) > 1 and sum(len(one) for _, one in self._studies.values()) > LARGEST_RUNS
            ):
                self._studies.popitem(last=False)


def _entry(run: StoredRun, *, timed: bool = True) -> Entry | None:
    """A run, or None when no run.json tells of one.

    Args:
        run: As it was found.
        timed: Whether to look for its begin in its cycles where run.json does not tell it.
    """
    if not run.told:
        return None
    started = run.started_epoch_ns() if timed else 0
    return Entry(run, str(run.told.get("dag_id") or ""), started, str(run.told.get("version") or ""))


def _changed(folder: Folder) -> Any:
    """What changes when a run is added to the folder or leaves it; None on file systems that do not tell."""
    try:
        return folder.local.stat().st_mtime_ns if folder.local else None
    except OSError:
        return None


def _shorten(kept: OrderedDict[Any, Any], length: int = _LARGEST_GUESSES) -> None:
    while len(kept) > length:
        kept.popitem(last=False)
