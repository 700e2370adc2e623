"""Store: ResultsRoot, the folder of all studies, StoredRun, a run in it, and which run a person means.

On an object store, looking into each run is a request. The aggregate therefore leaves an object
``<study>/.runs/<run>~<facts>``, written anew whenever the run is aggregated again: one listing tells which runs are
aggregated and what their run.json says. A folder needs none.
"""

from __future__ import annotations

import base64
import errno
import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from llem_airflow import __version__
from llem_airflow.results import layout
from llem_airflow.results.commit import commit, remove_orphan_commits, require_result
from llem_airflow.results.folder import Folder, ResultReadError, ResultsWriteError, json_bytes
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
        return sorted((run for name in studies for run in runs_in(self.folder.child(name))), key=_age)

    def aggregated(self, study: str) -> list[StoredRun]:
        """Aggregated runs of a study, oldest first."""
        return [run for run in self.runs(study) if run.is_aggregated()]

    def find_run(self, dag_id: str, run_id: str) -> StoredRun | None:
        """The run that an Airflow DAG run wrote, by what run.json says."""
        for study in self.studies():
            run = StoredRun.at(self.folder.child(study, layout.folder_name(run_id)))
            if run.run_id == run_id and run.facts().get("dag_id") == dag_id:
                return run
        return None


@dataclass(frozen=True, slots=True)
class Mark:
    """What the aggregate of a run left on an object store.

    Attributes:
        facts: What run.json says, as far as listings need it; empty where the name had no room for it.
        version: Another one each time the run is aggregated.
    """

    facts: Mapping[str, Any]
    version: str


_MARKS = ".runs"
_BEFORE_FACTS = "~"
"""In no folder's name of a run."""
_FACTS = ("study", "run_id", "dag_id", "version")
_LONGEST_KEY = 1000
"""Of an object, in bytes; S3 takes 1024."""
_LATEST_NS = 2**63 - 1
"""The year 2262."""


def marks_in(study: Folder) -> dict[str, Mark]:
    """The marks of a study's runs by the run's folder; none on a local disk."""
    found: dict[str, Mark] = {}
    names = study.child(_MARKS).versions() if study.local is None else {}
    for name, version in sorted(names.items()):
        run, _, told = name.partition(_BEFORE_FACTS)
        facts = _decoded(told)
        if facts or told.isdecimal():
            earlier = found.get(run, Mark({}, ""))
            found[run] = Mark(facts or earlier.facts, earlier.version + version)
    return found


def _decoded(told: str) -> dict[str, Any]:
    with suppress(ValueError):
        facts = json.loads(base64.urlsafe_b64decode(told + "=="))
        return facts if isinstance(facts, dict) else {}
    return {}


def runs_in(study: Folder) -> list[StoredRun]:
    """The runs in a study's folder, oldest first as far as their files tell.

    On an object store, only runs without a mark are looked into.
    """
    marks = marks_in(study)
    found = [StoredRun.at(study.child(name), marks.get(name)) for name in study.folders()]
    return sorted((run for run in found if run.is_run()), key=_age)


@dataclass(frozen=True)
class StoredRun:
    """One run of a study in the store.

    Attributes:
        folder: Where it lies.
        study: Name of the study.
        run_id: The id as its caller (Airflow) gave it.
        told: What run.json, which is written once, or the mark said when the run was found; empty for not known.
        version: Of what its aggregate wrote, by the mark; empty without one.
    """

    folder: Folder
    study: str
    run_id: str
    told: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    version: str = field(default="", repr=False, compare=False)

    @classmethod
    def at(cls, folder: Folder, mark: Mark | None = None) -> StoredRun:
        """The run in a folder, with the names its mark or run.json gives or else those of the folders."""
        told = mark.facts if mark else {}
        if not told:
            with suppress(ResultReadError):
                told = folder.read_object(layout.RUN, optional=True)
        study, run_id = str(told.get("study", folder.above().name)), str(told.get("run_id", folder.name))
        return cls(folder, study, run_id, told, mark.version if mark else "")

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
        names = (layout.RUN, layout.PLAN, layout.EXPERIMENTS_DIR)
        return bool(self.told or self.version) or any(self.folder.exists(name) for name in names)

    def is_aggregated(self) -> bool:
        """Whether its summary is there."""
        return bool(self.version) or self.folder.exists(layout.SUMMARY)

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

    def facts(self) -> Mapping[str, Any]:
        """Study, run_id, dag_id, version and started_epoch_ns of run.json, as they were told when the run was found.

        Raises:
            ResultReadError: They were not, and run.json is damaged.
        """
        return self.told or self.meta()

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
            stated = self.facts().get("started_epoch_ns")
            if isinstance(stated, int) and 0 <= stated <= _LATEST_NS:
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

    def mark_aggregated(self) -> None:
        """Say that its tables, summary and report are written; where that is known, that they are other ones."""
        run = StoredRun.at(self.folder)
        began_ns = run.started_epoch_ns()
        facts = {name: run.told[name] for name in _FACTS if name in run.told} | {"started_epoch_ns": began_ns}
        told = (
            base64.urlsafe_b64encode(json.dumps(facts, separators=(",", ":")).encode()).decode().rstrip("=")
        )
        folder = self.folder.above().child(_MARKS)
        name = f"{self.folder.name}{_BEFORE_FACTS}"
        fits = len(f"{folder.path}/{name}{told}".encode()) <= _LONGEST_KEY
        said = json_bytes({"aggregated_epoch_ns": time.time_ns()})
        folder.write(f"{name}{told if fits else began_ns}", said)

    def unmark(self) -> None:
        """Forget that it was aggregated: it is about to be removed."""
        folder = self.folder.above().child(_MARKS)
        for name in folder.files():
            if name.partition(_BEFORE_FACTS)[0] == self.folder.name:
                folder.fs.rm_file(f"{folder.path}/{name}")

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


def run_name(run: StoredRun) -> str:
    """``study/run`` by the names of the folders, as every verb takes it."""
    return "/".join(run.folder.path.rsplit("/", 2)[-2:])


def _age(run: StoredRun) -> tuple[int, str]:
    return run.started_epoch_ns(), run.folder.path


def _newest(root: ResultsRoot, study: str | None = None) -> StoredRun:
    """The newest run that was brought to its end; one that was broken off only when there is no other."""
    runs = some_runs(root, study)
    return next((run for run in reversed(runs) if run.is_aggregated()), runs[-1])


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
