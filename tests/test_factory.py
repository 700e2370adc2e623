"""A study becomes a DAG that a person can read; a broken file takes no other study down."""

from __future__ import annotations

from pathlib import Path

import pytest

from llem_airflow.factory import INVALID_TAG, study_dag, study_dags
from llem_airflow.operators import LLEMAggregateOperator, LLEMExperimentOperator
from llem_airflow.study import StudyFileError

STUDY = """\
study_name: {name}
serving_mode: offline
engine: transformers
task: {{model: m, dataset: {{source: builtin, n_prompts: 2}}}}
measurement: {{meter: cpu-estimate}}
sweep:
  transformers.llem_execution.batch_size: [1, 2]
study_execution: {{n_cycles: 2, experiment_order: interleave}}
airflow: {{retries: 3, retry_delay: 7, owner: ada, tags: [night]}}
"""


def write(folder: Path, name: str, text: str | None = None) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(text if text is not None else STUDY.format(name=name))
    return path


def test_each_experiment_is_a_group_and_each_cycle_a_task(tmp_path: Path) -> None:
    dag = study_dag(write(tmp_path, "two"))
    groups = [g for g in dag.task_group.get_task_group_dict() if g]
    assert len(groups) == 2
    cycles = {t.task_id for t in dag.tasks if isinstance(t, LLEMExperimentOperator)}
    assert cycles == {f"{group}.cycle_{n}" for group in groups for n in (1, 2)}
    assert dag.dag_id == "two"


def test_the_aggregate_follows_every_cycle_whatever_became_of_them(tmp_path: Path) -> None:
    dag = study_dag(write(tmp_path, "two"))
    aggregate = dag.get_task("aggregate")
    assert isinstance(aggregate, LLEMAggregateOperator)
    assert aggregate.trigger_rule == "all_done"
    assert len(aggregate.upstream_task_ids) == 4


def test_the_study_s_airflow_section_is_applied(tmp_path: Path) -> None:
    dag = study_dag(write(tmp_path, "two"))
    cycle = next(t for t in dag.tasks if isinstance(t, LLEMExperimentOperator))
    assert cycle.retries == 3
    assert cycle.retry_delay.total_seconds() == 7
    assert cycle.owner == "ada"
    assert "night" in dag.tags
    assert dag.max_active_tasks == 1


def test_priorities_realise_the_plan_s_order(tmp_path: Path) -> None:
    dag = study_dag(write(tmp_path, "two"))
    cycles = [t for t in dag.tasks if isinstance(t, LLEMExperimentOperator)]
    by_priority = sorted(cycles, key=lambda t: -t.priority_weight)
    assert [t.cycle for t in by_priority] == [1, 1, 2, 2]
    assert len({t.priority_weight for t in cycles}) == 4


def test_a_chain_runs_the_cycles_one_after_the_other_in_the_plan_s_order(tmp_path: Path) -> None:
    dag = study_dag(write(tmp_path, "two"), chain=True)
    cycles = sorted((t for t in dag.tasks if isinstance(t, LLEMExperimentOperator)), key=lambda t: -t.priority_weight)
    assert not cycles[0].upstream_task_ids
    for before, after in zip(cycles, cycles[1:], strict=False):
        assert after.upstream_task_ids == {before.task_id}
        assert after.trigger_rule == "all_done"


def test_a_task_shows_its_configuration(tmp_path: Path) -> None:
    dag = study_dag(write(tmp_path, "two"))
    cycle = next(t for t in dag.tasks if isinstance(t, LLEMExperimentOperator))
    assert cycle.doc_md is not None
    assert "transformers.llem_execution.batch_size" in cycle.doc_md


def test_the_configuration_is_never_a_template_field() -> None:
    assert set(LLEMExperimentOperator.template_fields) == {"image", "docker_conn_id"}


def test_an_unknown_experiment_is_named_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"study 'two' has no experiment 'nope'; it has: "):
        LLEMExperimentOperator(task_id="x", study=write(tmp_path, "two"), experiment="nope")


def test_a_broken_file_becomes_a_dag_that_shows_its_mistakes_and_leaves_the_others(tmp_path: Path) -> None:
    write(tmp_path, "good")
    write(tmp_path, "bad", "study_name: bad\nserving_mode: offline\ntask: {model: m}\nengnie: vllm\n")
    dags = study_dags(tmp_path)
    assert set(dags) == {"good", "invalid.bad"}
    bad = dags["invalid.bad"]
    assert INVALID_TAG in bad.tags
    assert bad.doc_md is not None
    assert "bad.yaml:4:1" in bad.doc_md
    assert [t.task_id for t in bad.tasks] == ["mistakes"]


def test_strict_raises_on_a_broken_file(tmp_path: Path) -> None:
    write(tmp_path, "bad", "study_name: bad\n")
    with pytest.raises(StudyFileError, match=r"bad\.yaml"):
        study_dags(tmp_path, strict=True)


def test_two_files_that_want_one_dag_id_are_told_apart(tmp_path: Path) -> None:
    write(tmp_path, "a", STUDY.format(name="same"))
    write(tmp_path, "b", STUDY.format(name="same"))
    dags = study_dags(tmp_path)
    assert set(dags) == {"same", "invalid.b"}
    assert "already taken" in (dags["invalid.b"].doc_md or "")


def test_a_study_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="study folder .*nowhere does not exist"):
        study_dags(tmp_path / "nowhere")


def test_mistakes_cannot_inject_markup_into_the_ui(tmp_path: Path) -> None:
    write(tmp_path, "bad", "study_name: bad\n<script>alert(1)</script>: 1\n")
    (dag,) = study_dags(tmp_path).values()
    assert "<script>" not in (dag.doc_md or "")
