"""A configuration as written, with table defaults -> the configuration as it is measured."""

from __future__ import annotations

from typing import Any

from llem_airflow.study.engine_names import ENGINES
from llem_airflow.study.fields import defaults
from llem_airflow.study.keys import GPUS, PRESETS, SAMPLER_METER

Config = dict[str, Any]

_SAMPLING = tuple((engine, "sampling_params") for engine in ENGINES)

DECIDING: dict[tuple[str, ...], tuple[tuple[str, ...], ...]] = {
    ("serving_mode",): (("serving_mode",), ("offline",), ("server",)),
    ("measurement", "meter"): (("measurement", "meter"),),
    ("measurement", "energy_sampler"): (("measurement", "meter"),),
    ("offline", "warmup"): (("offline", "warmup"),),
    ("sampling_preset",): _SAMPLING,
    ("transformers", "sampling_params"): _SAMPLING,
    ("gpus",): (("gpus",),),
}
"""Keys that others follow from, with those others: when one varies, each point is settled by itself."""


def merged(below: Config, above: Config) -> Config:
    """``above`` laid over ``below``, mapping by mapping; neither is changed, what is untouched is shared."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def with_deltas(config: Config, deltas: tuple[tuple[tuple[str, ...], Any], ...]) -> Config:
    """The configuration with some keys set; what is untouched is shared."""
    result = dict(config)
    fresh = {id(result)}
    for path, value in deltas:
        node = result
        for key in path[:-1]:
            child = node.get(key)
            if not isinstance(child, dict):
                child = {}
            elif id(child) not in fresh:
                child = dict(child)
            fresh.add(id(child))
            node[key] = child
            node = child
        last, old = path[-1], node.get(path[-1])
        node[last] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
        if isinstance(value, dict):
            fresh.discard(id(value))
    return result


def settled(config: Config) -> Config:
    """Resolve what depends on other keys: mode section, meter, warm-up, preset, greediness."""
    result = dict(config)
    result.pop("server" if result.get("serving_mode") == "offline" else "offline", None)
    _meter(result)
    _warmup(result)
    _sampling(result)
    gpus = result.pop("gpus", None)
    if gpus is not None:
        result["gpus"] = defaults(GPUS) | {"count": len(gpus.get("ids") or "1")} | gpus
    for key in ("sampling_preset", "passthrough_kwargs"):
        if result.get(key) is None:
            result.pop(key, None)
    return result


def _meter(config: Config) -> None:
    measurement = dict(config["measurement"])
    sampler = measurement.pop("energy_sampler")
    measurement["meter"] = measurement["meter"] or SAMPLER_METER[sampler]
    config["measurement"] = measurement


def _warmup(config: Config) -> None:
    """A warm-up of fixed length only when its length was written, as files of llenergymeasure do."""
    offline = config.get("offline")
    if offline is None:
        return
    warmup = dict(offline["warmup"])
    if warmup["convergence_detection"] is None:
        warmup["convergence_detection"] = warmup["n_prompts"] is None
    if warmup["n_prompts"] is None:
        warmup["n_prompts"] = 5
    if warmup["min_prompts"] is None:
        warmup["min_prompts"] = min(warmup["window_size"], warmup["max_prompts"])
    config["offline"] = offline | {"warmup": warmup}


def _sampling(config: Config) -> None:
    engine = config["engine"]
    section = config.get(engine) or {}
    sampling = section.get("sampling_params") or {}
    preset = PRESETS.get(config.get("sampling_preset") or "", {})
    sampling = preset | {
        name: value for name, value in sampling.items() if value is not None or name not in preset
    }
    if engine == "transformers":
        sampling = sampling | {"do_sample": _sampled(sampling)}
    config[engine] = section | {"sampling_params": sampling}


def _sampled(sampling: Config) -> Any:
    """Whether transformers draws tokens at random.

    ``generate`` decodes greedily unless do_sample is set, whatever the temperature, and refuses a temperature of 0
    when it is set: here a temperature that is written down is applied, and 0 is greedy as in the other engines.
    """
    temperature, wanted = sampling.get("temperature"), sampling.get("do_sample")
    if not isinstance(temperature, (int, float)):
        return False if wanted is None else wanted
    if wanted is None:
        return temperature > 0
    return False if temperature == 0 else wanted
