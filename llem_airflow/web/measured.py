"""What runs measured of a metric, kept as long as their tables of cycles do not change."""

from __future__ import annotations

from collections.abc import Sequence

from llem_airflow.analysis.nights import Alike, Measured, Night, from_plain, measured, plain
from llem_airflow.results import StoredRun, layout
from llem_airflow.web.index import Entry
from llem_airflow.web.kept import Kept


def nights_of(entries: Sequence[Entry], metric: str, kept: Kept) -> tuple[list[Night], list[str]]:
    """The runs that have tables, and what is wrong with those whose tables do not read."""
    nights, problems, alike = [], [], Alike()
    for entry in entries:
        version = entry.version_of(layout.CYCLES_TABLE)
        if not version:
            continue
        try:
            found = _measured(entry.run, version, metric, kept, alike)
        except (OSError, ValueError) as error:
            problems.append(str(error))
            continue
        nights.append(Night(entry.run.run_id, entry.started_epoch_ns, entry.release, found))
    return nights, problems


def _measured(run: StoredRun, version: str, metric: str, kept: Kept, alike: Alike) -> tuple[Measured, ...]:
    return kept.of_plain(
        f"nights {metric}",
        run.folder.path,
        version,
        lambda: measured(run, metric, alike),
        plain,
        from_plain,
    )
