from __future__ import annotations

import pytest

from llem_airflow.analysis.flags import Flag, FlagSummary, grouped_flags, places_text, summed_flags, summed_up


def _window(seconds: float) -> str:
    share = 20 / seconds
    edges = f"a register update of 100 ms at each edge is {share:.1f} % of it"
    return f"The measurement window is {seconds:.1f} s long; {edges}."


def _flag(code: str, message: str, severity: str = "warning", threshold: str = "30 s") -> Flag:
    return Flag(code, message, "Wait longer.", threshold, severity)


def test_a_flag_of_several_cycles_tells_the_range_and_the_worst() -> None:
    (found,) = summed_flags(
        [(k, _flag("short_window", _window(s))) for k, s in enumerate((12.6, 10.1, 13.3), 1)]
    )
    assert found.message == (
        "The measurement window is 10.1 to 13.3 s long; "
        "a register update of 100 ms at each edge is 1.5 to 2.0 % of it. Worst: 10.1 s in cycle 2."
    )
    assert found.cycles == (1, 2, 3)


def test_what_is_equal_in_all_cycles_is_told_once_and_without_a_worst() -> None:
    (found,) = summed_flags([(1, _flag("gap", "5 s passed.")), (2, _flag("gap", "5 s passed."))])
    assert (found.message, found.messages) == ("5 s passed.", ())


@pytest.mark.parametrize(
    ("code", "messages", "told"),
    [
        ("gap", ["0.70 s passed.", "2.10 s passed."], "0.70 to 2.10 s passed. Worst: 2.10 s in cycle 2."),
        ("few_samples", ["90 power samples.", "7 power samples."], "Worst: 7 power samples in cycle 2."),
        ("throttled", ["slowed in 12% of it", "slowed in 3% of it"], "slowed in 3 to 12% of it"),
        ("drift", ["moved by -8.0% of it", "moved by +5.0% of it"], "-8.0 to +5.0%"),
        ("drift", ["moved by -8.0% of it", "moved by +5.0% of it"], "Worst: -8.0 % in cycle 1."),
        ("counter_disagreement", ["is 1,200 J off", "is 90 J off"], "90 to 1,200 J off"),
    ],
)
def test_the_worst_end_is_the_one_that_harms(code: str, messages: list[str], told: str) -> None:
    said = [(f"cycle {k}", message) for k, message in enumerate(messages, 1)]
    assert told.lower() in summed_up(code, said).lower()


def test_of_so_many_is_a_quantity_with_the_unit_of_the_whole() -> None:
    """The numbers of a flag whose unit stands behind the whole: one sentence for many cycles, not one for each."""
    said = [
        (f"cycle {k}", f"Others used {a} of the host's 2 cores, the experiment {b} cores.")
        for k, (a, b) in enumerate((("1.4", "0.6"), ("1.6", "0.4")), 1)
    ]
    assert summed_up("foreign_load", said) == (
        "Others used 1.4 to 1.6 of the host's 2 cores, the experiment 0.4 to 0.6 cores. Worst: 1.6 cores in cycle 2."
    )
    due = [
        (f"cycle {k}", f"{n} of {m} power samples are in it.") for k, (n, m) in enumerate(((9, 50), (7, 62)))
    ]
    assert summed_up("few_samples", due) == (
        "7 to 9 of 50 to 62 power samples are in it. Worst: 7 power samples in cycle 1."
    )


def test_numbers_that_are_names_are_never_made_a_range() -> None:
    said = [(f"cycle {k}", f"Somebody computed: pid {pid}, GPU-{pid}.") for k, pid in ((1, 17), (2, 99))]
    assert summed_up("foreign_process", said) == (
        "Somebody computed: pid 17, GPU-17. Somebody computed: pid 99, GPU-99."
    )


def test_many_wordings_are_counted() -> None:
    said = [(f"cycle {k}", f"Beside it ran {name}.") for k, name in enumerate("abcde", 1)]
    assert summed_up("neighbours", said) == (
        "Beside it ran a. Beside it ran b. Beside it ran c. And 2 more findings of this kind."
    )


def test_the_gravest_severity_and_its_limit_count() -> None:
    flags = [
        (1, _flag("short_window", _window(12.0))),
        (2, _flag("short_window", _window(8.0), "error", "10 s")),
    ]
    (found,) = summed_flags(flags)
    assert (found.severity, found.threshold) == ("error", "10 s")


def test_over_experiments_the_range_and_the_worst_are_those_of_all_cycles() -> None:
    def seen(*lengths: float) -> FlagSummary:
        return summed_flags([(k, _flag("short_window", _window(s))) for k, s in enumerate(lengths, 1)])[0]

    ((doubt, places),) = grouped_flags([("a", seen(12.6, 10.1)), ("b", seen(13.3)), ("c", seen(9.0, 9.5))])
    assert "9.0 to 13.3 s long" in doubt.message
    assert doubt.message.endswith("Worst: 9.0 s in c, cycle 1.")
    assert places == ["a, cycle 1, 2", "b, cycle 1", "c, cycle 1, 2"]


def test_a_summary_of_an_older_version_keeps_its_message() -> None:
    old = FlagSummary("short_window", "warning", _window(12.6), "", "", (1, 2))
    ((doubt, _),) = grouped_flags([("a", old)])
    assert doubt.message == _window(12.6)


def test_places_that_are_left_out_are_counted() -> None:
    assert places_text(["a", "b", "c"], 2) == "a; b; and 1 more"
    assert places_text(["a", "b"], 2) == "a; b"


def test_kinds_of_flags_stand_by_their_gravity_and_a_whole_experiment_has_no_cycle() -> None:
    def one(code: str, severity: str, *cycles: int) -> FlagSummary:
        return FlagSummary(code, severity, f"{code} was seen", "", "", cycles)

    severities = {"a": "info", "b": "of another version", "c": "warning", "d": "withheld", "e": "error"}
    found = grouped_flags([("x", one(code, severity)) for code, severity in severities.items()])
    assert [flag.severity for flag, _ in found] == [
        "withheld", "error", "warning", "info", "of another version",
    ]  # fmt: skip
    assert {tuple(places) for _, places in found} == {("x",)}
    ((_, places),) = grouped_flags([("x", one("a", "info")), ("y", one("a", "info", 2, 3))])
    assert places == ["x", "y, cycle 2, 3"]
    ((flag, _),) = grouped_flags([("x", one("a", "info", 1)), ("y", one("a", "error", 2))])
    assert (flag.severity, flag.cycles) == ("error", (2,))


def test_a_flag_whose_ends_are_no_worse_than_each_other_has_no_worst() -> None:
    said = [("cycle 1", "It has 18 requests."), ("cycle 2", "It has 7 requests.")]
    for code in ("requests_disagree", "warmup_not_converged"):
        assert summed_up(code, said) == "It has 7 to 18 requests."


def test_what_each_of_several_cycles_said_is_kept_where_it_differs() -> None:
    (found,) = summed_flags([(1, _flag("gap", "5 s passed.")), (2, _flag("gap", "6 s passed."))])
    assert found.messages == ("5 s passed.", "6 s passed.")
    ((over, _),) = grouped_flags([("a", found)])
    assert over.message == "5 to 6 s passed. Worst: 6 s in a, cycle 2."
