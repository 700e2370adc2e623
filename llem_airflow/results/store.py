"""ResultsRoot and StoredRun: commits that are whole or not there; what was committed is read back."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llem_airflow import __version__
from llem_airflow.protocol.result import CycleResult
from llem_airflow.protocol.strict import ProtocolError
from llem_airflow.results import names
from llem_airflow.results.cycles import CycleRef, FailureRef, ResultReadError
from llem_airflow.results.folder import Folder, ResultsWriteError, json_bytes, write_error
from llem_airflow.results.held import held_folder, sweep
from llem_airflow.results.notes import read_notes, write_note
from llem_airflow.results.plan_file import checked_plan
from llem_airflow.results.staging import stage

_COMMIT = "commit-"


class ResultsRoot:
    """The folder or bucket under which all studies and runs lie."""

    def __init__(self, url: str | Path, **options: Any) -> None:
        """Open a root.

        Args:
            url: ``file:///…``, ``s3://bucket/…``, any URL fsspec knows, or a local path.
            options: What fsspec needs for that file system, such as ``endpoint_url``.
        """
        self.folder = Folder.at(url, **options)

    @property
    def url(self) -> str:
        """The root as text."""
        return self.folder.url

    def run(self, study: str, run_id: str) -> StoredRun:
        """The run of a study; nothing is created before something is written."""
        folder = self.folder.child(names.folder_name(study), names.folder_name(run_id))
        return StoredRun(folder, study=study, run_id=run_id)

    def studies(self) -> list[str]:
        """Names of the studies' folders."""
        return self.folder.folders()

    def runs(self, study: str | None = None) -> list[StoredRun]:
        """Runs that are there, oldest first as far as their files tell."""
        studies = [names.folder_name(study)] if study else self.studies()
        found = []
        for name in studies:
            folder = self.folder.child(name)
            found += [stored_run(folder.child(run)) for run in folder.folders()]
        found = [run for run in found if run.is_run()]
        return sorted(found, key=lambda run: (run.started_epoch_ns(), run.folder.path))

    def find_run(self, dag_id: str, run_id: str) -> StoredRun | None:
        """The run that an Airflow DAG run wrote, by what run.json says."""
        for study in self.studies():
            run = stored_run(self.folder.child(study, names.folder_name(run_id)))
            if run.run_id == run_id and run.is_run() and run.meta().get("dag_id") == dag_id:
                return run
        return None


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

    @property
    def url(self) -> str:
        """Where it lies, as text."""
        return self.folder.url

    @property
    def path(self) -> Path | None:
        """Where it lies as a local path, or None on an object store."""
        return self.folder.local

    def is_run(self) -> bool:
        """Whether the folder holds a run."""
        return any(self.folder.exists(name) for name in (names.RUN, names.PLAN, names.EXPERIMENTS_DIR))

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
        self.replace(names.STUDY, study_text.encode())
        self.replace(names.PLAN, json_bytes(plan))
        if not stored:
            self.folder.write(names.RUN, json_bytes({"created_by": f"llem-airflow {__version__}", **run}))

    def plan(self) -> dict[str, Any]:
        """plan.json; empty when there is none."""
        return checked_plan(self._json(names.PLAN), f"{self.url}/{names.PLAN}")

    def meta(self) -> dict[str, Any]:
        """run.json; empty when there is none."""
        return self._json(names.RUN)

    def study_text(self) -> str | None:
        """study.yaml as its author wrote it."""
        return self.folder.read(names.STUDY).decode() if self.folder.exists(names.STUDY) else None

    def summary(self) -> dict[str, Any] | None:
        """summary.json, or None before the run was aggregated."""
        return self._json(names.SUMMARY) or None

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

    def last_finished_epoch_ns(self) -> int | None:
        """When its last attempt, successful or failed, ended; None before the first one did."""
        ends = []
        refs: list[CycleRef | FailureRef] = [*self.cycles(repeats=True), *self.failures()]
        for ref in refs:
            finished = ref.provenance().get("finished_epoch_ns")
            if isinstance(finished, int):
                ends.append(finished)
        return max(ends, default=None)

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
        _require_result(folder)
        target = self._experiment(experiment_id)
        return self._commit(
            folder, provenance, lambda k: target.child(names.cycle_name(cycle, k)), marker=names.RESULT
        )

    def commit_failed(
        self, experiment_id: str, cycle: int, attempt: int, folder: Path, provenance: Mapping[str, Any]
    ) -> str:
        """Store what a failed attempt left.

        Args:
            experiment_id: ``<slug>-<hash8>``.
            cycle: Which repetition, from 1.
            attempt: Which try.
            folder: What could be collected; may be empty or absent.
            provenance: As for a cycle, with ``failure``: ``{"category", "message", "hint", "retryable"}``.

        Returns:
            URL of the stored evidence.

        Raises:
            ResultsWriteError: It cannot be written.
        """
        target = self.folder.child(names.FAILED_DIR, names.folder_name(experiment_id))
        return self._commit(
            folder,
            provenance,
            lambda k: target.child(names.failed_name(cycle, attempt, k)),
            marker=names.PROVENANCE,
        )

    def skip_cycle(self, experiment_id: str, cycle: int, reason: str) -> None:
        """Record why a planned cycle is not needed, so that it does not count as missing."""
        write_note(self.folder, names.SKIPPED_DIR, experiment_id, cycle, reason)

    def skips(self) -> dict[tuple[str, int], str]:
        """Reason of each cycle that was recorded as not needed, by experiment and cycle."""
        return read_notes(self.folder, names.SKIPPED_DIR)

    def leave_cycle(self, experiment_id: str, cycle: int, reason: str) -> None:
        """Record why a planned cycle was not begun; it counts as missing until it is measured."""
        write_note(self.folder, names.LEFT_DIR, experiment_id, cycle, reason)

    def left(self) -> dict[tuple[str, int], str]:
        """Reason of each cycle that was recorded as not begun, by experiment and cycle."""
        return read_notes(self.folder, names.LEFT_DIR)

    def cycles(self, *, repeats: bool = False) -> list[CycleRef]:
        """Committed cycles by experiment and cycle.

        Args:
            repeats: All results of a cycle that was measured more than once (its task was cleared); else its latest.
        """
        found: list[CycleRef] = []
        for experiment_id in self.folder.child(names.EXPERIMENTS_DIR).folders():
            refs = self._refs(experiment_id)
            found += refs if repeats else {ref.cycle: ref for ref in refs}.values()
        return found

    def cycle(self, experiment_id: str, cycle: int) -> CycleRef | None:
        """The latest result of one cycle, or None."""
        refs = [ref for ref in self._refs(experiment_id) if ref.cycle == cycle]
        return refs[-1] if refs else None

    def _refs(self, experiment_id: str) -> list[CycleRef]:
        """All results of an experiment, by cycle and then by time."""
        root = self._experiment(experiment_id)
        parsed = [(root.child(name), names.parse_cycle(name)) for name in root.folders()]
        refs = [
            CycleRef(folder, experiment_id, *found)
            for folder, found in parsed
            if found and folder.exists(names.RESULT)
        ]
        return sorted(refs, key=lambda ref: (ref.cycle, ref.repeat))

    def failures(self) -> list[FailureRef]:
        """Stored failed attempts, by experiment, cycle and attempt."""
        found = []
        root = self.folder.child(names.FAILED_DIR)
        for experiment_id in root.folders():
            for name in root.child(experiment_id).folders():
                parsed = names.parse_failed(name)
                ref_folder = root.child(experiment_id, name)
                if parsed and ref_folder.exists(names.PROVENANCE):
                    found.append(FailureRef(ref_folder, experiment_id, *parsed))
        return sorted(found, key=lambda ref: (ref.experiment_id, ref.cycle, ref.attempt, ref.repeat))

    def _experiment(self, experiment_id: str) -> Folder:
        return self.folder.child(names.EXPERIMENTS_DIR, names.folder_name(experiment_id))

    def _json(self, name: str) -> dict[str, Any]:
        if not self.folder.exists(name):
            return {}
        try:
            data = json.loads(self.folder.read(name))
        except (ValueError, RecursionError) as error:
            raise ResultReadError(f"{self.url}/{name}: not JSON: {error}") from error
        return data if isinstance(data, dict) else {}

    def replace(self, name: str, data: bytes) -> None:
        """Write a file of the run, whole; what it said before is kept under ``superseded/``."""
        if self.folder.exists(name):
            earlier = self.folder.read(name)
            if earlier == data:
                return
            self.folder.child("superseded").write(names.versioned_name(name, earlier), earlier)
        self.folder.write(name, data)

    def _commit(self, source: Path, provenance: Mapping[str, Any], place: Any, *, marker: str) -> str:
        with self._staging() as staged:
            try:
                stage(source, staged, provenance)
            except OSError as error:
                raise write_error(error, self.url) from error
            for repeat in range(1000):
                target: Folder = place(repeat)
                if _same(target, staged, marker):
                    return target.url
                if _publish(staged, target, marker):
                    return target.url
        raise ResultsWriteError(
            errno.EEXIST, f"{self.url}: one cycle was stored 1000 times; something repeats it"
        )

    @contextmanager
    def _staging(self) -> Iterator[Path]:
        if self.folder.local is None:
            with tempfile.TemporaryDirectory(prefix="llem-") as folder:
                yield Path(folder)
            return
        aside = Path(self.folder.path) / names.STAGING_DIR
        try:
            with ExitStack() as held:
                try:
                    path = held.enter_context(held_folder(aside, _COMMIT, mode=0o777))
                except OSError as error:
                    raise write_error(error, self.url) from error
                yield path
        finally:
            with suppress(OSError):  # another commit is under way beside this one
                aside.rmdir()

    def sweep_commits(self) -> None:
        """Remove what killed writers left of commits; what a living one prepares stays."""
        if self.folder.local is not None:
            aside = self.folder.local / names.STAGING_DIR
            sweep(aside, _COMMIT)
            with suppress(OSError):  # not there, or a commit is under way
                aside.rmdir()


def stored_run(folder: Folder) -> StoredRun:
    """The run in a folder, with the names its run.json gives or else those of the folders."""
    study = folder.path.rsplit("/", 2)[-2]
    run = StoredRun(folder, study=study, run_id=folder.name)
    try:
        meta = run.meta()
    except ResultReadError:
        meta = {}
    return StoredRun(folder, study=str(meta.get("study", study)), run_id=str(meta.get("run_id", folder.name)))


def _require_result(folder: Path) -> None:
    candidates = sorted(folder.glob("*_result.json")) + sorted(folder.glob(names.RESULT))
    if not candidates:
        raise ResultReadError(f"{folder}: no *_result.json: the attempt did not succeed")
    try:
        CycleResult.loads(candidates[0].read_text(), str(candidates[0]))
    except (OSError, UnicodeDecodeError, ProtocolError) as error:
        raise ResultReadError(str(error)) from error


def _same(target: Folder, staged: Path, marker: str) -> bool:
    """Whether the very same result is stored there already (a task that was run again after its commit)."""
    if marker != names.RESULT or not target.exists(marker):
        return False
    return target.read(marker) == (staged / marker).read_bytes()


def _publish(staged: Path, target: Folder, marker: str) -> bool:
    """Move the staged folder to its place; False when the place is taken."""
    if target.local is not None:
        return _rename(staged, target.local)
    if target.exists(marker):
        return False
    try:
        for file in sorted(staged.iterdir(), key=lambda file: (file.name == marker, file.name)):
            target.fs.put_file(
                str(file), f"{target.path}/{file.name}"
            )  # the marker last: readers look for it
    except OSError as error:
        raise write_error(error, target.url) from error
    return True


def _rename(staged: Path, target: Path) -> bool:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staged.rename(target)
    except OSError as error:
        if error.errno in {errno.ENOTEMPTY, errno.EEXIST}:
            return False
        raise write_error(error, str(target)) from error
    parent = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(parent)  # the rename itself must survive a power cut
    finally:
        os.close(parent)
    return True
