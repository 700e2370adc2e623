from __future__ import annotations

from llem_airflow.measurement.generation import engine_params, generation
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
