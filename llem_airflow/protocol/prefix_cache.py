"""Whether an engine keeps the key-value cache of prompts' beginnings, so that a shared one is computed once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
