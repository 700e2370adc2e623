"""What is read of an experiment's section of its engine outside of the engine: what it loads with, its prefix cache.

Experiments that are equal in what an engine loads with can share a loaded engine.
"""

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


_SWITCHES = {
    "vllm": ("enable_prefix_caching",),
    "tensorrt": ("kv_cache_config", "enable_block_reuse"),
}
"""The engine parameter that turns it on; it is off unless the study turns it on, as prompts repeat."""


def prefix_cache(config: Mapping[str, Any]) -> tuple[bool, str | None]:
    """Whether the prefix cache is on, and the key that turns it on; None for an engine that has none.

    Args:
        config: The configuration of an experiment.
    """
    engine = config["engine"]
    path = _SWITCHES.get(engine)
    if path is None:
        return False, None
    section = config.get(engine) or {}
    given = {**(section.get("engine_params") or {}), **(config.get("passthrough_kwargs") or {})}
    value: Any = given
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return bool(value), ".".join((engine, "engine_params", *path))


def shared_beginnings(config: Mapping[str, Any]) -> str:
    """What the requests of an experiment share at their beginning, and what the prefix cache makes of it.

    Args:
        config: The configuration of an experiment.

    Returns:
        A sentence without its point; empty where nothing is shared on purpose.
    """
    dataset = config["task"].get("dataset") or {}
    if prefix_tokens := dataset.get("prefix_tokens"):
        shared = f"the shared prefix of {prefix_tokens} token{'s' * (prefix_tokens != 1)}"
    elif dataset.get("multi_turn"):
        shared = "what a turn repeats of its conversation"
    else:
        return ""
    on, switch = prefix_cache(config)
    if on:
        return f"{switch} is on: {shared} is computed once, as are prompts that repeat"
    told = f"{config['engine']}: the prefix cache is off: {shared} is computed for every request"
    return f"{told}; {switch}: true keeps it" if switch else f"{told}; this engine has none here"
