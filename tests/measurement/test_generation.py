from __future__ import annotations

from dataclasses import replace

import pytest

from llem_airflow.measurement.generation import (
    engine_params,
    generation,
    llem_execution,
    request_arguments,
    section,
)
from tests.measurement.running import spec_of


def test_without_a_preset_an_experiment_is_greedy() -> None:
    assert generation(spec_of("scripted", {})).parameters == {"temperature": 0.0}


def test_what_the_study_writes_out_wins_over_its_preset() -> None:
    section = {"sampling_params": {"temperature": 0.5, "min_p": 0.1}}
    spec = spec_of("scripted", section, config={"sampling_preset": "standard"})
    assert generation(spec).parameters == {"temperature": 0.5, "top_p": 0.95, "min_p": 0.1}


def test_the_seed_is_the_task_s() -> None:
    assert generation(spec_of("scripted", {})).seed == 1


def test_passthrough_arguments_join_the_engine_s_parameters() -> None:
    spec = spec_of("scripted", {"engine_params": {"a": 1}}, config={"passthrough_kwargs": {"b": 2}})
    assert engine_params(spec) == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [
        ("deterministic", {"temperature": 0.0}),
        ("standard", {"temperature": 1.0, "top_p": 0.95}),
        ("creative", {"temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.1}),
        ("factual", {"temperature": 0.3}),
    ],
)
def test_a_preset_of_the_study_grammar(preset: str, parameters: dict[str, float]) -> None:
    assert generation(spec_of("scripted", {}, config={"sampling_preset": preset})).parameters == parameters


def test_sampling_that_the_study_asks_for_is_not_made_greedy() -> None:
    for do_sample, parameters in (
        (True, {"do_sample": True}),
        (False, {"do_sample": False, "temperature": 0.0}),
    ):
        assert (
            generation(spec_of("scripted", {"sampling_params": {"do_sample": do_sample}})).parameters
            == parameters
        )


@pytest.mark.parametrize(
    ("task", "seed"), [({"random_seed": 7}, 7), ({"random_seed": 0}, 0), ({}, 42), (None, 42)]
)
def test_a_seed_is_there_in_any_case(task: dict[str, int] | None, seed: int) -> None:
    assert generation(replace(spec_of("scripted", {}), config={"task": task})).seed == seed


def test_what_the_study_says_of_an_engine_is_its_own_section() -> None:
    spec = spec_of("scripted", {"llem_execution": {"batch_size": 4}})
    assert llem_execution(spec) == {"batch_size": 4}
    assert section(replace(spec, config={"scripted": None})) == {}
    assert (llem_execution(replace(spec, config={})), engine_params(replace(spec, config={}))) == ({}, {})


def test_a_request_has_a_fixed_length_unless_the_study_lets_it_end() -> None:
    assert request_arguments({"top_p": 0.9}, 5) == {"max_tokens": 5, "min_tokens": 5, "top_p": 0.9}
    assert request_arguments({"ignore_eos": True}, 5) == {"max_tokens": 5, "ignore_eos": True}
    assert request_arguments({"max_tokens": 3}, 5) == {"max_tokens": 3, "min_tokens": 5}
