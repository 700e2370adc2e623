"""What holds for every study, tried on generated ones."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llem_airflow.study import Problem, StudyFileError, load_study_text
from llem_airflow.study.file.yaml import Source
from tests.study.texts import study

PLAIN = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=8)
AXES: dict[str, st.SearchStrategy[Any]] = {
    "task.max_output_tokens": st.integers(1, 4096),
    "task.random_seed": st.integers(0, 10**6),
    "transformers.llem_execution.batch_size": st.integers(1, 64),
    "transformers.engine_params.dtype": st.sampled_from(["float16", "bfloat16", "float32"]),
    "measurement.power_hz": st.floats(0.5, 100),
}


@st.composite
def sweeps(draw: st.DrawFn) -> dict[str, list[Any]]:
    keys = draw(st.lists(st.sampled_from(sorted(AXES)), unique=True, min_size=1, max_size=4))
    return {key: draw(st.lists(AXES[key], unique=True, min_size=1, max_size=4)) for key in keys}


def _body(sweep: Mapping[str, Sequence[Any]]) -> str:
    return "sweep: " + json.dumps(sweep) + "\n"


@settings(max_examples=60, deadline=None)
@given(sweeps())
def test_counts_multiply_and_every_experiment_is_another_one(sweep: dict[str, list[Any]]) -> None:
    product = 1
    for axis in sweep.values():
        product *= len(axis)
    plan = study(_body(sweep)).plan
    assert plan.declared == plan.valid == len(plan.experiments) == product
    assert len({e.id for e in plan.experiments}) == len({e.hash for e in plan.experiments}) == product


@settings(max_examples=40, deadline=None)
@given(sweeps(), st.randoms(use_true_random=False))
def test_the_order_of_keys_never_changes_an_identity(sweep: dict[str, list[Any]], random: Any) -> None:
    items = list(sweep.items())
    random.shuffle(items)
    one, two = study(_body(sweep)), study(_body(dict(items)))
    assert {e.hash for e in one.experiments} == {e.hash for e in two.experiments}


@settings(max_examples=30, deadline=None)
@given(
    sweeps(),
    st.sampled_from(["sequential", "interleave", "shuffle", "reverse", "latin_square"]),
    st.integers(1, 4),
)
def test_a_plan_is_deterministic_and_complete(sweep: dict[str, list[Any]], order: str, cycles: int) -> None:
    body = _body(sweep) + f"study_execution: {{n_cycles: {cycles}, experiment_order: {order}}}\n"
    plan = study(body).plan
    assert plan.to_json() == study(body).plan.to_json()
    runs = {(run.experiment_id, run.cycle) for run in plan.planned_cycles}
    assert len(runs) == len(plan.planned_cycles) == len(plan.experiments) * cycles


@settings(max_examples=30, deadline=None)
@given(sweeps())
def test_an_experiment_survives_the_round_trip_through_its_own_config(sweep: dict[str, list[Any]]) -> None:
    for experiment in study(_body(sweep)).experiments[:3]:
        again = load_study_text(json.dumps(experiment.config))
        assert again.experiments[0].hash == experiment.hash
        assert again.experiments[0].config == experiment.config


@settings(max_examples=40, deadline=None)
@given(sweeps())
def test_axes_and_written_out_experiments_are_the_same_experiments(sweep: dict[str, list[Any]]) -> None:
    swept = study(_body(sweep))
    entries = [
        {
            "task": e.config["task"],
            "transformers": e.config["transformers"],
            "measurement": e.config["measurement"],
        }
        for e in swept.experiments
    ]
    written = study("experiments: " + json.dumps(entries) + "\n")
    assert [e.hash for e in written.experiments] == [e.hash for e in swept.experiments]


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_a_study_or_a_located_report(text: str) -> None:
    problems: tuple[Problem, ...] = ()
    try:
        load_study_text(text)
        pytest.fail("random text is no study")
    except StudyFileError as error:
        problems = error.problems
    assert problems
    assert all(problem.line >= 1 and problem.column >= 1 for problem in problems)


@settings(max_examples=100, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | PLAIN,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(PLAIN.filter(lambda key: key != "<<"), inner, max_size=3)
        ),
        max_leaves=12,
    )
)
def test_json_reads_as_the_same_values(value: Any) -> None:
    text = json.dumps({"key": value})
    assert json.dumps(Source("t", text).value, sort_keys=True) == json.dumps(json.loads(text), sort_keys=True)
