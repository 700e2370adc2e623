"""Whether the prefix cache is on, and what is said of prompts that begin alike."""

from __future__ import annotations

from typing import Any

import pytest

from llem_airflow.protocol.engine_keys import prefix_cache, shared_beginnings

REUSE = {"kv_cache_config": {"enable_block_reuse": True}}
VLLM, TENSORRT = (
    "vllm.engine_params.enable_prefix_caching",
    "tensorrt.engine_params.kv_cache_config.enable_block_reuse",
)


@pytest.mark.parametrize(
    ("config", "on", "switch"),
    [
        ({"engine": "vllm"}, False, VLLM),
        ({"engine": "vllm", "vllm": {"engine_params": {"enable_prefix_caching": True}}}, True, VLLM),
        ({"engine": "vllm", "vllm": {"engine_params": None}, "passthrough_kwargs": None}, False, VLLM),
        ({"engine": "vllm", "vllm": {}, "passthrough_kwargs": {"enable_prefix_caching": True}}, True, VLLM),
        ({"engine": "tensorrt", "tensorrt": {"engine_params": REUSE}}, True, TENSORRT),
        ({"engine": "tensorrt", "tensorrt": {"engine_params": {"kv_cache_config": "odd"}}}, False, TENSORRT),
        ({"engine": "transformers", "transformers": {"engine_params": {"enable_prefix_caching": True}}}, False, None),
        ({"engine": "other"}, False, None),
    ],
)  # fmt: skip
def test_the_cache_is_on_where_the_study_turns_it_on(
    config: dict[str, Any], on: bool, switch: str | None
) -> None:
    assert prefix_cache(config) == (on, switch)


@pytest.mark.parametrize(
    ("engine", "params", "dataset", "said"),
    [
        ("vllm", {}, None, ""),
        ("vllm", {}, {"prefix_tokens": 0}, ""),
        (
            "vllm",
            {},
            {"prefix_tokens": 1},
            (
                "vllm: the prefix cache is off: the shared prefix of 1 token is computed for every request; "
                f"{VLLM}: true keeps it"
            ),
        ),
        (
            "vllm",
            {"enable_prefix_caching": True},
            {"prefix_tokens": 2},
            f"{VLLM} is on: the shared prefix of 2 tokens is computed once, as are prompts that repeat",
        ),
        (
            "transformers",
            {},
            {"multi_turn": True},
            (
                "transformers: the prefix cache is off: what a turn repeats of its conversation is computed for every "
                "request; this engine has none here"
            ),
        ),
    ],
)
def test_prompts_that_begin_alike_are_told_with_what_is_computed(
    engine: str, params: dict[str, Any], dataset: dict[str, Any] | None, said: str
) -> None:
    config = {"engine": engine, engine: {"engine_params": params}, "task": {"dataset": dataset}}
    assert shared_beginnings(config) == said
