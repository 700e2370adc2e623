"""Store: ResultsRoot, the folder of all studies, StoredRun, a run in it, and which run a person means."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from llem_airflow import __version__
from llem_airflow.results import layout
from llem_airflow.results.commit import commit, remove_orphan_commits, require_result
from llem_airflow.results.folder import Folder, ResultReadError, ResultsWriteError, json_bytes
from llem_airflow.results.marks import marks_in
from llem_airflow.results.records import CycleRef, FailureRef, checked_plan, sensors_for


class ResultsRoot:
    """The folder or bucket under which all studies and runs lie."""

    def __init__(self, url: str | Path, **options: Any) -> None:
        """Open a root; the arguments are those of ``Folder.at``."""
        self.folder = Folder.at(url, **options)

    @property
    def url(self) -> str:
        """The root as text."""
        return self.folder.url

    def run(self, study: str, run_id: str) -> StoredRun:
        """The run of a study; nothing is created before something is written."""
        folder = self.folder.child(layout.folder_name(study), layout.folder_name(run_id))
        return StoredRun(folder, study=study, run_id=run_id)

    def studies(self) -> list[str]:
        """Names of the studies' folders."""
        return self.folder.folders()

    def runs(self, study: str | None = None) -> list[StoredRun]:
        """Runs that are there, oldest first as far as their files tell."""
        studies = [layout.folder_name(study)] if study else self.studies()
        found = []
        for name in studies:
            folder = self.folder.child(name)
            found += [StoredRun.at(folder.child(run)) for run in folder.folders()]
        found = [run for run in found if run.is_run()]
        return sorted(found, key=lambda run: (run.started_epoch_ns(), run.folder.path))

    def aggregated(self, study: str) -> list[tuple[int, Folder]]:
        """As ``aggregated_in``."""
        return aggregated_in(self.folder.child(layout.folder_name(study)))

    def run_at(self, folder: Folder) -> StoredRun:
        """The run in a folder."""
        return StoredRun.at(folder)

    def find_run(self, dag_id: str, run_id: str) -> StoredRun | None:
        """The run that an Airflow DAG run wrote, by what run.json says."""
        for study in self.studies():
            run = StoredRun.at(self.folder.child(study, layout.folder_name(run_id)))
            if run.run_id == run_id and run.is_run() and run.meta().get("dag_id") == dag_id:
                return run
        return None


def aggregated_in(study: Folder) -> list[tuple[int, Folder]]:
    """When each aggregated run of a study began, 0 for not known, and its folder; the oldest first.

    On an object store, only runs without a mark are looked into.
    """
    marks, found = marks_in(study), []
    for name in study.folders():
        folder = study.child(name)
        if mark := marks.get(name):
            found.append((mark.started_epoch_ns, folder))
        elif folder.exists(layout.SUMMARY):
            found.append((StoredRun.at(folder).started_epoch_ns(), folder))
    return sorted(found, key=lambda one: (one[0], one[1].path))


@dataclass(frozen=True)
class StoredRun:
    """One run of a study in the store.

    Attributes:
        folder: Where it lies.
        study: Name of the study.
        run_id: The id as its caller (Airflow) gave it.
    """

    folder: Folder
    study: str
    run_id: str

    @classmethod
    def at(cls, folder: Folder) -> StoredRun:
        """The run in a folder, with the names its run.json gives or else those of the folders."""
        study = folder.above().name
        meta = {}
        with suppress(ResultReadError):
            meta = folder.read_object(layout.RUN, optional=True)
        return cls(folder, study=str(meta.get("study", study)), run_id=str(meta.get("run_id", folder.name)))

    @property
    def url(self) -> str:
        """Where it lies, as text."""
        return self.folder.url

    @property
    def path(self) -> Path | None:
        """Where it lies as a local path, or None on an object store."""
        return self.folder.local

    @property
    def root(self) -> Folder:
        """The results root that it lies in."""
        return self.folder.above(2)

    def is_run(self) -> bool:
        """Whether the folder holds a run."""
        return any(self.folder.exists(name) for name in (layout.RUN, layout.PLAN, layout.EXPERIMENTS_DIR))

    def write_plan(self, study_text: str, plan: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
        """Store the question: study.yaml, plan.json and run.json. Writing the same again changes nothing.

        A plan that differs from the stored one (the study was edited and tasks were cleared) takes its place;
        the earlier one is kept under ``superseded/``.

        Args:
            study_text: The study file as its author wrote it.
            plan: ``Plan.to_json()``.
            meta: Facts about the run for run.json: who triggered it, versions, when.

        Raises:
            ResultsWriteError: The folder belongs to another run, or it cannot be written.
        """
        run = {**meta, "study": self.study, "run_id": self.run_id, "schema_version": 1}
        stored = self.meta()
        if stored.get("run_id", self.run_id) != self.run_id:
            raise ResultsWriteError(
                errno.EEXIST,
                f"{self.url} belongs to run {stored['run_id']!r}, not to {self.run_id!r}; rename the run",
            )
        self.replace(layout.STUDY, study_text.encode())
        self.replace(layout.PLAN, json_bytes(plan))
        if not stored:
            self.folder.write(layout.RUN, json_bytes({"created_by": f"llem-airflow {__version__}", **run}))

    def plan(self) -> dict[str, Any]:
        """plan.json; empty when there is none."""
        return checked_plan(self.folder.read_object(layout.PLAN, optional=True), f"{self.url}/{layout.PLAN}")

    def meta(self) -> dict[str, Any]:
        """run.json; empty when there is none."""
        return self.folder.read_object(layout.RUN, optional=True)

    def study_text(self) -> str | None:
        """study.yaml as its author wrote it."""
        return self.folder.read(layout.STUDY).decode() if self.folder.exists(layout.STUDY) else None

    def summary(self) -> dict[str, Any] | None:
        """summary.json, or None before the run was aggregated."""
        return self.folder.read_object(layout.SUMMARY, optional=True) or None

    def started_epoch_ns(self) -> int:
        """When it began: ``started_epoch_ns`` of run.json, else the first anchor of its cycles, else 0."""
        starts = []
        with suppress(ResultReadError):  # a damaged run.json must not hide the other runs
            stated = self.meta().get("started_epoch_ns")
            if isinstance(stated, int):
                return stated
        for ref in self.cycles():
            try:
                starts += [anchor.epoch_ns for anchor in ref.result().anchors[:1]]
            except ResultReadError:
                continue
        return min(starts, default=0)

    def last_finished_epoch_ns(self, host: str | None = None) -> int | None:
        """When its last attempt (on the host of this connection), successful or not, ended, or None."""
        ends = []
        refs: list[CycleRef | FailureRef] = [*self.cycles(repeats=True), *self.failures()]
        for ref in refs:
            record = ref.provenance()
            finished = record.get("finished_epoch_ns")
            if isinstance(finished, int) and host in (None, record.get("host_connection")):
                ends.append(finished)
        return max(ends, default=None)

    def replace(self, name: str, data: bytes) -> None:
        """Write a file of the run, whole; what it said before is kept under ``superseded/``."""
        if self.folder.exists(name):
            earlier = self.folder.read(name)
            if earlier == data:
                return
            self.folder.child("superseded").write(layout.versioned_name(name, earlier), earlier)
        self.folder.write(name, data)

    def is_committed(self, experiment_id: str, cycle: int) -> bool:
        """Whether it has a result."""
        return self.cycle(experiment_id, cycle) is not None

    def commit_cycle(
        self, experiment_id: str, cycle: int, folder: Path, provenance: Mapping[str, Any]
    ) -> str:
        """Store a successful attempt, whole.

        The same result committed again changes nothing. Another one of the same cycle is stored beside the first, as
        ``…-repeat-<k>``; from then on it is the one that counts, and the earlier ones stay to be looked at.

        Args:
            experiment_id: ``<slug>-<hash8>``.
            cycle: Which repetition, from 1.
            folder: The collected raw files, with the names the boundary protocol gives them.
            provenance: Who ran it and how (host, container, image digest, attempt, times); plain JSON.

        Returns:
            URL of the stored cycle.

        Raises:
            ResultReadError: There is no valid result in ``folder``.
            ResultsWriteError: It cannot be written.
        """
        meter = require_result(folder).meter
        sensors = sensors_for(self.root, meter.devices) if meter.kind == "nvml" else {}
        target = self._experiment(experiment_id)
        return commit(
            self.folder,
            folder,
            {"power_sensors": sensors, **provenance} if sensors else provenance,
            lambda k: target.child(layout.cycle_name(cycle, k)),
            marker=layout.RESULT,
        )

    def commit_failed(
        self, experiment_id: str, cycle: int, attempt: int, folder: Path, provenance: Mapping[str, Any]
    ) -> str:
        """Store what a failed attempt left, if anything; the URL of the stored evidence.

        Arguments are as for ``commit_cycle``; ``provenance`` has ``failure``, too:
        ``{"category", "message", "hint", "retryable"}``.

        Raises:
            ResultsWriteError: It cannot be written.
        """
        target = self.folder.child(layout.FAILED_DIR, layout.folder_name(experiment_id))
        return commit(
            self.folder,
            folder,
            provenance,
            lambda k: target.child(layout.failed_name(cycle, attempt, k)),
            marker=layout.PROVENANCE,
        )

    def remove_orphans(self) -> None:
        """Remove what killed processes left of commits; what a living one prepares stays."""
        remove_orphan_commits(self.folder)

    def mark_skipped(self, experiment_id: str, cycle: int, reason: str, *, needed: bool) -> None:
        """Record why a planned cycle was skipped.

        It is ``needed`` where it counts as missing until it is measured, and not where the result is precise
        without it.
        """
        folder = self._markers(needed=needed).child(layout.folder_name(experiment_id))
        folder.write(f"{layout.cycle_name(cycle)}.json", json_bytes({"cycle": cycle, "reason": reason}))

    def skipped(self, *, needed: bool) -> dict[tuple[str, int], str]:
        """Reason of each cycle that ``mark_skipped`` has recorded, by experiment and cycle."""
        found = {}
        root = self._markers(needed=needed)
        for experiment_id in root.folders():
            folder = root.child(experiment_id)
            for name in folder.files():
                if parsed := layout.parse_cycle(name.removesuffix(".json")):
                    found[experiment_id, parsed[0]] = str(folder.read_object(name).get("reason", ""))
        return found

    def cycles(self, *, repeats: bool = False) -> list[CycleRef]:
        """Committed cycles by experiment and cycle.

        Of one that was measured more than once (its task was cleared), the latest result, or all ``repeats``.
        """
        found: list[CycleRef] = []
        for experiment_id in self.folder.child(layout.EXPERIMENTS_DIR).folders():
            refs = self._results(experiment_id)
            found += refs if repeats else {ref.cycle: ref for ref in refs}.values()
        return found

    def cycle(self, experiment_id: str, cycle: int) -> CycleRef | None:
        """The latest result of one cycle, or None."""
        return {ref.cycle: ref for ref in self._results(experiment_id)}.get(cycle)

    def _results(self, experiment_id: str) -> list[CycleRef]:
        """All results of an experiment, by cycle and then by time."""
        root = self._experiment(experiment_id)
        parsed = [(root.child(name), layout.parse_cycle(name)) for name in root.folders()]
        refs = [CycleRef(folder, experiment_id, *found) for folder, found in parsed if found]
        refs = [ref for ref in refs if ref.folder.exists(layout.RESULT)]
        return sorted(refs, key=lambda ref: (ref.cycle, ref.repeat))

    def failures(self) -> list[FailureRef]:
        """Stored failed attempts, by experiment, cycle and attempt."""
        found = []
        root = self.folder.child(layout.FAILED_DIR)
        for experiment_id in root.folders():
            for name in root.child(experiment_id).folders():
                parsed = layout.parse_failed(name)
                ref_folder = root.child(experiment_id, name)
                if parsed and ref_folder.exists(layout.PROVENANCE):
                    found.append(FailureRef(ref_folder, experiment_id, *parsed))
        return sorted(found, key=lambda ref: (ref.experiment_id, ref.cycle, ref.attempt, ref.repeat))

    def _experiment(self, experiment_id: str) -> Folder:
        return self.folder.child(layout.EXPERIMENTS_DIR, layout.folder_name(experiment_id))

    def _markers(self, *, needed: bool) -> Folder:
        """Where small files say why planned cycles have no result."""
        return self.folder.child(layout.SKIPPED_DIR if needed else layout.NOT_NEEDED_DIR)


class NoSuchRunError(LookupError):
    """No run is meant by that; the message says what there is."""


def locate_run(text: str, root: ResultsRoot) -> StoredRun:
    """The run that a text names.

    It is the path or URL of a run's folder; ``study/run`` under the root, with the id or the folder's name; a
    study, for its newest run; or ``latest``.

    Raises:
        NoSuchRunError: There is none.
    """
    if text == "latest":
        return _newest(root)
    if "://" in text or Path(text).is_dir():
        run = StoredRun.at(Folder.at(text if "://" in text else Path(text).resolve()))
        if run.is_run():
            return run
    study, _, rest = text.partition("/")
    if not rest:
        return _newest(root, study)
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


def newest_runs(root: ResultsRoot, study: str | None = None) -> list[tuple[int, StoredRun]]:
    """Runs under a root, or those of one study, with when each began, 0 for not known; the newest first, at least one.

    On an object store, only runs without a mark are looked into.

    Raises:
        NoSuchRunError: As ``some_runs``.
    """
    found = []
    for name in [layout.folder_name(study)] if study else root.studies():
        folder = root.folder.child(name)
        marks = marks_in(folder)
        for each in folder.folders():
            at = folder.child(each)
            if mark := marks.get(each):
                found.append((mark.started_epoch_ns, StoredRun(at, study=name, run_id=each)))
            elif (one := _looked_into(at)) is not None:
                found.append(one)
    if not found:
        some_runs(root, study)
    return sorted(found, key=lambda one: (one[0], one[1].folder.path), reverse=True)


def _looked_into(folder: Folder) -> tuple[int, StoredRun] | None:
    """The run in a folder and when it began, by its run.json alone where that tells it; None where there is none."""
    meta: dict[str, Any] = {}
    with suppress(ResultReadError):
        meta = folder.read_object(layout.RUN, optional=True)
    run = StoredRun(folder, str(meta.get("study", folder.above().name)), str(meta.get("run_id", folder.name)))
    if isinstance(started := meta.get("started_epoch_ns"), int):
        return started, run
    return (run.started_epoch_ns(), run) if run.is_run() else None


def run_name(run: StoredRun) -> str:
    """``study/run`` by the names of the folders, as every verb takes it."""
    return "/".join(run.folder.path.rsplit("/", 2)[-2:])


def require_run(root: ResultsRoot, study: str | None = None) -> None:
    """That there is a run under a root, or of a study, without looking into all of them.

    Raises:
        NoSuchRunError: As ``some_runs``.
    """
    for name in [layout.folder_name(study)] if study else root.studies():
        folder = root.folder.child(name)
        if any(StoredRun.at(folder.child(run)).is_run() for run in folder.folders()):
            return
    some_runs(root, study)


def _newest(root: ResultsRoot, study: str | None = None) -> StoredRun:
    """The newest run that was brought to its end; one that was broken off only when there is no other."""
    ended = [one for name in ([study] if study else root.studies()) for one in root.aggregated(name)]
    if not ended:
        return some_runs(root, study)[-1]
    return StoredRun.at(max(ended, key=lambda one: (one[0], one[1].path))[1])


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
