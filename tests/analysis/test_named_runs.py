"""Which runs a name means, what is compared with which, and what is around a night: runs written as tables alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llem_airflow.analysis.compare import How
from llem_airflow.analysis.compare_named import (
    PreviousRun,
    against_previous,
    compare_each,
    compare_named,
    named_runs,
    previous_run,
    run_of_release,
    runs_of_releases,
)
from llem_airflow.analysis.history import ChangePoint
from llem_airflow.analysis.nights import (
    AROUND,
    Around,
    Measured,
    Night,
    changes_around,
    measured,
)
from llem_airflow.analysis.verdict import Verdict
from llem_airflow.results import ResultReadError, ResultsRoot, StoredRun, layout
from llem_airflow.results.store import NoSuchRunError
from tests.web.written import BEGAN_NS, DAY_NS, ENERGY, GPU, written

A, B = "a-aaaaaaaa", "b-bbbbbbbb"
CHEAP, DEAR = [1.0, 1.01, 0.99], [1.2, 1.21, 1.19]


@pytest.fixture
def root(tmp_path: Path) -> ResultsRoot:
    return ResultsRoot(tmp_path)


def night(root: ResultsRoot, number: int, version: str | None = None, **values: list[float]) -> StoredRun:
    by_id = {f"{name}-{name * 8}": each for name, each in (values or {"a": CHEAP}).items()}
    return written(root, by_id, night=number, meta={"version": version} if version else None)


def broken_off(run: StoredRun) -> None:
    assert run.folder.local is not None
    (run.folder.local / layout.SUMMARY).unlink()


def ids(runs: list[StoredRun]) -> list[str]:
    return [run.run_id for run in runs]


def test_the_previous_run_is_the_newest_before_of_the_same_release(root: ResultsRoot) -> None:
    runs = [night(root, 0), night(root, 1, "v1"), night(root, 2), night(root, 3, "v1"), night(root, 4)]
    broken_off(runs[2])
    before = [previous_run(run) for run in runs]
    assert [one and one.run_id for one in before] == [None, None, "r000", "r001", "r000"]
    assert against_previous(runs[0]) is None


def test_releases_are_known_by_their_newest_aggregated_run(root: ResultsRoot) -> None:
    assert runs_of_releases("nightly", root) == {}
    runs = [
        night(root, 0, "v1"),
        night(root, 1, "org/v@2"),
        night(root, 2, "v1"),
        night(root, 3, "v3"),
        night(root, 4),
    ]
    broken_off(runs[3])
    assert {name: run.run_id for name, run in runs_of_releases("nightly", root).items()} == {
        "org/v@2": "r001",
        "v1": "r002",
    }
    newest = run_of_release("nightly", "v1", root)
    assert newest is not None
    assert newest.run_id == "r002"
    assert run_of_release("nightly", "v3", root) is None
    assert ids(named_runs("nightly@*", root)) == ["r001", "r002"]
    assert ids(named_runs("nightly@org/v@2", root)) == ["r001"]
    assert ids(named_runs("nightly/r003", root)) == ["r003"]
    with pytest.raises(
        NoSuchRunError, match=r"release 'v3' of study 'nightly' under .*; releases: org/v@2, v1$"
    ):
        named_runs("nightly@v3", root)
    with pytest.raises(NoSuchRunError):
        named_runs("other@v1", root)  # no such study: a run's name may have an @


def test_where_no_run_has_a_release_it_is_said(root: ResultsRoot) -> None:
    night(root, 0)
    for text in ("nightly@v1", "nightly@*"):
        with pytest.raises(NoSuchRunError, match=r"releases: none$"):
            named_runs(text, root)


def test_every_release_is_compared_with_one_and_not_with_itself(root: ResultsRoot) -> None:
    for number, (version, values) in enumerate({"v1": CHEAP, "v2": DEAR, "v3": CHEAP}.items()):
        night(root, number, version, a=values, b=CHEAP)
    found = compare_named("nightly@v1#", ["nightly@*"], root, How())
    assert [(one.baseline, one.candidate, one.verdict) for one in found.reports] == [
        (f"nightly/r000#{A}", f"nightly/r001#{A}", Verdict.REGRESSION),
        (f"nightly/r000#{B}", f"nightly/r001#{B}", Verdict.UNCHANGED),
        (f"nightly/r000#{A}", f"nightly/r002#{A}", Verdict.UNCHANGED),
        (f"nightly/r000#{B}", f"nightly/r002#{B}", Verdict.UNCHANGED),
    ]
    assert (found.same, found.notes, found.without_baseline) == ((), [], ())


def test_what_only_one_side_has_is_listed_once_and_what_has_no_run_before_is_told(root: ResultsRoot) -> None:
    first, second = night(root, 0, a=CHEAP, b=CHEAP), night(root, 1, a=CHEAP, c=CHEAP)
    third = night(root, 2, a=CHEAP)
    found = compare_named("nightly/r000", ["nightly/r001", "nightly/r002"], root, How())
    assert (found.only_baseline, found.only_candidate) == (
        (f"{first.url}#{B}",),
        (f"{second.url}#c-cccccccc",),
    )
    each = compare_each(first, [second, third], How())
    assert (each.only_baseline, each.only_candidate) == ((f"{first.url}#{B}",) * 2, found.only_candidate)
    assert [one.candidate for one in each.reports] == [f"nightly/r001#{A}", f"nightly/r002#{A}"]
    found = compare_named("previous", ["nightly/r000", "nightly/r002"], root, How())
    assert found.without_baseline == (first.url,)
    assert [one.baseline for one in found.reports] == [f"nightly/r001#{A}"]
    assert compare_named("", [""], root, How(), own=third).same == (third.url,)


def test_what_is_compared_with_itself_is_told(root: ResultsRoot) -> None:
    run = night(root, 0, a=CHEAP, b=CHEAP)
    assert compare_each(run, [run], How()).same == (run.url,)
    found = compare_named("nightly/r000", ["nightly/r000", "nightly"], root, How())
    assert found.same == (run.url, run.url)
    assert found.notes[0].startswith(f"{run.url}: both sides are the same run, so nothing can differ; ")
    found = compare_named(f"nightly#{A}", [f"nightly#{B}", f"nightly#{A}"], root, How())
    assert found.same == (f"{run.url}#{A}",)
    assert [one.candidate for one in found.reports] == [f"nightly/r000#{B}", f"nightly/r000#{A}"]


@pytest.mark.parametrize(
    ("baseline", "candidate", "said"),
    [
        (f"nightly#{A}", "nightly", "name an experiment on both sides, or on neither"),
        ("nightly", f"nightly#{A}", "name an experiment on both sides, or on neither"),
        ("nightly@*", "nightly", r"'nightly@\*' names 2 runs; name one reference run"),
        ("", "nightly", "the run of this DAG run, and there is none here"),
        (f"nightly#{A}", "nightly#none", "none"),
    ],
)
def test_names_that_do_not_fit_are_refused(
    root: ResultsRoot, baseline: str, candidate: str, said: str
) -> None:
    night(root, 0, "v1")
    night(root, 1, "v2")
    with pytest.raises((ValueError, ResultReadError), match=said):
        compare_named(baseline, [candidate], root, How())


def test_how_to_compare_is_checked() -> None:
    assert How() == How(ENERGY, 0.02, None, (), False, False, True)
    for wrong in ({"threshold_ratio": 0.0}, {"metric": "no_such_metric"}):
        with pytest.raises(ValueError, match=r"threshold|no_such_metric"):
            How(**wrong)


def test_the_previous_run_is_told_with_verdicts_and_intervals(root: ResultsRoot) -> None:
    night(root, 0, a=CHEAP, b=CHEAP)
    found = against_previous(night(root, 1, a=DEAR, c=CHEAP))
    assert found is not None
    assert (found.run_id, found.started_epoch_ns) == ("r000", BEGAN_NS)
    assert (found.new, found.gone, found.problem) == (("c-cccccccc",), (B,), "")
    (report,) = found.reports
    assert next(iter(report.metrics)) == ENERGY  # the metric whose verdict counts
    told = found.told()
    assert list(told) == [
        "schema_version",
        "run_id",
        "started_epoch_ns",
        "problem",
        "new",
        "gone",
        "experiments",
    ]
    assert (told["schema_version"], told["new"], told["gone"]) == (1, ["c-cccccccc"], [B])
    changed = told["experiments"][A]
    assert changed["verdict"] == "regression"
    low, high = report.metrics[ENERGY].low_ratio, report.metrics[ENERGY].high_ratio
    assert changed["changes"][ENERGY] == [pytest.approx(0.2), low, high]
    whole = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert whole["history"][A]["runs"] == 2
    assert (whole["history"][A]["verdict"], whole["history"][A]["changes"]) == ("regression", [])
    assert (whole["new"], whole["gone"], len(whole["comparisons"])) == (["c-cccccccc"], [B], 1)
    changed_at = ChangePoint(1, "r001", 10.0, 12.0, 0.2, 1e-4, Verdict.REGRESSION)
    seen = replace(found.history[A], changes=(changed_at,))
    assert list(whole) == ["run_id", "started_epoch_ns", "problem", "comparisons", "new", "gone", "history"]
    assert replace(found, history={A: seen}).to_json()["history"][A] == {
        "verdict": "regression",
        "state": seen.state,
        "runs": 2,
        "changes": [{"run": "r001", "ratio": 0.2, "p": 1e-4}],
        "note": seen.note,
    }
    endless = replace(report.metrics[ENERGY], low_ratio=None, high_ratio=float("inf"))
    told = replace(found, reports=(replace(report, metrics={ENERGY: endless}),)).told()
    assert told["experiments"][A]["changes"][ENERGY] == [pytest.approx(0.2), None, None]


def test_the_history_has_the_verdict_where_conditions_do_not_differ(root: ResultsRoot) -> None:
    night(root, 0)
    found = against_previous(night(root, 1, a=DEAR))
    assert found is not None
    (report,) = found.reports
    calm = replace(found.history[A], verdict=Verdict.UNCHANGED)
    known = replace(found, history={A: calm})
    assert known.verdict_of(report) is Verdict.UNCHANGED
    assert known.verdict_of(replace(report, differences={"gpus": [1, 2]})) is Verdict.NOT_COMPARABLE
    assert PreviousRun("r", 0).verdict_of(report) is Verdict.REGRESSION


def test_a_run_before_that_does_not_read_is_told_with_its_problem(root: ResultsRoot) -> None:
    night(root, 0).folder.write(layout.CYCLES_TABLE, b"PAR1")
    found = against_previous(night(root, 1))
    assert found is not None
    assert (found.run_id, found.reports, found.history) == ("r000", (), {})
    assert layout.CYCLES_TABLE in found.problem


# nights


def test_a_night_has_the_values_of_each_experiment_and_what_was_around_it(root: ResultsRoot) -> None:
    run = written(root, {A: [1.0, 2.0], B: [3.0]}, fingerprint={"gpus": [GPU, {"uuid": "GPU-2"}, "odd"]})
    one, other = measured(run, ENERGY)
    assert (one.experiment, one.identity, one.values) == (A, "aaaaaaaa00000000", (1.0, 2.0))
    assert (other.experiment, other.values, other.conditions) == (B, (3.0,), one.conditions)
    assert dict(one.around) == {
        "engine": "vllm 0.11",
        "image": "sha256:1",
        "driver": "550.1",
        "gpu": "NVIDIA H100, GPU-2",
        "measured by": "1.0",
    }
    kind, digest = one.conditions.split(" ")
    assert (kind, len(digest)) == ("measured", 16)
    assert measured(run, "ttft_p99_s") == ()
    factor, condition = ({"engine_version": "0.12"}, {"driver": "560.0"})
    assert _conditions(root, 1, factor) == _conditions(root, 2, {}) != _conditions(root, 3, condition)
    bare = {"engine_version": "", "image_digest": None, "driver": None, "gpus": None, "measured_by": None}
    (alone,) = measured(written(root, {A: [1.0]}, night=4, fingerprint=bare), ENERGY)
    assert dict(alone.around) == {"engine": "vllm"}


def _conditions(root: ResultsRoot, number: int, fingerprint: dict[str, Any]) -> str:
    return measured(written(root, {A: [1.0]}, night=number, fingerprint=fingerprint), ENERGY)[0].conditions


def test_what_changed_around_an_experiment_is_told_by_the_first_run_with_the_new_one() -> None:
    def at(number: int, release: str, experiment: str = A, **around: str) -> Night:
        one = Measured(experiment, "a" * 16, (1.0,), "", {**around, "other": str(number)})
        return Night(f"r{number}", number * DAY_NS, release, (one,))

    nights = [
        at(0, "v1", engine="vllm 1"),
        at(1, "", B, engine="vllm 9"),
        at(2, "v1", driver="550"),
        at(3, "v2", engine="vllm 2", driver="550"),
        at(4, "", engine="vllm 2"),
        at(5, "v1", driver="560"),
    ]
    assert changes_around(nights) == {
        A: [
            Around("r3", "release", "v1", "v2"),
            Around("r3", "engine", "vllm 1", "vllm 2"),
            Around("r5", "release", "v2", "v1"),
            Around("r5", "driver", "550", "560"),
        ]
    }
    assert AROUND == ("release", "engine", "image", "driver", "gpu", "measured by")
