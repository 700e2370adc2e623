"""Which run a person means: a path, ``study/run``, ``study``, or ``latest``."""

from __future__ import annotations

from pathlib import Path

from llem_airflow.results.folder import Folder
from llem_airflow.results.store import ResultsRoot, StoredRun, stored_run


class NoSuchRunError(LookupError):
    """No run is meant by that; the message says what there is."""


def locate_run(text: str, root: ResultsRoot) -> StoredRun:
    """The run that ``text`` names.

    Args:
        text: Path or URL of a run's folder; ``study/run`` under the root, with the id or the folder's name;
            a study, for its newest run; or ``latest``.
        root: Where to look.

    Raises:
        NoSuchRunError: There is none.
    """
    if text == "latest":
        return _newest(root, None)
    if "://" in text or Path(text).is_dir():
        run = stored_run(Folder.at(text if "://" in text else Path(text).resolve()))
        if run.is_run():
            return run
    study, _, rest = text.partition("/")
    if not rest:
        return _newest(root, study)
    for run in root.runs(study) if study else ():
        if rest in {run.run_id, run.folder.name}:
            return run
    raise NoSuchRunError(f"{text!r} names no run under {root.url}; there are: {_what_is_there(root)}")


def _newest(root: ResultsRoot, study: str | None) -> StoredRun:
    runs = root.runs(study)
    if not runs:
        where = f"study {study!r} under {root.url}" if study else root.url
        raise NoSuchRunError(f"no run of {where}; there are: {_what_is_there(root)}")
    return runs[-1]


def _what_is_there(root: ResultsRoot) -> str:
    found = [f"{run.folder.path.rsplit('/', 2)[-2]}/{run.folder.name}" for run in root.runs()]
    return ", ".join(found[-8:]) or "none (set --results-root or LLEM_RESULTS_ROOT)"
