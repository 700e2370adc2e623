"""Model releases as partitions: which run, in what order, and which are refused."""

from __future__ import annotations

import pendulum
import pytest
from airflow.exceptions import AirflowTimetableInvalid, InvalidPartitionKeyError
from airflow.timetables.base import DagRunInfo, TimeRestriction
from airflow.utils.types import DagRunType

from llem_airflow.timetables.releases import ModelReleaseTimetable

RELEASES = {"r2": "2026-02-01", "r1": "2026-01-01", "r3": "2026-03-01T12:00:00+02:00"}


def restriction(*, catchup: bool = False, earliest: str | None = None) -> TimeRestriction:
    return TimeRestriction(pendulum.parse(earliest) if earliest else None, None, catchup)  # type: ignore[arg-type] # parse gives a DateTime for a date


def ran(name: str) -> DagRunInfo:
    table = ModelReleaseTimetable(RELEASES)
    date = table.resolve_partition_date(name)
    return DagRunInfo(run_after=date, data_interval=None, partition_date=date, partition_key=name)  # type: ignore[arg-type] # a DateTime


def test_a_backfill_walks_over_the_releases_in_its_range_oldest_first() -> None:
    table = ModelReleaseTimetable(RELEASES)
    infos = list(
        table.iter_partition_dagrun_infos(
            earliest=pendulum.datetime(2026, 1, 15), latest=pendulum.datetime(2026, 3, 1, 10)
        )
    )
    assert [info.partition_key for info in infos] == ["r2", "r3"]
    assert infos[1].partition_date == pendulum.datetime(2026, 3, 1, 10)


def test_what_is_serialized_comes_back_the_same() -> None:
    table = ModelReleaseTimetable(RELEASES)
    assert ModelReleaseTimetable.deserialize(table.serialize()).serialize() == table.serialize()
    assert table.summary == "3 model releases"


def test_a_release_after_the_last_one_that_ran_runs_by_itself_even_when_its_date_has_passed() -> None:
    table = ModelReleaseTimetable(RELEASES)
    info = table.next_dagrun_info_v2(last_dagrun_info=ran("r1"), restriction=restriction())
    assert info is not None
    assert info.partition_key == "r2"
    assert table.next_dagrun_info_v2(last_dagrun_info=ran("r3"), restriction=restriction()) is None


def test_before_anything_ran_releases_of_the_past_are_left_to_a_backfill_unless_catchup_is_on() -> None:
    table = ModelReleaseTimetable(RELEASES)
    assert table.next_dagrun_info_v2(last_dagrun_info=None, restriction=restriction()) is None
    first = table.next_dagrun_info_v2(last_dagrun_info=None, restriction=restriction(catchup=True))
    assert first is not None
    assert first.partition_key == "r1"
    later = table.next_dagrun_info_v2(
        last_dagrun_info=None, restriction=restriction(catchup=True, earliest="2026-01-02")
    )
    assert later is not None
    assert later.partition_key == "r2"


def test_an_unknown_release_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        InvalidPartitionKeyError, match=r"unknown model release 'nope'; the study has: r1, r2, r3"
    ):
        ModelReleaseTimetable(RELEASES).resolve_partition_date("nope")


def test_two_releases_of_one_date_are_refused() -> None:
    with pytest.raises(AirflowTimetableInvalid, match=r"'a' and 'b' are both released at 2026-01-01"):
        ModelReleaseTimetable({"a": "2026-01-01", "b": "2026-01-01"}).validate()


def test_run_ids_name_the_release_in_characters_that_airflow_allows() -> None:
    run_id = ModelReleaseTimetable(RELEASES).generate_run_id(
        run_type=DagRunType.BACKFILL_JOB,
        run_after=pendulum.datetime(2026, 1, 1),
        data_interval=None,
        partition_key="Qwen/Qwen3-8B@abc",
    )
    assert run_id.startswith("backfill__2026-01-01T00:00:00+00:00__Qwen~Qwen3-8B~abc__")
