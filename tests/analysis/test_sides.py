"""The two sides of a comparison: rows become sides, experiments meet, and conditions keep them apart."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llem_airflow.analysis import compare as comparing
from llem_airflow.analysis.compare import (
    COMPARED,
    TWO_RUNS,
    How,
    PairReport,
    compare_runs,
    compare_sides,
    matched,
    unmatched,
)
from llem_airflow.analysis.cycle import Cycle
from llem_airflow.analysis.flags import Flag
from llem_airflow.analysis.plan import Planned
from llem_airflow.analysis.summary import summarise
from llem_airflow.analysis.tables import (
    CYCLES_SCHEMA,
    EXPERIMENTS_SCHEMA,
    RunRows,
    Side,
    column_meanings,
    cycle_rows,
    cycles_table,
    experiments_table,
)
from llem_airflow.analysis.verdict import Verdict, compare
from llem_airflow.results import ResultReadError, ResultsRoot, StoredRun, layout
from tests.web.written import ENERGY, written

SPEED = "output_tokens_per_s"
A, B = "a-aaaaaaaa", "b-bbbbbbbb"
VALUES = [1.0, 1.01, 0.99]


@pytest.fixture
def run(tmp_path: Path) -> StoredRun:
    return ResultsRoot(tmp_path).run("study", "run")


def row(cycle: int, joules: float | None = 1.0, **changes: Any) -> dict[str, Any]:
    given = {
        "experiment": A, "cycle": cycle, "status": "valid", "position": cycle - 1, "hash": "a" * 16,
        "doubtful": False, "energy_kind": "measured", "fingerprint": '{"driver": "550"}',
        ENERGY: joules, SPEED: 10.0,
    }  # fmt: skip
    return {**given, **changes}


def side(run: StoredRun, *rows: dict[str, Any], **changes: Any) -> Side:
    return replace(Side(run, A, rows), **changes)


# rows


def test_a_side_has_values_places_and_conditions_by_cycle(run: StoredRun) -> None:
    found = side(
        run,
        row(1, fingerprint='{"driver": "560", "gpus": [{"b": 1, "a": 2}]}'),
        row(2, float("nan"), position=None),
        row(3, float("inf"), fingerprint=None),
        row(4, None, fingerprint='{"gpus": [{"a": 2, "b": 1}], "driver": "550"}'),
    )
    assert found.name == f"study/run#{A}"
    assert found.values(ENERGY) == {1: 1.0}
    assert found.values(SPEED) == dict.fromkeys((1, 2, 3, 4), 10.0)
    assert found.values("no_such_metric") == {}
    assert found.positions() == {1: 0, 3: 2, 4: 3}
    assert found.conditions() == {"driver": ['"550"', '"560"'], "gpus": ['[{"a": 2, "b": 1}]']}


def test_rows_of_a_run_become_sides_without_what_has_no_result(run: StoredRun) -> None:
    plan = {"experiments": [{"id": A, "config": {"x": {"y": 1, "z": 2}}}, {"id": B}]}
    run.write_plan("", plan, {})
    rows = RunRows(
        run,
        (
            row(1, doubtful=True),
            row(2, status="failed", hash=""),
            row(3, status="invalid_energy"),
            row(1, experiment=B, hash=""),
            row(0, experiment=None, status="skipped"),
        ),
    )
    assert RunRows.of(rows) is rows
    assert rows.hashes == {A: "a" * 16, B: ""}
    every = rows.sides()
    assert list(every) == [A, B]
    assert [each["cycle"] for each in every[A].rows] == [1, 3]
    assert (every[A].excluded, every[A].beside, every[A].config) == ((), 2, {"x": {"y": 1, "z": 2}})
    strict = rows.side(A, without_flagged=True)
    assert ([each["cycle"] for each in strict.rows], strict.excluded) == ([3], (1,))
    assert rows.sides(without_flagged=True)[A] == strict
    assert every[B].config == {}
    with pytest.raises(ResultReadError, match=rf"no experiment 'none'; there are: {A}, {B}$"):
        rows.side("none")
    assert rows.by_all_but("x.y") == {'{"x": {"z": 2}}': A, "{}": B}
    assert rows.by_all_but("x") == {"{}": B}
    assert rows.by_all_but("x.y.deeper") == {'{"x": {"y": 1, "z": 2}}': A, "{}": B}


def test_a_table_that_is_absent_or_lacks_a_column_is_told_with_what_to_do(run: StoredRun) -> None:
    with pytest.raises(ResultReadError, match=r"not aggregated yet; `llem-airflow report .* does it"):
        cycle_rows(run)
    table = cycles_table("s", "r", [Cycle(A, 1, "missing", "lost", None)], Planned({}, (), ()))
    for absent in ("experiment", "cycle", "status", "hash", "reason", "flags", "energy_kind", "energy_j"):
        with run.folder.atomic_write(layout.CYCLES_TABLE) as file:
            pq.write_table(table.drop_columns([absent]), file)
        with pytest.raises(ResultReadError, match=rf"no column '{absent}'; .*--again` makes the table anew"):
            cycle_rows(run)


def test_tables_have_a_row_for_each_cycle_experiment_and_point_that_was_left_out() -> None:
    plan = Planned(
        {},
        tuple((A, k) for k in range(1, 21)),
        ({"reason": "no", "rule": "r", "point": {"b": 1, "a": 2}}, {"rule": "r"}),
    )
    warned = (Flag("gap", "", "", "", "warning"),)
    rows = [
        Cycle(
            A, k, "valid", position=k, hash="h", gpus=("g",), flags=warned, started_epoch_ns=5, finished_epoch_ns=6,
            fingerprint={"b": 1, "a": 2}, energy_kind="measured", measures={ENERGY: 1.0 + k / 100},
        )
        for k in range(1, 21)
    ]  # fmt: skip
    table = cycles_table("s", "r", rows, plan)
    assert table.schema == CYCLES_SCHEMA
    assert table.schema.metadata == {b"llem_schema_version": b"1"} == EXPERIMENTS_SCHEMA.metadata
    first, *_, left_out, unnamed = table.to_pylist()
    names = (
        "study",
        "run_id",
        "experiment",
        "cycle",
        "hash",
        "gpus",
        "flags",
        "doubtful",
        "fingerprint",
        ENERGY,
    )
    assert [first[name] for name in names] == [
        "s", "r", A, 1, "h", ["g"], ["gap"], True, '{"a": 2, "b": 1}', 1.01,
    ]  # fmt: skip
    assert [table.column(name).cast(pa.int64())[0].as_py() for name in ("started", "finished")] == [5, 6]
    assert (left_out["status"], left_out["reason"]) == ("skipped", 'no ({"a": 2, "b": 1})')
    assert (unnamed["reason"], unnamed["run_id"], unnamed["experiment"]) == ("r", "r", None)
    (found,) = experiments_table(summarise("s", "r", plan, rows)).to_pylist()
    assert (found["study"], found["run_id"], found["experiment"], found["valid"]) == ("s", "r", A, 20)
    assert (found["factors"], found["statuses"]) == ("{}", '{"valid": 20}')
    assert set(found["flags"]) == {"gap"}
    assert found[ENERGY] == pytest.approx(1.105)
    assert (found[f"{ENERGY}_n"], found[f"{ENERGY}_median"]) == (20, pytest.approx(1.105))
    keys = ("low", "bca_low", "bca_high", "high")
    low, bca_low, bca_high, high = (found[f"{ENERGY}_{key}"] for key in keys)
    sd = (20 * 21 / 12) ** 0.5 / 100  # of 1 to n it is sqrt(n (n + 1) / 12)
    half = 2.093024 * sd / 20**0.5  # t(0.975, 19)
    assert high == pytest.approx(1.105 * math.exp(half / 1.105))
    assert low == pytest.approx(1.105 * math.exp(-half / 1.105))
    assert (bca_low, bca_high) == pytest.approx((low, high), abs=0.005)
    assert (bca_low, bca_high) != (low, high)


def test_a_metric_is_described_with_its_unit() -> None:
    told = {(table, name): meaning for table, name, meaning in column_meanings()}
    assert told["cycles", ENERGY] == "energy of the measurement window / tokens generated in it, in J/token"


# which experiments meet


def hashed(run: StoredRun, **hashes: str) -> RunRows:
    return RunRows(run, tuple(row(1, experiment=name, hash=value) for name, value in hashes.items()))


def test_experiments_meet_by_identity_and_then_by_name(run: StoredRun) -> None:
    ours = hashed(run, same="1", moved="2", renamed="3", gone="4", unknown="")
    theirs = hashed(run, new="9", moved="7", renamed_now="3", same="1", unknown="")
    assert matched(ours, theirs) == {
        "same": "same", "moved": "moved", "renamed": "renamed_now", "unknown": "unknown",
    }  # fmt: skip
    assert unmatched(ours, theirs) == (["gone"], ["new"])
    # What has taken an identity is not taken again by its name.
    assert matched(hashed(run, x="1", y="2"), hashed(run, x="2", y="3")) == {"y": "x"}
    assert list(matched(hashed(run, b="1", a="2"), hashed(run, a="2", b="1"))) == ["b", "a"]


def test_experiments_meet_by_all_but_a_factor(tmp_path: Path) -> None:
    root = ResultsRoot(tmp_path)
    before = written(root, {A: VALUES, B: VALUES}, night=0, config={"task": {"model": "m1"}})
    after = written(root, {A: VALUES, B: VALUES}, night=1, config={"task": {"model": "m2"}})
    assert matched(RunRows.of(before), RunRows.of(after), "task.model") == {A: A, B: B}
    assert unmatched(before, after, "vllm.batch_size") == ([A, B], [A, B])
    assert compare_runs(before, after, How(factor="vllm.batch_size")) == []


# conditions


def conditions(**fields: Any) -> str:
    return json.dumps(fields)


def test_conditions_that_differ_keep_two_sides_apart_unless_they_are_ignored(run: StoredRun) -> None:
    one = side(run, *(row(k, fingerprint=conditions(driver="1", gpus=[1], image_digest="x")) for k in (1, 2)))
    other = side(run, *(row(k, fingerprint=conditions(driver="2", gpus=[1], meter="m")) for k in (1, 2)))
    found = compare_sides(one, other, How(answers=False))
    assert found.differences == {"driver": ["1", "2"], "meter": [None, "m"]}
    assert found.factors == {"image_digest": ["x", None]}
    assert (found.verdict, found.metrics, found.caution) == (Verdict.NOT_COMPARABLE, {}, "")
    ignoring = compare_sides(one, other, How(ignore=("driver", "meter"), answers=False))
    assert (ignoring.differences, list(ignoring.metrics)) == ({}, [ENERGY, SPEED])
    assert list(compare_sides(one, one, How(metric=SPEED, answers=False)).metrics) == [SPEED, ENERGY]


def test_a_side_whose_own_cycles_differ_is_not_comparable_with_itself(run: StoredRun) -> None:
    mixed = side(run, row(1), row(2, fingerprint='{"driver": "560"}'))
    found = compare_sides(mixed, mixed, How(answers=False))
    assert found.differences == {"driver": [["550", "560"]] * 2}


def test_a_side_without_a_result_is_told_by_its_number_of_cycles(run: StoredRun) -> None:
    found = compare_sides(side(run, row(1)), side(run), How(answers=False))
    assert found.differences == {"cycles_with_a_result": [1, 0]}


def test_estimates_and_cycles_that_were_left_out_are_told(run: StoredRun) -> None:
    guess, sure = side(run, row(1, energy_kind="estimate")), side(run, row(1), excluded=(4,))
    assert [
        compare_sides(*pair, How(answers=False)).estimate
        for pair in ((guess, sure), (sure, guess), (sure, sure))
    ] == [True, True, False]
    assert compare_sides(guess, sure, How(answers=False)).excluded == {"baseline": [], "candidate": [4]}


def test_answers_that_cannot_be_read_are_none(run: StoredRun) -> None:
    assert compare_sides(side(run, row(1)), side(run, row(1))).answers is None


@pytest.mark.parametrize(
    ("ours", "theirs", "factors", "named"),
    [
        ({}, {}, {"model": ["a", "b"]}, {"model": ["a", "b"]}),
        ({}, {}, {"experiment_hash": ["1", "2"]}, {"experiment_hash": ["1", "2"]}),
        ({}, {}, {"experiment_hash": ["1", "2"], "model": ["a", "b"]}, {"model": ["a", "b"]}),
        (
            {"task": {"model": "a", "n": 1}},
            {"task": {"model": "b", "n": 2}},
            {"experiment_hash": ["1", "2"], "model": ["a", "b"]},
            {"task.n": [1, 2], "model": ["a", "b"]},
        ),
    ],
)
def test_a_hash_gives_way_to_the_keys_that_differ(
    run: StoredRun,
    ours: dict[str, Any],
    theirs: dict[str, Any],
    factors: dict[str, Any],
    named: dict[str, Any],
) -> None:
    assert comparing._named(factors, side(run, config=ours), side(run, config=theirs)) == named


# pairs


def test_pairs_are_the_cycles_that_both_have_next_to_each_other(run: StoredRun) -> None:
    one = side(run, *(row(k, 1.0 + k / 100, position=2 * k) for k in (1, 2, 3)), beside=2)
    other = side(run, *(row(k, 1.1 + k / 100, position=2 * k + 1) for k in (2, 3, 4)), beside=2)
    found = compare_sides(one, other, How(paired=True, answers=False)).metrics[ENERGY]
    assert (found.method, found.n_baseline, found.n_candidate) == ("paired", 2, 2)
    assert found.difference_ratio == pytest.approx(0.1 / 1.025)
    lonely = side(run, row(7, position=0), beside=2)
    assert compare_sides(one, lonely, How(paired=True, answers=False)).metrics == {}
    far = side(run, row(2, position=6), row(3, position=8), beside=2)
    with pytest.raises(
        ValueError, match=r"are no pairs: cycles 2, 3 were not measured next to each other; measure"
    ):
        compare_sides(one, far, How(paired=True))


def test_a_caution_is_for_a_change_between_two_runs() -> None:
    def report(candidate: str, verdict: Verdict) -> PairReport:
        metric = {ENERGY: replace(compare(VALUES, VALUES, "lower"), verdict=verdict)}
        return PairReport("s/r#a", candidate, metric, {}, {}, None, False)

    assert [report("s/q#a", verdict).caution for verdict in Verdict] == [
        TWO_RUNS if verdict in {Verdict.REGRESSION, Verdict.IMPROVEMENT} else "" for verdict in Verdict
    ]
    assert report("s/r#b", Verdict.REGRESSION).caution == ""
    nothing = PairReport("s/r#a", "s/q#a", {}, {}, {}, None, False)
    assert (nothing.verdict, nothing.verdict_on(ENERGY)) == (Verdict.NOT_ENOUGH_EVIDENCE,) * 2
    assert COMPARED[0] == ENERGY
