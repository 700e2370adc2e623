"""What an engine reads of an experiment when it loads: experiments that are equal in it can share a loaded engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

GENERATE_PARAMS = (
    "cache_implementation",
    "early_stopping",
    "length_penalty",
    "no_repeat_ngram_size",
    "num_beams",
    "prompt_lookup_num_tokens",
    "use_cache",
)
"""Of transformers: parameters of ``generate`` that llenergymeasure's files give under ``engine_params``."""

_NOT_LOADED = ("batch_size", "chat_template")
"""Keys of ``llem_execution`` that no engine reads when it loads."""

_SEEDED_WHEN_LOADED = ("vllm",)
"""Engines whose random numbers are seeded once, when they load."""


def load_arguments(engine: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """By path what the engine loads with, in the study's words; model, image and devices come on top.

    Args:
        engine: Its name.
        config: The whole experiment in the study's vocabulary.
    """
    section = config.get(engine) or {}
    not_loaded = GENERATE_PARAMS if engine == "transformers" else ()
    found = {
        **_under(f"{engine}.engine_params", section.get("engine_params"), not_loaded),
        **_under(f"{engine}.llem_execution", section.get("llem_execution"), _NOT_LOADED),
        **_under("passthrough_kwargs", config.get("passthrough_kwargs"), not_loaded),
    }
    if engine in _SEEDED_WHEN_LOADED:
        found["task.random_seed"] = (config.get("task") or {}).get("random_seed")
    if config.get("serving_mode", "offline") != "offline":
        found["serving_mode"] = config["serving_mode"]
    return found


def _under(path: str, given: Mapping[str, Any] | None, left_out: tuple[str, ...]) -> dict[str, Any]:
    said = (given or {}).items()
    return {f"{path}.{key}": value for key, value in said if key not in left_out and value is not None}
