"""What follows the releases of a study: each against its baseline, and all of them once all are there."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from airflow.sdk import (
    DAG,
    Asset,
    Context,
    FixedKeyMapper,
    PartitionedAssetTimetable,
    RollupMapper,
    SegmentWindow,
)
from airflow.sdk.exceptions import AirflowSkipException

from llem_airflow.factory.docs import plain
from llem_airflow.operators import LLEMCompareOperator
from llem_airflow.study import Study
from llem_airflow.study.names import dag_id_of
from llem_airflow.timetables.release_dates import releases_of

EACH, ALL = ".compare", ".compare_all"
"""What stands behind the id of the study's DAG."""


def study_asset(study: Study | str) -> Asset:
    """The asset that every aggregated run of a study updates; its events carry the key numbers.

    Args:
        study: The study, or its name: ``schedule=[study_asset("nightly")]`` runs a DAG after each of its runs.
    """
    name = study if isinstance(study, str) else study.name
    place = quote(name)
    if len(place) > 1000:  # Airflow has room for 1500 characters
        place = dag_id_of(place)
    return Asset(name=f"llem:{name}", uri=f"llem://study/{place}", group="llem")


def release_dags(study: Study, *, known: bool = True) -> list[DAG]:
    """The DAGs that compare the releases of a study; none for a study with fewer than two.

    ``<dag_id>.compare`` runs once for each release that was measured and compares it with the baseline: the release
    that ``airflow.regression.baseline`` names, else the oldest. ``<dag_id>.compare_all`` runs once every release has
    been measured. Both say in their state whether something became worse, and are started by the study's asset. The
    Airflow that reads the DAG file finds them where they are ``known``.
    """
    names = list(releases_of(study)) if study.versions else []
    if len(names) < 2:
        return []
    wanted = study.airflow.compared
    baseline = wanted.baseline if wanted is not None and wanted.baseline in names else names[0]
    how: dict[str, Any] = {"task_id": "compare", "retries": 0, "baseline": f"{study.name}@{baseline}"}
    if wanted is not None:
        how |= {"metric": wanted.metric, "threshold_ratio": wanted.threshold_ratio}
    asset = study_asset(study)

    def not_the_baseline(context: Context) -> None:
        if context.get("partition_key") == baseline:
            raise AirflowSkipException(f"{baseline} is the baseline: there is nothing to compare it with")

    alone = PartitionedAssetTimetable(assets=asset)
    with _dag(study, EACH, f"Each release against {baseline}", alone, known=known) as each:
        LLEMCompareOperator(
            candidates=study.name + "@{{ partition_key }}", pre_execute=not_the_baseline, **how
        )
    together = PartitionedAssetTimetable(
        assets=asset,
        default_partition_mapper=RollupMapper(
            upstream_mapper=FixedKeyMapper("all"), window=SegmentWindow(names)
        ),
    )
    with _dag(
        study, ALL, f"All {len(names)} releases against {baseline}, once all are there", together, known=known
    ) as every:
        LLEMCompareOperator(candidates=f"{study.name}@*", **how)
    return [each, every]


def _dag(study: Study, suffix: str, description: str, schedule: Any, *, known: bool) -> DAG:
    return DAG(
        dag_id=study.dag_id + suffix,
        description=description,
        doc_md=f"# {plain(description)}\n\nThe *Energy* tab of a run shows the verdicts, the log of `compare` more.",
        schedule=schedule,
        tags=sorted({"llem", *study.airflow.tags}),
        max_active_runs=1,
        auto_register=known,
        default_args={"owner": study.airflow.owner} if study.airflow.owner else {},
    )
