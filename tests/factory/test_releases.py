"""The releases of a study are compared by DAGs of their own, which the study's asset starts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowSkipException
from airflow.serialization.serialized_objects import DagSerialization

from llem_airflow.factory import study_dags
from llem_airflow.factory.releases import release_dags
from llem_airflow.operators import LLEMCompareOperator
from llem_airflow.study import load_study_text

TEXT = """\
study_name: watch
serving_mode: offline
engine: transformers
task: {model: m, dataset: {source: builtin, n_prompts: 2}}
"""
VERSIONS = """\
versions:
  - {name: "lab/m@r2", released: 2026-02-01}
  - {name: "lab/m@r1", released: 2026-01-01}
"""


def dags_of(text: str) -> list[Any]:
    return release_dags(load_study_text(text))


def compare(dag: Any) -> LLEMCompareOperator:
    (task,) = dag.tasks
    assert isinstance(task, LLEMCompareOperator)
    return task


def test_each_release_is_compared_with_the_oldest_and_all_of_them_once_all_are_there() -> None:
    each, every = dags_of(TEXT + VERSIONS)
    assert (each.dag_id, every.dag_id) == ("watch.compare", "watch.compare_all")
    assert compare(each).baseline == compare(every).baseline == "watch@lab/m@r1"
    assert compare(each).candidates == "watch@{{ partition_key }}"
    assert compare(every).candidates == "watch@*"
    stored: Any = DagSerialization.from_dict(DagSerialization.to_dict(every)).timetable
    mapper = stored.get_partition_mapper(name="llem:watch", uri="llem://study/watch")
    assert mapper.to_downstream("lab/m@r2") == "all"
    assert set(mapper.to_upstream("all")) == {"lab/m@r1", "lab/m@r2"}


def test_the_study_names_the_baseline_and_what_counts() -> None:
    regression = 'airflow: {regression: {baseline: "lab/m@r2", metric: ttft_mean_s, threshold_ratio: 0.1}}\n'
    task = compare(dags_of(TEXT + VERSIONS + regression)[0])
    assert (task.baseline, task.metric, task.threshold_ratio) == ("watch@lab/m@r2", "ttft_mean_s", 0.1)


def test_the_baseline_itself_is_skipped_with_the_reason() -> None:
    task = compare(dags_of(TEXT + VERSIONS)[0])
    hook = task._pre_execute_hook
    assert hook is not None
    with pytest.raises(AirflowSkipException, match="lab/m@r1 is the baseline"):
        hook({"partition_key": "lab/m@r1", "ti": SimpleNamespace()})  # type: ignore[typeddict-item] # as much as it reads
    hook({"partition_key": "lab/m@r2"})


def test_a_study_without_two_releases_has_nothing_to_compare() -> None:
    assert dags_of(TEXT) == []
    assert dags_of(TEXT + "versions: [{name: r1, released: 2026-01-01}]\n") == []


def test_a_folder_of_studies_has_them_beside_the_study_and_a_worker_reads_only_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "watch.yaml").write_text(TEXT + VERSIONS)
    (tmp_path / "other.yaml").write_text(TEXT.replace("watch", "other"))
    assert set(study_dags(tmp_path)) == {"watch", "watch.compare", "watch.compare_all", "other"}
    monkeypatch.setenv("_AIRFLOW_PARSING_CONTEXT_DAG_ID", "watch.compare_all")
    assert set(study_dags(tmp_path)) == {"watch", "watch.compare", "watch.compare_all"}
