"""Which experiments the engine of a session takes over from the one that it was loaded for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llem_airflow.measurement.engines.contract import EngineFacts
from llem_airflow.measurement.failure import MeasurementError
from llem_airflow.measurement.living import LivingEngine
from llem_airflow.protocol.spec import ExperimentSpec, MeterSpec, ModelSource
from tests.measurement.running import spec_of


class Loaded:
    """Of an engine what is asked once it is loaded."""

    def __init__(self, commit: str | None = None) -> None:
        self.commit = commit
        self.made_ready_for: list[ExperimentSpec] = []

    def reset(self, spec: ExperimentSpec) -> None:
        self.made_ready_for.append(spec)

    def describe(self) -> EngineFacts:
        return EngineFacts("1", {"commit": self.commit}, (), {})


def living(spec: ExperimentSpec, engine: Any = None) -> LivingEngine:
    made = LivingEngine(Path("unused"))
    loaded: Any = engine or Loaded()
    made.take(loaded, spec)
    return made


def spec(engine: str = "transformers", **section: Any) -> ExperimentSpec:
    return spec_of(engine, section)


def test_sampling_batch_size_and_lengths_are_no_matter_of_the_load() -> None:
    one = living(spec(sampling_params={"temperature": 0.5}, llem_execution={"batch_size": 1}))
    other = spec_of(
        "transformers",
        {"llem_execution": {"batch_size": 4, "chat_template": True}, "engine_params": {"use_cache": True}},
        output_tokens=99,
        texts=("another",),
    )
    assert one.unlike(other) == ""
    engine = one.go_on(other)
    assert isinstance(engine, Loaded)
    assert engine.made_ready_for == [other]


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (
            spec(engine_params={"dtype": "bfloat16"}),
            'transformers.engine_params.dtype: nothing is loaded, "bfloat16" is asked for',
        ),
        (
            spec(llem_execution={"torch_compile": True}),
            "transformers.llem_execution.torch_compile: nothing is loaded, true is asked for",
        ),
        (spec("vllm"), 'engine: "transformers" is loaded, "vllm" is asked for'),
        (
            replace(spec(), model=ModelSource("other")),
            'task.model: "m" is loaded, "other" is asked for',
        ),
        (
            replace(spec(), model=ModelSource("m", revision="v2")),
            'revision: nothing is loaded, "v2" is asked for',
        ),
        (
            replace(spec(), meter=MeterSpec(gpus=("GPU-1",))),
            'gpus: [] is loaded, ["GPU-1"] is asked for',
        ),
    ],
)
def test_what_loads_unlike_is_refused_by_the_name_of_the_difference(other: ExperimentSpec, told: str) -> None:
    one = living(spec())
    assert told in one.unlike(other).split("; ")
    with pytest.raises(MeasurementError, match="takes only what loads alike") as caught:
        one.go_on(other)
    assert told in str(caught.value)
    assert isinstance(one.engine, Loaded)
    assert one.engine.made_ready_for == []


def test_a_further_try_that_names_the_commit_takes_the_engine_that_loaded_it() -> None:
    first = replace(spec(), model=ModelSource("org/m", revision="main"))
    one = living(first, Loaded("c1"))
    assert one.unlike(replace(first, model=ModelSource("org/m", revision="main", commit="c1"))) == ""
    moved = replace(first, model=ModelSource("org/m", revision="main", commit="c2"))
    assert one.unlike(moved) == 'the model\'s commit: "c1" is loaded, "c2" is asked for'


def test_an_engine_without_a_reset_cannot_live_on_and_says_what_to_use() -> None:
    with pytest.raises(MeasurementError, match="'own' has no method `reset`") as caught:
        living(spec_of("own", {}), object())
    assert "isolation: process" in str(caught.value)
