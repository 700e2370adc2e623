"""A study that was expanded before is the same study, whatever became of the file that holds it."""

from __future__ import annotations

import logging
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from llem_airflow.factory.plan_cache import cached_study
from llem_airflow.study import Study, StudyFileError, load_study

SHIPPED = sorted((Path(__file__).parents[2] / "dags" / "studies").glob("*.y*ml"))
RICH = """\
study_name: rich
serving_mode: offline
base: base.yaml
engine: [transformers, vllm]
task: {model: m}
measurement: {power_hz: 20}
sweep:
  transformers.llem_execution.batch_size: [1, 2]
  task.random_seed: [1, 1.0, 2]
  vllm.engine_params.tensor_parallel_size: [1, 2]
runners: {transformers: process, vllm: "container:vllm:1"}
study_execution:
  n_cycles: 3
  experiment_order: shuffle
  precision_target: {relative_half_width: 0.05, min_cycles: 2, max_cycles: 4}
airflow:
  schedule: "0 2 * * *"
  timezone: Europe/Berlin
  window: "22:00-06:00"
  deadline: 4h
  tags: [a, b]
  notify_on: [failure]
  regression: {baseline: previous}
output: {save_timeseries: false}
"""
BASE = "task: {dataset: {source: builtin, n_prompts: 7}, max_output_tokens: 9}\n"


@pytest.fixture
def rich(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "rich.yaml").write_text(RICH)
    return tmp_path / "rich.yaml"


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return tmp_path / "plans"


def same(ours: Study, theirs: Study) -> bool:
    """Every value equal; sequences that are read late are read for that."""
    plan = ours.plan
    return theirs == replace(
        ours,
        plan=replace(
            plan,
            planned_cycles=tuple(plan.planned_cycles),
            skipped=tuple(plan.skipped),
            duplicates=tuple(plan.duplicates),
            experiments=tuple(plan.experiments),
        ),
    )


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_study_comes_back_as_it_was(path: Path, kept: Path) -> None:
    for _ in range(2):
        assert same(cached_study(path, kept), load_study(path))


def test_everything_that_a_study_can_say_comes_back_as_it_was(rich: Path, kept: Path) -> None:
    whole = load_study(rich)
    assert whole.plan.duplicates
    first, again = cached_study(rich, kept), cached_study(rich, kept)
    assert first == whole
    assert type(again.plan.experiments) is not tuple
    assert same(again, whole)
    assert again.plan.to_json() == whole.plan.to_json()


def test_one_experiment_and_one_cycle_are_found_by_name(rich: Path, kept: Path) -> None:
    whole = cached_study(rich, kept)
    stored = cached_study(rich, kept)
    wanted = whole.experiments[-1]
    assert stored.experiment(wanted.id) == wanted
    assert stored.plan.planned_cycle(wanted.id, 2) == whole.plan.planned_cycle(wanted.id, 2)
    assert stored.plan.planned_cycle(wanted.id, 99) is None
    with pytest.raises(KeyError, match=r"has no experiment 'nope'; it has "):
        stored.experiment("nope")


def test_a_changed_study_and_a_changed_base_are_expanded_anew(rich: Path, kept: Path) -> None:
    cached_study(rich, kept)
    rich.with_name("base.yaml").write_text(BASE.replace("7", "5"))
    assert cached_study(rich, kept).experiments[0].config["task"]["dataset"]["n_prompts"] == 5
    rich.write_text(RICH.replace("n_cycles: 3", "n_cycles: 3\n  allow_missing_cycles: true"))
    assert cached_study(rich, kept).execution.allow_missing_cycles
    assert same(cached_study(rich, kept), load_study(rich))


@pytest.mark.parametrize("damage", [b"", b"no database", None], ids=["empty", "garbage", "half"])
def test_an_entry_that_cannot_be_read_is_made_anew(rich: Path, kept: Path, damage: bytes | None) -> None:
    cached_study(rich, kept)
    (entry,) = kept.iterdir()
    entry.write_bytes(entry.read_bytes()[: entry.stat().st_size // 2] if damage is None else damage)
    assert same(cached_study(rich, kept), load_study(rich))
    assert type(cached_study(rich, kept).plan.experiments) is not tuple


@pytest.mark.parametrize("sql", ["delete from row where kind = 'experiments'", None])
def test_rows_that_are_gone_when_they_are_looked_at_are_expanded(
    rich: Path, kept: Path, sql: str | None
) -> None:
    cached_study(rich, kept)
    stored = cached_study(rich, kept)
    (entry,) = kept.iterdir()
    if sql is None:
        entry.unlink()
    else:
        with sqlite3.connect(entry) as database:
            database.execute(sql)
    whole = load_study(rich)
    assert stored.experiment(whole.experiments[0].id) == whole.experiments[0]
    assert same(stored, whole)


def test_processes_that_write_one_entry_at_a_time_leave_one_that_is_right(rich: Path, kept: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from llem_airflow.factory.plan_cache import cached_study; "
        "cached_study(sys.argv[1], Path(sys.argv[2]))"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(rich), str(kept)]) for _ in range(4)]
    assert [writer.wait() for writer in writers] == [0] * 4
    assert [file.suffix for file in kept.iterdir()] == [".sqlite"]
    assert same(cached_study(rich, kept), load_study(rich))


def test_a_folder_that_cannot_be_written_costs_time_only_and_is_named(
    rich: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        assert cached_study(rich, tmp_path / "file" / "plans") == load_study(rich)
    assert "[llem] plan_cache" in caplog.text


def test_problems_are_those_of_the_file(rich: Path, kept: Path) -> None:
    rich.write_text(RICH.replace("engine:", "engnie:"))
    for _ in range(2):
        with pytest.raises(StudyFileError, match=r"rich\.yaml:4:1: engnie"):
            cached_study(rich, kept)
    assert not kept.exists()
