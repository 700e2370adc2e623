"""Every DAG file and every study that is shipped becomes a healthy DAG, by Airflow's own loader."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.serialization.serialized_objects import DagSerialization

from llem_airflow.cli.embedded import SETTINGS
from llem_airflow.factory import INVALID_TAG
from llem_airflow.study import load_study

DAGS = Path(__file__).parents[1] / "dags"
FILES = sorted(DAGS.glob("*.py"))
STUDIES = sorted((DAGS / "studies").glob("*.y*ml"))


ROOT = DAGS.parent
EXECUTED = {
    "dags/llem_adhoc.py": ("airflow/test_adhoc.py", "llem_adhoc"),
    "dags/llem_maintenance.py": ("airflow/test_server.py", "llem_maintenance"),
    "dags/studies.py": ("airflow/test_server.py", "tiny"),
    "dags/studies/quickstart.yaml": ("compose/test_compose_stack.py", "quickstart"),
    "llem_airflow/example_dags/example_llem.py": ("airflow/test_form.py", "example_llem_after"),
    "llem_airflow/example_dags/example_llem.yaml": ("airflow/test_form.py", "example_llem"),
    "llem_airflow/cli/starter.yaml": ("airflow/test_form.py", "my-study"),
}
"""What ships, and the test that runs its DAG in a real Airflow (the starter's, for a model of a hub, dry)."""


def test_every_dag_file_and_every_study_that_ships_is_executed_by_a_test() -> None:
    folders = [DAGS, ROOT / "llem_airflow", ROOT / "images", ROOT / "plugins"]
    found = {path for folder in folders for path in folder.rglob("*.y*ml")}
    found |= {
        path for folder in (DAGS, ROOT / "llem_airflow" / "example_dags") for path in folder.rglob("*.py")
    }
    assert {str(path.relative_to(ROOT)) for path in found} == set(EXECUTED)
    for file, (test, dag_id) in EXECUTED.items():
        text = (ROOT / "tests" / test).read_text("utf-8")
        assert re.search(rf'run\w*\(\s*"{dag_id}"|ADHOC = "{dag_id}"', text), f"{test} does not run {file}"


@pytest.fixture(scope="module")
def bag() -> DagBag:
    return DagBag(DAGS, load_op_links=False)


def test_every_file_is_imported_without_an_error_and_gives_a_dag(bag: DagBag) -> None:
    assert bag.import_errors == {}
    assert {Path(dag.fileloc).name for dag in bag.dags.values()} == {file.name for file in FILES}


def test_every_shipped_study_is_a_healthy_dag_that_airflow_can_store(bag: DagBag) -> None:
    assert STUDIES
    for path in STUDIES:
        study = load_study(path)
        dag = bag.dags[study.airflow.dag_id or study.name]
        assert INVALID_TAG not in dag.tags
        assert DagSerialization.from_dict(DagSerialization.to_dict(dag)).task_ids == dag.task_ids


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_dag_file_is_short_enough_to_be_read_at_a_glance(file: Path) -> None:
    assert len(file.read_text("utf-8").splitlines()) <= 30


def test_one_broken_study_of_ten_leaves_nine_dags_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies.py").write_text((DAGS / "studies.py").read_text("utf-8"))
    text = STUDIES[0].read_text("utf-8")
    for index in range(10):
        written = text.replace("study_name: ", f"study_name: s{index}-")
        (tmp_path / "studies" / f"s{index}.yaml").write_text(written)
    before = DagBag(tmp_path, load_op_links=False)
    (tmp_path / "studies" / "s4.yaml").write_text("study_name: [")
    after = DagBag(tmp_path, load_op_links=False)
    assert after.import_errors == {}
    healthy = {dag_id for dag_id, dag in after.dags.items() if INVALID_TAG not in dag.tags}
    assert len(before.dags) == 10
    assert len(healthy) == 9
    assert set(after.dags) - healthy == {"invalid.s4"}
    # Airflow's list is searched by how names begin.
    assert after.dags["invalid.s4"].dag_display_name == "s4.yaml has problems"
    for dag_id in healthy:
        assert DagSerialization.to_dict(after.dags[dag_id]) == DagSerialization.to_dict(before.dags[dag_id])


def test_of_two_files_that_want_one_dag_id_airflow_gets_the_first_and_the_problem_of_the_other(
    tmp_path: Path,
) -> None:
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies.py").write_text((DAGS / "studies.py").read_text("utf-8"))
    (tmp_path / "studies" / "a.yaml").write_text(AXIS)
    (tmp_path / "studies" / "b.yaml").write_text(AXIS.replace("[1, 2]", "[4, 8]"))
    dags = DagBag(tmp_path, load_op_links=False).dags
    assert set(dags) == {"s", "invalid.b"}
    assert dags["s"].description == "2 experiments x 1 cycle"
    assert any("batch_size-1-" in task_id for task_id in dags["s"].task_ids)


AXIS = (
    "study_name: s\nserving_mode: offline\nengine: transformers\n"
    "task: {model: m, dataset: {source: builtin, n_prompts: 2}}\nmeasurement: {meter: cpu-estimate}\n"
    "sweep: {transformers.llem_execution.batch_size: [1, 2]}\nstudy_execution: {n_cycles: 1}\n"
)


@pytest.fixture
def loaded(tmp_path: Path) -> Callable[..., DagBag]:
    """What Airflow loads from a folder whose only study says this."""
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies.py").write_text((DAGS / "studies.py").read_text("utf-8"))

    def load(text: str, file: str = "s.yaml") -> DagBag:
        for earlier in (tmp_path / "studies").iterdir():
            earlier.unlink()
        (tmp_path / "studies" / file).write_text(text)
        return DagBag(tmp_path, load_op_links=False)

    return load


@pytest.mark.parametrize(
    ("values", "kept"), [("[4, 2, 1]", 2), ("[2, 8]", 1), ("[1]", 1)], ids=["added", "edited", "removed"]
)
def test_adding_editing_and_removing_experiments_keeps_the_task_ids_of_the_others(
    loaded: Callable[..., DagBag], values: str, kept: int
) -> None:
    before = set(loaded(AXIS).dags["s"].task_ids)
    after = set(loaded(AXIS.replace("[1, 2]", values)).dags["s"].task_ids)
    assert len({task_id for task_id in before & after if ".cycle_" in task_id}) == kept


def test_renaming_the_file_keeps_the_dag_and_renaming_the_study_does_where_it_names_its_dag(
    loaded: Callable[..., DagBag],
) -> None:
    before = loaded(AXIS)
    assert set(loaded(AXIS, "renamed.yaml").dags) == set(before.dags)
    renamed = loaded(AXIS.replace("study_name: s", "study_name: better") + "airflow: {dag_id: s}\n")
    assert renamed.dags["s"].task_ids == before.dags["s"].task_ids


def test_the_settings_for_long_tasks_are_documented_as_they_are_set() -> None:
    page = (DAGS / "README.md").read_text("utf-8")
    for name, value in SETTINGS.items():
        assert f"| `{name}` | {value} |" in page
