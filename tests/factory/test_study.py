"""A study becomes a DAG that a person can read; a broken file takes no other study down."""

from __future__ import annotations

import logging
import os
import re
import socket
import sqlite3
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG
from airflow.serialization.serialized_objects import DagSerialization
from click.testing import CliRunner

import llem_airflow.factory.study
from llem_airflow.cli import main
from llem_airflow.factory import INVALID_TAG, StudyTaskGroup, study_dag, study_dags
from llem_airflow.factory.folder import files_naming
from llem_airflow.operators import LLEMAggregateOperator, LLEMExperimentOperator, LLEMPlanOperator
from llem_airflow.study import StudyFileError, load_study
from llem_airflow.timetables.releases import ModelReleaseTimetable

STUDY = """\
study_name: {name}
serving_mode: offline
engine: transformers
task: {{model: m, dataset: {{source: builtin, n_prompts: 2}}}}
measurement: {{meter: cpu-estimate}}
sweep:
  transformers.llem_execution.batch_size: [1, 2]
study_execution: {{n_cycles: 2, experiment_order: interleave}}
runners: {{transformers: process}}
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
    cycles = sorted(
        (t for t in dag.tasks if isinstance(t, LLEMExperimentOperator)), key=lambda t: -t.priority_weight
    )
    assert cycles[0].upstream_task_ids == {"plan"}
    for before, after in pairwise(cycles):
        assert (
            after.trigger_rule == "all_success"
        )  # of the plan, and of the task that waits for the one before
        (ended,) = after.upstream_task_ids - {"plan"}
        assert dag.get_task(ended).upstream_task_ids == {before.task_id}
        assert dag.get_task(ended).trigger_rule == "all_done"


def test_a_task_shows_its_configuration(tmp_path: Path) -> None:
    dag = study_dag(write(tmp_path, "two"))
    cycle = next(t for t in dag.tasks if isinstance(t, LLEMExperimentOperator))
    assert cycle.doc_md is not None
    assert "transformers.llem_execution.batch_size" in cycle.doc_md


def test_the_configuration_is_never_a_template_field() -> None:
    templated = {"image", "docker_conn_id", "environment", "env_file", "mounts"}  # as in DockerOperator
    assert set(LLEMExperimentOperator.template_fields) == templated


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
    assert [t.task_id for t in bad.tasks] == ["problems"]


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


def test_the_file_that_has_the_dag_id_tells_of_the_one_that_wanted_it_too(tmp_path: Path) -> None:
    write(tmp_path, "a", STUDY.format(name="x y"))
    write(tmp_path, "b", STUDY.format(name="x/y"))
    dags = study_dags(tmp_path)
    assert set(dags) == {"x-y", "invalid.b"}
    assert "b.yaml asks for this DAG id too and is not run" in (dags["x-y"].doc_md or "")
    assert "already taken by a.yaml" in (dags["invalid.b"].doc_md or "")


def test_files_with_mistakes_whose_names_make_one_id_are_all_shown(tmp_path: Path) -> None:
    for name in ("a b", "a-b", "invalid.a-b"):
        write(tmp_path, name, "nonsense\n")
    assert set(study_dags(tmp_path)) == {"invalid.a-b", "invalid.a-b-2", "invalid.invalid.a-b"}


@pytest.mark.parametrize(
    ("name", "dag_id"),
    [
        ("Llama 3 sweep", "Llama-3-sweep"),
        ("a/b: c", "a-b-c"),
        ("L\u00e4ma", "L\u00e4ma"),
        ("\U0001f600", "study-f0443a34"),
        ("..", "study-5ec1f7e7"),
        ("x" * 300, "x" * 229 + "-0d4e2ca9"),
    ],
)
def test_a_name_that_airflow_takes_for_no_dag_id_becomes_one_like_it(
    tmp_path: Path, name: str, dag_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "file", STUDY.format(name=f'"{name}"'))
    (dag,) = study_dags(tmp_path).values()
    assert (dag.dag_id, dag.dag_display_name) == (dag_id, name)
    assert INVALID_TAG not in dag.tags
    notices = [notice.code for notice in load_study(tmp_path / "file.yaml").warnings]
    assert notices == (["dag-id"] if name != dag_id else [])
    monkeypatch.setenv("_AIRFLOW_PARSING_CONTEXT_DAG_ID", dag_id)
    assert set(study_dags(tmp_path)) == {dag_id}


@pytest.mark.parametrize(
    "line",
    [
        'study_name: "{{ 1/0 }}"',
        'study_name: "a\\nb"',
        "airflow: {dag_id: llem_adhoc}",
        "airflow: {dag_id: invalid.x}",
        "airflow: {dag_id: a b}",
        f"airflow: {{tags: [{'x' * 101}]}}",
        "airflow: {tags: ['']}",
        f"airflow: {{owner: {'x' * 251}}}",
        f"airflow: {{pool: {'x' * 257}}}",
        "airflow: {timezone: Mars/Olympus}",
        "airflow: {start_date: 0001-01-01}",
        "airflow: {start_date: 9999-12-31T23:59:59}",
        "airflow: {retry_delay: 99999999d}",
        "airflow: {deadline: 99999999d}",
        "airflow: {retries: 101}",
        "airflow: {priority: 99999999}",
        "airflow: {max_active_cycles: 0}",
        "study_execution: {wall_clock_timeout_hours: 1e300}",
        "study_execution: {experiment_timeout_seconds: 20}",
        "study_execution: {wall_clock_timeout_hours: 0.001}",
        'airflow: {schedule: "0 0 30 2 *"}',
        'airflow: {schedule: "0 0 2 * * *"}',
        'airflow: {schedule: "@every 5m"}',
        'airflow: {schedule: "@once"}',
        "measurement: 0x_",
    ],
)
def test_what_airflow_could_not_run_is_that_file_s_mistake_in_validate_and_in_the_folder(
    tmp_path: Path, line: str
) -> None:
    keys = tuple(f"{each.split(':')[0]}:" for each in line.splitlines())
    text = STUDY.format(name="bad").replace("sweep:\n  ", "sweep: {").replace("[1, 2]", "[1, 2]}")
    kept = "\n".join(each for each in text.splitlines() if not each.startswith(keys))
    write(tmp_path, "good")
    path = write(tmp_path, "bad", f"{kept}\n{line}\n")
    dags = study_dags(tmp_path)
    assert set(dags) == {"good", "invalid.bad"}
    result = CliRunner().invoke(main, ["validate", str(path)])
    assert result.exit_code == 2
    (told,) = result.stderr.splitlines()
    assert told.startswith(f"{path}:")
    assert told in (dags["invalid.bad"].doc_md or "")


def test_whatever_is_raised_for_one_file_becomes_that_file_s_dag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster policy, say, or a fault of ours: nobody knows beforehand what it is."""
    write(tmp_path, "good")
    write(tmp_path, "bad")

    def faulty(path: Path) -> Any:
        if path.stem == "bad":
            raise ZeroDivisionError("what nobody thought of")
        return load_study(path)

    monkeypatch.setattr(llem_airflow.factory.study, "load_study", faulty)
    dags = study_dags(tmp_path)
    assert set(dags) == {"good", "invalid.bad"}
    assert "ZeroDivisionError: what nobody thought of" in (dags["invalid.bad"].doc_md or "")


@pytest.mark.parametrize("wanted", [None, "two"])
def test_entries_that_are_no_regular_files_are_left_out(
    tmp_path: Path, wanted: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "two")
    (tmp_path / ".#two.yaml").symlink_to("somebody@somewhere.1234")  # an editor's lock
    (tmp_path / ".hidden.yaml").write_text("nonsense")
    (tmp_path / "gone.yaml").symlink_to("nowhere")
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    (tmp_path / "folder.yaml").mkdir()
    os.mkfifo(tmp_path / "pipe.yaml")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)  # a socket's path may not be long
        server.bind("socket.yml")
    if wanted:
        monkeypatch.setenv("_AIRFLOW_PARSING_CONTEXT_DAG_ID", wanted)
    assert set(study_dags(tmp_path)) == {"two"}


def test_a_file_that_vanishes_or_closes_after_the_listing_names_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, "two")
    assert files_naming([tmp_path / "vanished.yaml", tmp_path, path], "two") == [path]


def test_a_worker_never_gives_the_id_of_one_study_to_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two files want one id and write it differently: a worker must find the one that has it in the UI."""
    write(tmp_path, "a", STUDY.format(name='"my  study"'))
    write(tmp_path, "b", STUDY.format(name="my-study").replace("[1, 2]", "[8]"))
    seen = study_dags(tmp_path)["my-study"]
    monkeypatch.setenv("_AIRFLOW_PARSING_CONTEXT_DAG_ID", "my-study")
    assert set(study_dags(tmp_path)["my-study"].task_ids) == set(seen.task_ids)


def test_a_file_named_in_bytes_that_are_no_text_takes_nothing_down(tmp_path: Path) -> None:
    write(tmp_path, "two")
    name = os.fsencode(tmp_path) + b"/\xff.yaml"
    Path(os.fsdecode(name)).write_text("nonsense")
    dags = study_dags(tmp_path)
    assert len(dags) == 2
    assert all((dag.doc_md or "").encode() for dag in dags.values())


def test_a_study_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"study folder .*nowhere does not exist"):
        study_dags(tmp_path / "nowhere")


def test_mistakes_cannot_inject_markup_into_the_ui(tmp_path: Path) -> None:
    write(tmp_path, "bad", "study_name: bad\n<script>alert(1)</script>: 1\n")
    (dag,) = study_dags(tmp_path).values()
    assert "<script>" not in (dag.doc_md or "")


VERSIONS = """\
versions:
  - {name: r1, revision: aaa, released: 2026-01-01}
  - {name: r2, model: other, released: 2026-02-01}
"""


def test_both_orders_of_arguments_fill_the_namespace(tmp_path: Path) -> None:
    write(tmp_path, "two")
    first: dict[str, object] = {}
    second: dict[str, object] = {}
    study_dags(tmp_path, first)
    study_dags(second, tmp_path)
    assert [dag.dag_id for dag in first.values()] == [dag.dag_id for dag in second.values()] == ["two"]  # type: ignore[attr-defined] # a DAG


def test_a_call_without_a_folder_says_what_it_needs() -> None:
    with pytest.raises(TypeError, match="study_dags needs a folder of study files, not None"):
        study_dags({})


def test_versions_become_one_partition_per_release(tmp_path: Path) -> None:
    dag = study_dag(write(tmp_path, "two", STUDY.format(name="two") + VERSIONS))
    assert isinstance(dag.timetable, ModelReleaseTimetable)
    assert list(dag.timetable.releases) == ["r1", "r2"]
    assert "| `r2` | 2026-02-01 | other" in (dag.doc_md or "")
    assert dag.max_active_runs == 1


@pytest.mark.parametrize(
    ("releases", "message"),
    [
        (
            "  - {name: r1, released: 2026-01-01}\n  - {name: r2}\n",
            r"bad\.yaml:13:5: versions\[1\]: the release 'r2' has no date",
        ),
        (
            "  - {name: r1, released: 2026-01-01}\n  - {name: r2, released: 2026-01-01}\n",
            r"bad\.yaml:13:5: versions\[1\]: 'r1' and 'r2' are both released at 2026-01-01",
        ),
        (
            "  - {name: r1, released: 2026-01-01}\n  - {name: r1, released: 2026-01-02}\n",
            r"bad\.yaml:13:12: versions\[1\]\.name: 'r1' is there twice",
        ),
    ],
)
def test_releases_that_a_backfill_could_not_walk_over_are_mistakes_with_their_line(
    tmp_path: Path, releases: str, message: str
) -> None:
    path = write(tmp_path, "bad", STUDY.format(name="bad") + "versions:\n" + releases)
    with pytest.raises(StudyFileError, match=message):
        study_dag(path)


def test_a_schedule_beside_versions_is_a_mistake(tmp_path: Path) -> None:
    text = STUDY.format(name="bad").replace("owner: ada", 'owner: ada, schedule: "@daily"') + VERSIONS
    with pytest.raises(
        StudyFileError, match=r"airflow\.schedule: a study with `versions` runs once per release"
    ):
        study_dag(write(tmp_path, "bad", text))


def test_a_worker_builds_only_its_own_study_and_its_own_cycle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "two")
    write(tmp_path, "three")
    full = study_dags(tmp_path)["two"]
    wanted = next(t for t in full.tasks if isinstance(t, LLEMExperimentOperator))
    monkeypatch.setenv("_AIRFLOW_PARSING_CONTEXT_DAG_ID", "two")
    monkeypatch.setenv("_AIRFLOW_PARSING_CONTEXT_TASK_ID", wanted.task_id)
    monkeypatch.setenv("AIRFLOW__LLEM__PLAN_CACHE", str(tmp_path / "plans"))
    for _ in range(2):  # the first expands the study, the second reads what the first has kept
        dags = study_dags(tmp_path)
        assert set(dags) == {"two"}
        assert {t.task_id for t in dags["two"].tasks} == {"plan", wanted.task_id, "aggregate"}
        task = dags["two"].get_task(wanted.task_id)
        assert isinstance(task, LLEMExperimentOperator)
        assert task.experiment == wanted.experiment
        assert task.priority_weight == wanted.priority_weight
        assert set(dags["two"].params) == set(full.params)
    assert len(list((tmp_path / "plans").iterdir())) == 1


def test_a_worker_reads_no_other_experiment_of_its_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path, "two")
    wanted = next(task for task in study_dag(path).tasks if isinstance(task, LLEMExperimentOperator))
    monkeypatch.setenv("_AIRFLOW_PARSING_CONTEXT_DAG_ID", "two")
    monkeypatch.setenv("_AIRFLOW_PARSING_CONTEXT_TASK_ID", wanted.task_id)
    monkeypatch.setenv("AIRFLOW__LLEM__PLAN_CACHE", str(tmp_path / "plans"))
    study_dag(path)
    (entry,) = (tmp_path / "plans").iterdir()
    with closing(sqlite3.connect(entry)) as database, database:
        database.execute(
            "update row set body = 'no JSON' where kind = 'experiments' and name != ?", [wanted.experiment.id]
        )
    with caplog.at_level(logging.INFO, logger="llem_airflow.factory.plan_cache"):
        task = study_dag(path).get_task(wanted.task_id)
        assert isinstance(task, LLEMExperimentOperator)
        assert task.experiment == wanted.experiment
        assert not caplog.records
        assert len(tuple(task.study.experiments)) == 2
    assert "cannot be used" in caplog.text


def test_a_worker_of_a_mapped_study_finds_the_experiment_of_each_instance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, "two")
    whole = load_study(path)
    monkeypatch.setenv("_AIRFLOW_PARSING_CONTEXT_DAG_ID", "two")
    monkeypatch.setenv("_AIRFLOW_PARSING_CONTEXT_TASK_ID", "cycle")
    monkeypatch.setenv("AIRFLOW__LLEM__PLAN_CACHE", str(tmp_path / "plans"))
    for _ in range(2):
        cycle: Any = study_dag(path, render="mapped").get_task("cycle")
        rows = [(run.experiment_id, run.cycle, run.gap_before_s) for run in whole.plan.planned_cycles]
        assert [tuple(row.values()) for row in cycle.expand_input.value] == rows
        made = LLEMExperimentOperator(task_id="x", **cycle.partial_kwargs | cycle.expand_input.value[1])
        assert made.experiment == whole.experiment(rows[1][0])


def test_a_worker_finds_its_dag_also_where_its_name_is_written_in_an_unusual_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "file", STUDY.format(name="odd").replace("study_name: odd", '"study_name" : odd'))
    monkeypatch.setenv("_AIRFLOW_PARSING_CONTEXT_DAG_ID", "odd")
    assert "odd" in study_dags(tmp_path)


def test_a_large_study_is_one_mapped_task_whose_instances_are_the_planned_cycles(tmp_path: Path) -> None:
    text = STUDY.format(name="large").replace("[1, 2]", str(list(range(1, 503))))
    dag = study_dag(write(tmp_path, "large", text))
    assert set(dag.task_ids) == {"plan", "cycle", "aggregate"}
    plan = dag.get_task("plan")
    assert isinstance(plan, LLEMPlanOperator)
    assert len(plan.cycles) == 1004
    assert set(plan.cycles.values()) == {("cycle", index) for index in range(1004)}


def test_an_unknown_way_to_render_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="render 'tree' is not known; use one of: auto, static, mapped"):
        study_dag(write(tmp_path, "two"), render="tree")


def test_a_study_is_a_group_of_somebody_s_own_dag(tmp_path: Path) -> None:
    path = write(tmp_path, "two")
    with DAG("mine") as dag:
        before = EmptyOperator(task_id="before")
        after = EmptyOperator(task_id="after")
        group = StudyTaskGroup(path)
        before >> group >> after
    assert {"two.plan", "two.aggregate", "before", "after"} <= set(dag.task_ids)
    assert dag.get_task("two.plan").upstream_task_ids == {"before"}
    assert after.upstream_task_ids == {"two.aggregate"}
    cycle = next(t for t in dag.tasks if isinstance(t, LLEMExperimentOperator))
    assert cycle.retries == 3
    plan = dag.get_task("two.plan")
    assert isinstance(plan, LLEMPlanOperator)
    assert {task_id for task_id, _ in plan.cycles.values()} <= set(dag.task_ids)


def test_every_way_to_render_survives_airflow_s_serialization(tmp_path: Path) -> None:
    path = write(tmp_path, "two", STUDY.format(name="two") + VERSIONS)
    for render in ("static", "mapped"):
        stored = DagSerialization.to_dict(study_dag(path, render=render))
        assert set(DagSerialization.from_dict(stored).params) >= {"experiments", "dry_run", "version"}


def test_the_aggregate_updates_the_study_s_asset(tmp_path: Path) -> None:
    aggregate = study_dag(write(tmp_path, "two")).get_task("aggregate")
    assert [asset.uri for asset in aggregate.outlets] == ["llem://study/two"]


def test_what_a_file_becomes_depends_on_no_clock(tmp_path: Path) -> None:
    """The same files give the same plan before and after midnight: nothing that makes a DAG asks for the time."""
    text = STUDY.format(name="two").replace("interleave", "shuffle") + VERSIONS
    first, second = (DagSerialization.to_dict(study_dag(write(tmp_path, "two", text))) for _ in range(2))
    assert first == second
    package = Path(llem_airflow.__file__).parent
    makers = [
        *(package / "study").rglob("*.py"),
        *(package / "factory").rglob("*.py"),
        package / "runners" / "choice.py",
        package / "analysis" / "plan.py",
        package / "timetables" / "release_dates.py",
    ]
    made_before = {"plan_cache.py"}  # it keeps what a file became, and looks at the ages of what it keeps
    makers = [file for file in makers if file.name not in made_before]
    clocks = re.compile(r"\.(now|utcnow|today)\(|\btime\.(time|monotonic)\(")
    assert [file.name for file in makers if clocks.search(file.read_text("utf-8"))] == []
