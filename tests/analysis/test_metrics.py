from __future__ import annotations

from llem_airflow.analysis.metrics import METRICS
from llem_airflow.study.names import METRIC_NAMES


def test_a_study_may_name_every_metric_that_has_a_direction() -> None:
    assert [metric.name for metric in METRICS if metric.better != "-"] == list(METRIC_NAMES)
