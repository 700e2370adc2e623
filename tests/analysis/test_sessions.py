"""Cycles that shared a container: their number is stated, and a drift from first to later places is found."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from llem_airflow.analysis.checks import restarts
from llem_airflow.analysis.cycle import Cycle, fingerprint
from llem_airflow.analysis.flags import Flag
from llem_airflow.analysis.sessions import leakage, session_flags, sessions_text
from llem_airflow.analysis.summary import setup
from llem_airflow.results import CycleRef
from llem_airflow.results.folder import Folder
from tests.results.recorded import Recording


def cycles(
    leak: float,
    *,
    experiments: int = 6,
    passes: int = 6,
    noise: float = 0.005,
    seed: int = 1,
    fixed: bool = False,
) -> list[Cycle]:
    """One load, each pass with its experiments at other places; each later place costs ``leak`` more."""
    random = np.random.default_rng(seed)
    rows = []
    for number in range(1, passes + 1):
        order = np.arange(experiments) if fixed else random.permutation(experiments)
        for place, index in enumerate(order):
            energy_j = (1 + index) * (1 + leak * (place > 0)) * np.exp(random.normal(0, noise))
            rows.append(
                Cycle(
                    f"e{index}",
                    number,
                    "valid",
                    session=f"load-c{number}",
                    position_in_session=place,
                    start_kind="exec",
                    measures={"energy_per_output_token_j": float(energy_j)},
                )
            )
    return rows


def codes(rows: list[Cycle]) -> set[str]:
    return {flag.code for flags in session_flags(rows).values() for flag in flags}


def test_a_leak_of_three_percent_is_found_with_its_size() -> None:
    found = session_flags(cycles(0.03))
    assert set(found) == {f"e{index}" for index in range(6)}
    (flag,) = found["e0"]
    assert flag.code == "session_drift"
    assert "+3." in flag.message or "+2." in flag.message


def test_where_nothing_leaks_few_are_flagged() -> None:
    """The interval has 95 %: of 200 studies without a leak some 10 are flagged, here at most 20."""
    flagged = sum("session_drift" in codes(cycles(0.0, seed=seed)) for seed in range(200))
    assert flagged <= 20


def test_the_interval_is_that_of_the_experiments() -> None:
    ratio, interval, count = leakage({"a": [(0, 0.0), (1, 0.1)], "b": [(0, 1.0), (2, 1.3)], "c": [(1, 5.0)]})
    assert ratio == pytest.approx(0.2)
    assert count == 2
    assert interval is not None
    # t(0.975, 1) = 12.706, sd = 0.1 * sqrt(2), n = 2
    assert interval.high - ratio == pytest.approx(12.706 * 0.1, rel=1e-3)


def test_fixed_places_can_not_be_checked_and_it_is_said() -> None:
    assert codes(cycles(0.5, fixed=True)) == {"session_not_checked"}


def test_cycles_of_their_own_have_neither_flag_nor_line() -> None:
    rows = [Cycle("e", 1, "valid", start_kind="fresh", measures={"energy_per_output_token_j": 1.0})]
    assert session_flags(rows) == {}
    assert sessions_text(rows) == ""
    assert "sessions" not in setup(rows, [])


def test_a_report_says_how_many_sessions_there_were() -> None:
    assert setup(cycles(0.0), [])["sessions"] == ["36 cycles in 6 sessions"]


def test_a_cycle_of_a_session_does_not_compare_with_a_fresh_one() -> None:
    one = Recording()

    def made(**record: object) -> dict[str, object]:
        return dict(fingerprint(one.spec(), one.result(), {}, record, semantics_version=1))

    fresh = made(start_kind="fresh")
    assert made(start_kind="exec") == {**fresh, "start_kind": "exec"}
    assert made(start_kind="warm") == {**fresh, "start_kind": "warm"}
    assert "start_kind" not in fresh
    assert made() == fresh, "results of before began fresh"


def test_a_session_that_was_started_again_is_told_with_its_reason(tmp_path: Path) -> None:
    def told(*after: str | None) -> tuple[Flag, ...]:
        evidence = {"lives": [{"t_mono_ns": 1, "after": each} for each in after]}
        (tmp_path / "session.json").write_text(json.dumps(evidence))
        return restarts(CycleRef(Folder.at(tmp_path), "e", 1))

    assert told(None) == ()
    (flag,) = told(None, "2 GB of the device are still held", "its container was killed")
    assert flag.code == "session_restarted"
    assert "2 times: 2 GB of the device are still held; its container was killed" in flag.message
    (tmp_path / "session.json").write_text("{")
    assert "is not known" in restarts(CycleRef(Folder.at(tmp_path), "e", 1))[0].message


def placed(*told: tuple[str, str | None, int | None, float | None], status: str = "valid") -> list[Cycle]:
    """Cycles of (experiment, session, place, joules a token)."""
    return [
        Cycle(
            name,
            k,
            status,
            session=session,
            position_in_session=place,
            measures={} if joules is None else {"energy_per_output_token_j": joules},
        )
        for k, (name, session, place, joules) in enumerate(told, 1)
    ]


def test_a_drift_is_told_in_percent_with_its_interval() -> None:
    """Later places cost +3 % and +5 %: the mean logarithm ratio is theirs, t(0.975, 1) = 12.706 times its error."""
    rows = placed(
        ("a", "s-c1", 0, 1.0), ("b", "s-c1", 1, 1.05), ("b", "s-c2", 0, 1.0), ("a", "s-c2", 1, 1.03)
    )  # fmt: skip
    assert (
        session_flags(rows) == {}
    )  # two experiments alone tell little: +- 12.7 x 0.0136 / 1.41 around 0.039
    ratios = [np.log(1.03), np.log(1.05), np.log(1.04)]
    middle, half = np.mean(ratios), 4.302653 * np.std(ratios, ddof=1) / 3**0.5
    rows += placed(("c", "s-c1", 2, 1.04), ("c", "s-c3", 0, 1.0))
    found = session_flags(rows)
    assert list(found) == ["a", "b", "c"]
    (flag,) = found["a"]
    low, mean, high = (np.expm1(x) for x in (middle - half, middle, middle + half))
    assert flag.message == (
        "energy per output token at later places of the sessions of s differs by "
        f"{mean:+.1%} ({low:+.1%} to {high:+.1%}, 3 experiments) from that at the first"
    )
    assert (flag.severity, flag.cycles) == ("warning", ())


def test_what_has_no_place_or_no_joules_above_0_is_left_out() -> None:
    """Without these the places of each experiment are the same in every session."""
    fixed = [("a", "s-c1", 0, 1.0), ("b", "s-c1", 1, 1.0), ("a", "s-c2", 0, 1.0), ("b", "s-c2", 1, 1.0)]
    odd: list[tuple[str, str | None, int | None, float | None]] = [
        ("a", None, 1, 2.0), ("a", "s-c3", None, 2.0),
        ("a", "s-c3", 1, None), ("a", "s-c3", 1, 0.0), ("a", "s-c3", 1, -1.0),
    ]  # fmt: skip
    rows = placed(*fixed, *odd) + placed(("a", "s-c3", 1, 2.0), status="failed")
    found = session_flags(rows)
    assert set(found) == {"a", "b"}
    ((flag,), _) = found.values()
    assert (flag.code, flag.severity) == ("session_not_checked", "info")
    assert flag.message == (
        "whether later cycles of the sessions of s cost more is not known: 0 experiments had both the first and a "
        "later place"
    )
    assert sessions_text(rows) == "8 cycles in 3 sessions"
    assert session_flags(placed(("a", "s-c1", 0, 1.0))) == {}  # one alone has nothing to be held against


def test_loads_are_looked_at_one_by_one() -> None:
    rows = [
        row
        for load, leak in (("x", 1.1), ("y", 1.0))
        for name in "abc"
        for row in placed((load + name, f"{load}-c1", 0, 1.0), (load + name, f"{load}-c2", 1, leak))
    ]
    assert set(session_flags(rows)) == {"xa", "xb", "xc"}
    assert leakage({}) == (0.0, None, 0)
