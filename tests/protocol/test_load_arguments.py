"""What an engine loads with: experiments that differ in nothing else can share a loaded engine."""

from __future__ import annotations

from typing import Any

import pytest

from llem_airflow.protocol.engine_keys import load_arguments


def test_arguments_of_the_engine_and_keys_passed_through_are_loaded_with() -> None:
    config: dict[str, Any] = {
        "task": {"model": "m", "random_seed": 7},
        "vllm": {"engine_params": {"max_num_seqs": 8}, "llem_execution": {"device": "cuda"}},
        "passthrough_kwargs": {"enforce_eager": True},
    }
    assert load_arguments("vllm", config) == {
        "vllm.engine_params.max_num_seqs": 8,
        "vllm.llem_execution.device": "cuda",
        "passthrough_kwargs.enforce_eager": True,
        "task.random_seed": 7,
    }


@pytest.mark.parametrize("key", ["batch_size", "chat_template"])
def test_what_a_batch_is_made_of_is_not_loaded(key: str) -> None:
    assert load_arguments("transformers", {"transformers": {"llem_execution": {key: 4}}}) == {}


GENERATE = (
    *("cache_implementation", "early_stopping", "length_penalty", "no_repeat_ngram_size", "num_beams"),
    *("prompt_lookup_num_tokens", "use_cache"),
)


@pytest.mark.parametrize("key", GENERATE)
def test_what_transformers_is_given_with_each_batch_is_not_loaded_and_others_may_load_it(key: str) -> None:
    assert load_arguments("transformers", {"transformers": {"engine_params": {key: 1}}}) == {}
    assert load_arguments("transformers", {"passthrough_kwargs": {key: 1}}) == {}
    assert load_arguments("tensorrt", {"tensorrt": {"engine_params": {key: 1}}}) == {
        f"tensorrt.engine_params.{key}": 1
    }


def test_only_vllm_draws_its_seed_when_it_loads() -> None:
    config: dict[str, Any] = {"task": {"random_seed": 7}}
    assert load_arguments("vllm", config) == {"task.random_seed": 7}
    assert load_arguments("transformers", config) == load_arguments("tensorrt", config) == {}
    assert load_arguments("vllm", {}) == {"task.random_seed": None}


@pytest.mark.parametrize("unsaid", [{}, {"tensorrt": None}, {"tensorrt": {"engine_params": None}}])
def test_what_is_not_said_is_not_loaded_with(unsaid: dict[str, Any]) -> None:
    assert load_arguments("tensorrt", {**unsaid, "passthrough_kwargs": None}) == {}


def test_null_is_as_not_said_and_zero_and_false_are_said() -> None:
    given = {"dtype": None, "max_batch_size": 0, "use_cuda_graph": False}
    assert load_arguments("tensorrt", {"tensorrt": {"engine_params": given}}) == {
        "tensorrt.engine_params.max_batch_size": 0,
        "tensorrt.engine_params.use_cuda_graph": False,
    }
