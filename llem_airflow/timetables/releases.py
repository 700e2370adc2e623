"""ModelReleaseTimetable: one partition per model release, so that Airflow's own backfill walks over releases."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import pendulum
from airflow.exceptions import AirflowTimetableInvalid, InvalidPartitionKeyError
from airflow.timetables.base import DagRunInfo, DataInterval, TimeRestriction, Timetable
from airflow.utils.types import DagRunType
from pendulum import DateTime

from llem_airflow.text.wording import counted
from llem_airflow.timetables.release_dates import problem_with, release_date


class ModelReleaseTimetable(Timetable):
    """Once per model release: partition key = name of the release, partition date = when it was released.

    Airflow's backfill (UI, CLI, REST) makes one run per release whose date lies in its range. A release that is dated
    after the last one that ran runs by itself, also when its date has passed already. Before anything ran, releases
    of the past are left to a backfill, unless the DAG has ``catchup``.

    Args:
        releases: ISO date of each release by its name.
    """

    partitioned = True
    periodic = True
    description = "Once per model release"

    def __init__(self, releases: Mapping[str, str]) -> None:
        self.releases = dict(sorted(releases.items(), key=lambda item: release_date(item[1])))

    @property
    def summary(self) -> str:
        """What the UI shows as the schedule."""
        return counted(len(self.releases), "model release")

    def serialize(self) -> dict[str, Any]:
        """What Airflow keeps of it in its database."""
        return {"releases": self.releases}

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> ModelReleaseTimetable:
        """The timetable that was serialized."""
        return cls(data["releases"])

    def validate(self) -> None:
        """Refuse what Airflow's backfill could not walk over.

        Raises:
            AirflowTimetableInvalid: No release, two on one date, or a name that is no partition key.
        """
        if problem := problem_with(self.releases):
            raise AirflowTimetableInvalid(problem)

    def infer_manual_data_interval(self, *, run_after: DateTime) -> DataInterval:
        """A manual run covers no interval."""
        return DataInterval.exact(run_after)

    def iter_partition_dagrun_infos(self, *, earliest: datetime, latest: datetime) -> Iterator[DagRunInfo]:
        """The runs of a backfill over these dates, oldest release first."""
        for name, date in self._dated():
            if earliest <= date <= latest:
                yield _info(name, date)

    def next_dagrun_info(
        self,
        *,
        last_automated_data_interval: DataInterval | None,  # noqa: ARG002 - Airflow's older interface
        restriction: TimeRestriction,  # noqa: ARG002 - Airflow's older interface
    ) -> DagRunInfo | None:
        """None: it speaks of intervals, and a release is a partition, see ``next_dagrun_info_v2``."""
        return None

    def next_dagrun_info_v2(
        self, *, last_dagrun_info: DagRunInfo | None, restriction: TimeRestriction
    ) -> DagRunInfo | None:
        """The next release that runs by itself."""
        last = last_dagrun_info.partition_date if last_dagrun_info is not None else None
        for name, date in self._dated():
            if last is not None and date <= last:
                continue
            if restriction.earliest is not None and date < restriction.earliest:
                continue
            if last is None and not restriction.catchup and date < pendulum.now("UTC"):
                continue
            if restriction.latest is not None and date > restriction.latest:
                return None
            return _info(name, date)
        return None

    def generate_run_id(
        self,
        *,
        run_type: DagRunType,
        run_after: DateTime,
        data_interval: DataInterval | None,  # noqa: ARG002 - Airflow's interface
        **extra: Any,
    ) -> str:
        """A run id that names the release, in the characters that Airflow allows."""
        name = re.sub(r"[^A-Za-z0-9_.~:+-]", "~", extra.get("partition_key") or "")
        # Reprocessing a release makes a second run beside the first: the same names must not collide.
        parts = (run_after.isoformat(), name, uuid.uuid4().hex[:6])
        return str(run_type.generate_run_id(suffix="__".join(part for part in parts if part)))

    def _decode_partition_date(self, partition_key: str) -> datetime:
        if partition_key not in self.releases:
            raise InvalidPartitionKeyError(
                f"unknown model release {partition_key!r}; the study has: {', '.join(self.releases) or 'none'}"
            )
        return release_date(self.releases[partition_key])

    def _dated(self) -> Iterator[tuple[str, DateTime]]:
        for name, text in self.releases.items():
            yield name, release_date(text)


def _info(name: str, date: DateTime) -> DagRunInfo:
    return DagRunInfo(run_after=date, data_interval=None, partition_date=date, partition_key=name)
