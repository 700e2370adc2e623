"""Which run a comparison starts from: one that is named, the newest of a model release, or the one before."""

from __future__ import annotations

from llem_airflow.results import ResultsRoot, StoredRun, layout
from llem_airflow.results.folder import Folder
from llem_airflow.results.locate import NoSuchRunError, locate_run

PREVIOUS = "previous"
EVERY_RELEASE = "*"


def previous_run(run: StoredRun) -> StoredRun | None:
    """The newest aggregated run of the same study and model release that began before this one."""
    release, began = run.meta().get("version"), run.started_epoch_ns()
    earlier = {
        other.started_epoch_ns(): other
        for other in aggregated_beside(run)
        if other.url != run.url and other.meta().get("version") == release
    }
    newest = max((started for started in earlier if started < began), default=None)
    return None if newest is None else earlier[newest]


def run_of_release(study: str, release: str, root: ResultsRoot) -> StoredRun | None:
    """The newest aggregated run of a model release."""
    return runs_of_releases(study, root).get(release)


def runs_of_releases(study: str, root: ResultsRoot) -> dict[str, StoredRun]:
    """The newest aggregated run of each model release of a study, the oldest of them first."""
    found: dict[str, StoredRun] = {}
    for run in root.runs(study):
        release = run.meta().get("version")
        if isinstance(release, str) and run.folder.exists(layout.SUMMARY):
            found.pop(release, None)
            found[release] = run
    return found


def named_runs(text: str, root: ResultsRoot) -> list[StoredRun]:
    """The runs that a text names: one, or all of ``study@*``.

    Args:
        text: What ``locate_run`` knows, ``study@release`` (its newest aggregated run), or ``study@*``.
        root: Where to look.

    Raises:
        NoSuchRunError: There is none; the message says what there is.
    """
    study, at, release = text.partition("@")  # releases may be called Qwen/Qwen3-8B@2507
    if not at or layout.folder_name(study) not in root.studies():
        return [locate_run(text, root)]
    there = runs_of_releases(study, root)
    if release == EVERY_RELEASE and there:
        return list(there.values())
    if release in there:
        return [there[release]]
    known = ", ".join(there) or "none"
    raise NoSuchRunError(
        f"no aggregated run of the release {release!r} of study {study!r} under {root.url}; releases: {known}"
    )


def aggregated_beside(run: StoredRun) -> list[StoredRun]:
    """The aggregated runs of the same study, itself included where it is one."""
    folder = run.folder
    study = Folder(folder.fs, folder.path.rsplit("/", 1)[0])
    found = [StoredRun.at(study.child(name)) for name in study.folders()]
    return [run for run in found if run.folder.exists(layout.SUMMARY)]
