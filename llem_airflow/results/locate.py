"""Which run a person means: a path, ``study/run``, ``study``, or ``latest``."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from llem_airflow.results import layout
from llem_airflow.results.folder import Folder
from llem_airflow.results.store import ResultsRoot, StoredRun


class NoSuchRunError(LookupError):
    """No run is meant by that; the message says what there is."""


def locate_run(text: str, root: ResultsRoot) -> StoredRun:
    """The run that a text names.

    It is the path or URL of a run's folder; ``study/run`` under the root, with the id or the folder's name; a study,
    for its newest run; or ``latest``.

    Raises:
        NoSuchRunError: There is none.
    """
    if text == "latest":
        return _newest(some_runs(root))
    if "://" in text or Path(text).is_dir():
        run = StoredRun.at(Folder.at(text if "://" in text else Path(text).resolve()))
        if run.is_run():
            return run
    study, _, rest = text.partition("/")
    if not rest:
        return _newest(some_runs(root, study))
    for run in root.runs(study) if study else ():
        if rest in {run.run_id, run.folder.name}:
            return run
    raise NoSuchRunError(f"{text!r} names no run under {root.url}{_what_is_there(root, text)}")


def some_runs(root: ResultsRoot, study: str | None = None) -> list[StoredRun]:
    """All runs under a root, or those of one study, oldest first; at least one.

    Raises:
        NoSuchRunError: There is no such folder, or no run in it.
    """
    local = root.folder.local
    if local is not None and not local.is_dir():
        what = "is no folder" if local.exists() else "does not exist"
        raise NoSuchRunError(f"{root.url}: the results folder {what}; {_SET_ROOT}")
    runs = root.runs(study)
    if not runs:
        where = f"there is no run of a study {study!r}" if study else "there is no run"
        raise NoSuchRunError(f"{root.url}: {where}{_what_is_there(root, study or '')}")
    return runs


def run_name(run: StoredRun) -> str:
    """``study/run`` by the names of the folders, as every verb takes it."""
    return "/".join(run.folder.path.rsplit("/", 2)[-2:])


def _newest(runs: list[StoredRun]) -> StoredRun:
    """The newest run that was brought to its end; one that was broken off only when there is no other."""
    ended = [run for run in runs if run.folder.exists(layout.SUMMARY)]
    return (ended or runs)[-1]


def _what_is_there(root: ResultsRoot, text: str) -> str:
    found = [run_name(run) for run in root.runs()]
    if not found:
        return f"; {_SET_ROOT}"
    candidates = found if "/" in text else root.studies()
    meant = get_close_matches(text, candidates, n=1, cutoff=0.7)
    hint = f"; did you mean {meant[0]!r}?" if meant else ""
    return f"{hint}; there are: {', '.join(found[-8:])}"


_SET_ROOT = (
    "measure a study (`llem-airflow run STUDY`), or name another folder (--results-root, LLEM_RESULTS_ROOT)"
)
