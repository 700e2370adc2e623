"""Whatever the rules, what they keep stays: checked against the rules written out plainly."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llem_airflow.results import ResultsRoot, layout
from llem_airflow.results.cleanup import removable, remove

DAY_NS = 86_400_000_000_000
NOW_NS = 20_000 * DAY_NS


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
