"""What plan.json says, and how keys and values of configurations are written: exact, at both sides of every limit."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from llem_airflow.analysis.plan import (
    LONGEST,
    PlannedExperiment,
    differing_keys,
    distinct_labels,
    experiment_factors,
    experiment_labels,
    factor_changes,
    factor_label,
    factors,
    flatten,
    narrow_factor_label,
    planned,
    short,
    single_factor_levels,
)
from llem_airflow.protocol.typed_json import to_json
from llem_airflow.study.plan.model import RateSearch


class Experiment(NamedTuple):
    id: str
    slug: str
    factors: dict[str, Any]


def test_an_experiment_is_called_by_what_sets_it_apart_else_by_its_id() -> None:
    two = [Experiment(f"m-{n}", "m", {"vllm.max_num_seqs": n}) for n in (1, 8)]
    assert experiment_labels(two) == ["max_num_seqs 1", "max_num_seqs 8"]
    assert experiment_labels([*two, two[0]._replace(id="m-9")]) == ["m-1", "m-8", "m-9"]
    assert experiment_labels([Experiment("m-1", "m", {})]) == ["m"]
    assert distinct_labels(["a"], ["x" * LONGEST]) == ["x" * LONGEST]
    assert LONGEST == 80


@pytest.mark.parametrize(
    ("factors_", "wide", "narrow"),
    [
        ({}, "m", "m"),
        ({"engine": "vllm", "task.model": "lab/Qwen3-8B/"}, "vllm, Qwen3-8B", "vllm, Qwen3-8B (engine, model)"),
        ({"task.max_output_tokens": None, "vllm.a.b": 2.5}, "b 2.5", "\N{EN DASH}, 2.5 (max_output_tokens, b)"),
        ({"task.model": None}, "m", "\N{EN DASH} (model)"),
    ],
)  # fmt: skip
def test_factors_make_a_name_and_a_shorter_one_for_narrow_columns(
    factors_: dict[str, Any], wide: str, narrow: str
) -> None:
    assert factor_label(factors_, "m") == wide
    assert narrow_factor_label(factors_, "m") == narrow


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "\N{EN DASH}"),
        (0.1 + 0.2, "0.3"),
        (True, "True"),
        ({"a": 1.0, "b": {"c": None}}, "a 1, b c \N{EN DASH}"),
        ("x" * 60, "x" * 60),
        ("x" * 61, "x" * 57 + "…"),
    ],
)
def test_a_value_is_written_on_one_short_line(value: object, text: str) -> None:
    assert short(value) == text


def test_keys_that_differ_stand_in_the_order_of_the_second() -> None:
    one, other = {"z": 1, "same": 1, "gone": 2}, {"new": 1, "same": 1, "z": 2}
    assert differing_keys(one, other) == ["new", "z", "gone"]
    assert single_factor_levels(one, other) is None
    assert single_factor_levels(one, one) is None
    assert single_factor_levels({"vllm.batch_size": 1}, {"vllm.batch_size": 8}) == ("1", "batch_size 8")
    assert single_factor_levels({}, {"task.model": "lab/m/"}) == ("unset", "m")


def test_changes_have_the_short_names_of_their_keys_where_these_differ() -> None:
    changes = {"a.size": (1, 2), "b.size": (None, 2), "engine": ("vllm", "lab/own")}
    assert factor_changes(changes) == ["a.size 1 -> 2", "b.size unset -> 2", "engine vllm -> own"]
    assert factor_changes({"a.size": (1, 2)}) == ["size 1 -> 2"]


def test_factors_of_nested_configurations_go_as_deep_as_they_differ() -> None:
    assert factors([{"a": {"b": 1, "c": 1}}, {"a": {"b": 2, "c": 1}}, {"a": None}]) == [
        {"a.b": 1, "a.c": 1},
        {"a.b": 2, "a.c": 1},
        {"a.b": None, "a.c": None},
    ]
    assert factors([{"a": {"b": 1}}, {"a": 7}]) == [{"a": {"b": 1}}, {"a": 7}]
    assert factors([{"a": [1]}, {"a": [1]}]) == [{}, {}]
    # Below the top a key that is called like an engine is a key.
    assert factors([{"x": {"vllm": 1}}, {"x": {}}]) == [{"x.vllm": 1}, {"x.vllm": None}]


def test_nested_objects_are_flat_with_dotted_keys() -> None:
    assert flatten({"a": {"b": {"c": 1}, "d": [2, {"e": 3}]}, 4: 5}) == {
        "a.b.c": 1,
        "a.d": [2, {"e": 3}],
        "4": 5,
    }


def test_a_plan_is_read_with_its_order() -> None:
    search = RateSearch(("a-1",), (1.0, 2.0), 3, 0.99)
    whole = planned(
        {
            "experiments": [
                {"id": "a-1", "slug": "a", "hash": "f" * 16, "engine": "vllm", "config": {"k": 1}},
                {"id": "b-2", "config": {"k": 2}},
            ],
            "order": ["b-2", "a-1", "b-2", {"experiment": "a-1", "cycle": 7}, {"id": "b-2", "cycle": 9}],
            "skipped": [{"rule": "r"}],
            "precision_target": {"min_cycles": 3},
            "stated": {"price": 1},
            "searches": [to_json(search)],
        }
    )
    assert whole.experiments == {
        "a-1": PlannedExperiment("a-1", "a", "f" * 16, "vllm", {"k": 1}),
        "b-2": PlannedExperiment("b-2", "b-2", "", "", {"k": 2}),
    }
    assert whole.cycles == (("b-2", 1), ("a-1", 1), ("b-2", 2), ("a-1", 7), ("b-2", 9))
    assert whole.skipped == ({"rule": "r"},)
    assert (whole.precision_target, whole.rates, whole.searches) == (
        {"min_cycles": 3},
        {"price": 1},
        (search,),
    )
    assert experiment_factors(whole.experiments) == {"a-1": {"k": 1}, "b-2": {"k": 2}}


def test_a_plan_without_an_order_goes_round_by_round_and_an_empty_one_plans_nothing() -> None:
    two = [{"id": "a", "config": None}, {"id": "b"}]
    assert planned({"experiments": two, "cycles": 2}).cycles == (("a", 1), ("b", 1), ("a", 2), ("b", 2))
    assert planned({"experiments": two}).cycles == (("a", 1), ("b", 1))
    empty = planned({})
    assert (empty.experiments, empty.cycles, empty.skipped) == ({}, (), ())
    assert (empty.precision_target, empty.rates, empty.searches) == (None, {}, ())


@pytest.mark.parametrize(
    ("config", "requires", "model"),
    [
        ({"measurement": {"require_energy": True}, "task": {"model": "lab/m"}}, True, "lab/m"),
        ({"measurement": {"require_energy": 1}, "task": {}}, False, "-"),
        ({"measurement": None, "task": None, "model": "old"}, False, "old"),
        ({}, False, "-"),
    ],
)
def test_what_an_experiment_says_of_itself(config: dict[str, Any], requires: bool, model: str) -> None:
    one = PlannedExperiment("a", "a", "", "", config)
    assert (one.requires_energy, one.model) == (requires, model)
