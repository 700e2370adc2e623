"""What the rules keep stays, whatever they are; what killed processes left goes, and nothing else."""

from __future__ import annotations

import math
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llem_airflow.analysis.aggregate import aggregate_run
from llem_airflow.results import ResultsRoot, StoredRun, layout
from llem_airflow.results.cleanup import locked_folder, removable, remove, remove_orphans
from llem_airflow.results.folder import ABANDONED_NS
from tests.results.recorded import EPOCH_NS, Recording, S, plan_json, provenance

HOUR_LATER_NS = ABANDONED_NS + 10**9
DAY_NS = 86_400_000_000_000
NOW_NS = 20_000 * DAY_NS
EXPERIMENT = "tiny-01234567"


def _age_ns(root: Path) -> int:
    """An hour and a second after the newest file."""
    return max(path.stat().st_mtime_ns for path in root.rglob("*")) + HOUR_LATER_NS


def _killed(root: Path) -> list[str]:
    """What a killed commit, a killed write and a killed removal leave."""
    run = ResultsRoot(root).run("nightly", "r")
    run.commit_cycle("tiny-1", 1, Recording().write(root.parent / "out"), provenance())
    folder = Path(run.url)
    for path in (
        folder / ".staging" / "commit-1" / "power.csv",
        folder / ".staging" / ".commit-2" / "power.csv",
        folder / f".summary.json.{'0' * 32}",
        folder / "experiments" / "tiny-1" / "cycle-1" / f".power.parquet.{'1' * 32}",
        folder.parent / ".removed-1" / "summary.json",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
    return sorted(str(path.relative_to(folder.parent)) for path in folder.parent.rglob("*") if path.is_file())


def test_what_killed_processes_left_goes_after_an_hour_and_nothing_else(tmp_path: Path) -> None:
    root = tmp_path / "results"
    before = _killed(root)
    study, run = ResultsRoot(root).folder.child("nightly"), ResultsRoot(root).run("nightly", "r")
    now_ns = _age_ns(root)
    removed = remove_orphans(study, now_ns)
    after = sorted(
        str(path.relative_to(study.path)) for path in Path(study.path).rglob("*") if path.is_file()
    )
    assert after == [name for name in before if "/." not in name and not name.startswith(".")]
    assert len(removed) == 5
    assert run.is_committed("tiny-1", 1)
    assert not (Path(run.url) / ".staging").exists()


def test_what_is_younger_than_an_hour_stays(tmp_path: Path) -> None:
    root = tmp_path / "results"
    _killed(root)
    study = ResultsRoot(root).folder.child("nightly")
    assert remove_orphans(study, _age_ns(root) - 2 * 10**9) == []


def test_a_commit_that_takes_hours_is_not_swept(tmp_path: Path) -> None:
    run = ResultsRoot(tmp_path).run("nightly", "r")
    with locked_folder(Path(run.url) / ".staging", "commit-", mode=0o700) as folder:
        (folder / "power.csv").write_text("so far")
        os.utime(folder, (0, 0))
        assert remove_orphans(ResultsRoot(tmp_path).folder.child("nightly"), _age_ns(tmp_path)) == []
        assert (folder / "power.csv").read_text() == "so far"


def test_an_object_store_has_nothing_to_sweep() -> None:
    assert remove_orphans(ResultsRoot("memory://orphans").folder.child("nightly"), 0) == []


def test_old_runs_can_be_removed(root: ResultsRoot, run: StoredRun, tmp_path: Path) -> None:
    run.write_plan("model: tiny\n", plan_json([(EXPERIMENT, Recording().hash, {})], cycles=1), {})
    run.commit_cycle(EXPERIMENT, 1, Recording().write(tmp_path / "out"), provenance())
    aggregate_run(run)
    found = removable(root, now_epoch_ns=EPOCH_NS + 40 * 86_400 * S, keep_days=30)
    assert [(item.run.url, item.reason) for item in found] == [(run.url, "40 days old")]
    assert found[0].size_bytes > 1000
    remove(found)
    assert root.runs() == []


@dataclass(frozen=True)
class Made:
    """A run as a test makes it; ``age_days`` None where nobody knows when it began."""

    study: str
    name: str
    age_days: int | None
    done: bool


@st.composite
def runs(draw: st.DrawFn) -> list[Made]:
    ages = draw(st.lists(st.one_of(st.none(), st.integers(-2, 60)), max_size=8))
    return [
        Made(draw(st.sampled_from(["nightly", "weekly", "a b/c"])), f"r{number}", age, draw(st.booleans()))
        for number, age in enumerate(ages)
    ]


def write(root: ResultsRoot, made: list[Made]) -> None:
    for each in made:
        run = root.run(each.study, each.name)
        started = {} if each.age_days is None else {"started_epoch_ns": NOW_NS - each.age_days * DAY_NS}
        run.write_plan("x: 1\n", {}, started)
        if each.done:
            run.folder.write(layout.SUMMARY, b"{}")


def kept(made: list[Made], keep_runs: int | None, keep_days: float | None, study: str | None) -> set[str]:
    """The specification: what stays."""
    stays = set()
    for one in made:
        newer = [
            other
            for other in made
            if other.study == one.study
            and other.done
            and other.age_days is not None
            and one.age_days is not None
            and (-other.age_days, other.name) > (-one.age_days, one.name)
        ]
        if (
            not one.done
            or one.age_days is None
            or (study is not None and one.study != study)
            or (keep_runs is not None and len(newer) < keep_runs)
            or (keep_days is not None and one.age_days < keep_days)
        ):
            stays.add(one.name)
    return stays


@settings(deadline=None, max_examples=60)
@given(
    made=runs(),
    keep_runs=st.one_of(st.none(), st.integers(0, 10)),
    keep_days=st.one_of(st.none(), st.sampled_from([0.0, 0.5, 7.0, 30.0, 1e9, math.inf])),
    study=st.sampled_from([None, "nightly", "a b/c", "no such"]),
)
def test_exactly_what_no_rule_keeps_may_go(
    made: list[Made], keep_runs: int | None, keep_days: float | None, study: str | None
) -> None:
    if keep_runs is None and keep_days is None:
        keep_runs = 3
    with tempfile.TemporaryDirectory() as folder:
        root = ResultsRoot(Path(folder))
        write(root, made)
        found = removable(root, now_epoch_ns=NOW_NS, keep_runs=keep_runs, keep_days=keep_days, study=study)
        stay = kept(made, keep_runs, keep_days, study)
        assert {item.run.run_id for item in found} == {one.name for one in made} - stay
        remove(found)
        assert {run.run_id for run in root.runs()} == stay


@pytest.mark.parametrize("rule", [{"keep_runs": -1}, {"keep_days": -0.5}, {"keep_days": math.nan}, {}])
def test_a_rule_that_means_nothing_is_refused(tmp_path: Path, rule: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="keep"):
        removable(ResultsRoot(tmp_path), now_epoch_ns=NOW_NS, **rule)  # type: ignore[arg-type]  # by name
