"""What may be removed: old runs by the rules of retention, and orphans that killed processes left.

A commit removes the orphans of earlier ones of its run; here are those of runs that see no further commit. An object
store has none: what is not finished lies on the worker. Nothing goes without having been named before.
"""

from __future__ import annotations

import math
import re
import shutil
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from llem_airflow.results import layout
from llem_airflow.results.folder import ABANDONED_NS, Folder, write_error
from llem_airflow.results.scratch import is_locked
from llem_airflow.results.store import ResultsRoot, StoredRun
from llem_airflow.text.wording import counted

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}")
_REMOVED = ".removed-"
_NS_PER_DAY = 86_400_000_000_000


@dataclass(frozen=True, slots=True)
class Removal:
    """A run that may go.

    Attributes:
        run: The run.
        size_bytes: What it takes.
        reason: Why it may go.
    """

    run: StoredRun
    size_bytes: int
    reason: str


def removable(
    root: ResultsRoot,
    *,
    now_epoch_ns: int,
    keep_runs: int | None = None,
    keep_days: float | None = None,
    study: str | None = None,
) -> list[Removal]:
    """Runs that neither rule keeps, oldest first by study.

    A run that is not aggregated yet is always kept and takes nobody's place among the newest. Where it is not known
    when a run began, its age is not known either: both rules keep it: the newest ``keep_runs`` runs of each study,
    and those younger than ``keep_days``.

    Raises:
        ValueError: No rule is given, or one is negative or not a number.
    """
    if keep_runs is None and keep_days is None:
        raise ValueError("say what to keep: a number of runs, a number of days, or both")
    if (keep_runs or 0) < 0 or (keep_days or 0) < 0 or math.isnan(keep_days or 0):
        raise ValueError("what to keep must be a number from 0")
    found = []
    for name in [study] if study else root.studies():
        dated = [
            (run.started_epoch_ns(), run) for run in root.runs(name) if run.folder.exists(layout.SUMMARY)
        ]
        known = [(started_ns, run) for started_ns, run in dated if started_ns > 0]
        for started_ns, run in known[: max(0, len(known) - (keep_runs or 0))]:
            age_days = (now_epoch_ns - started_ns) / _NS_PER_DAY
            if keep_days is None or age_days >= keep_days:
                size_bytes = int(run.folder.fs.du(run.folder.path))
                found.append(Removal(run, size_bytes, f"{counted(round(age_days), 'day')} old"))
    return found


def remove(removals: Sequence[Removal]) -> None:
    """Remove the runs. Each leaves its place at once, so that no reader sees half a run.

    Raises:
        ResultsWriteError: One could not be removed.
    """
    for removal in removals:
        folder = removal.run.folder
        try:
            if folder.local is not None:
                trash = folder.local.with_name(f"{_REMOVED}{uuid.uuid4().hex}")
                folder.local.rename(trash)
                Folder(folder.fs, str(trash)).remove()
            else:
                folder.remove()
        except OSError as error:
            raise write_error(error, folder.url) from error


def remove_orphans(study: Folder, now_epoch_ns: int) -> list[str]:
    """Remove what killed commits, writers and removals left in the folder of a study; what was removed.

    What changed within the hour stays, and so does what a living process has locked.
    """
    if study.local is None:
        return []
    found = [*study.local.glob(f"{_REMOVED}*"), *study.local.glob(f"*/{layout.STAGING_DIR}/*")]
    found += [path for path in study.local.rglob(".*") if path.is_file() and _TEMPORARY.fullmatch(path.name)]
    removed = []
    for path in found:
        with suppress(OSError):  # it is gone already, or not ours
            if _changed_ns(path) < now_epoch_ns - ABANDONED_NS and not is_locked(path):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
                removed.append(str(path))
    for staging in study.local.glob(f"*/{layout.STAGING_DIR}"):
        with suppress(OSError):  # a commit is under way
            staging.rmdir()
    return removed


def _changed_ns(path: Path) -> int:
    parts = [path, *path.rglob("*")]
    return max(part.stat(follow_symlinks=False).st_mtime_ns for part in parts)
