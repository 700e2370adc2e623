"""Which runs of a study are aggregated, by one listing: on an object store, looking into each run is a request.

The aggregate leaves an object ``<study>/.runs/<run>~<when the run began>``, written anew whenever the run is aggregated
again. A folder needs none: looking into a run there costs nothing.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from llem_airflow.results.folder import Folder, json_bytes

_MARKS = ".runs"
_BEGAN = "~"
"""In no folder's name of a run."""


@dataclass(frozen=True, slots=True)
class Mark:
    """What an aggregated run left.

    Attributes:
        started_epoch_ns: When the run began; 0 for not known.
        version: Another one each time the run is aggregated.
    """

    started_epoch_ns: int
    version: str


def mark_aggregated(run: Folder, started_epoch_ns: int) -> None:
    """Say that the tables, summary and report of a run are written; where that is known, that they are other ones."""
    said = json_bytes({"aggregated_epoch_ns": time.time_ns()})
    _marks(run.above()).write(f"{run.name}{_BEGAN}{started_epoch_ns}", said)


def unmark(run: Folder) -> None:
    """Forget a run that is about to be removed."""
    folder = _marks(run.above())
    for name in folder.files():
        if name.rpartition(_BEGAN)[0] == run.name:
            folder.fs.rm_file(f"{folder.path}/{name}")


def marks_in(study: Folder) -> dict[str, Mark]:
    """The marks of a study's runs by the run's folder; none on a local disk, and of runs of an earlier release."""
    found = {}
    for name, version in (_marks(study).versions() if study.local is None else {}).items():
        run, _, began = name.rpartition(_BEGAN)
        if run and began.isdecimal():
            found[run] = Mark(int(began), version)
    return found


def _marks(study: Folder) -> Folder:
    return study.child(_MARKS)
