"""What experiments are called: by what sets them apart, the same in Airflow's grid and in every report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from llem_airflow.study.engine_names import ENGINES

NAMED_BY_VALUE = ("engine", "model")
LONGEST = 80
"""A longer name says less than the id."""
_MISSING: Mapping[str, Any] = {}


class Named(Protocol):
    """What an experiment is named by."""

    @property
    def id(self) -> str:
        """``<slug>-<hash8>``."""

    @property
    def slug(self) -> str:
        """Readable name."""

    @property
    def factors(self) -> dict[str, Any]:
        """What sets it apart from the other experiments of the run."""


def experiment_labels(experiments: Sequence[Named]) -> list[str]:
    """A short distinct name for each experiment: what sets it apart, else its id."""
    return distinct_labels([e.id for e in experiments], [factor_text(e.factors, e.slug) for e in experiments])


def distinct_labels(ids: Sequence[str], texts: Sequence[str]) -> list[str]:
    """The texts, or the ids where a text is too long or stands for two experiments."""
    fits = all(len(text) <= LONGEST for text in texts) and len(set(texts)) == len(texts)
    return list(texts) if fits else list(ids)


def factors(configs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each configuration the dotted keys, with their values, in which not all are equal.

    An engine's section is compared among the experiments on that engine: without it, it is not another value of each
    of its keys.

    Args:
        configs: Configurations of experiments; what they share (as objects) is not looked into.
    """
    paths = list(_varying(list(configs), ()))
    found: list[dict[str, Any]] = [{} for _ in configs]
    for path in paths:
        for config, own in zip(configs, found, strict=True):
            own[".".join(path)] = _at(config, path)
    return found


def _varying(values: list[Any], path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    different = list({id(value): value for value in values}.values())
    if len(different) < 2:
        return
    maps = [_MISSING if value is None else value for value in different]
    if not all(isinstance(value, Mapping) for value in maps):
        if len({repr(value) for value in different}) > 1:
            yield path
        return
    for key in sorted({key for value in maps for key in value}):
        of_engine = not path and key in ENGINES
        yield from _varying([m.get(key) for m in maps if not of_engine or key in m], (*path, str(key)))


def _at(config: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        config = config.get(key) if isinstance(config, Mapping) else None
    return config


def factor_text(factors: Mapping[str, object], fallback: str) -> str:
    """What sets an experiment apart, as ``vllm, Qwen3-8B, batch_size 4``; the fallback when nothing does."""
    parts = []
    for key, value in factors.items():
        name = key.rsplit(".", 1)[-1]
        if value is None:
            continue
        if name in NAMED_BY_VALUE:
            parts.append(str(value).rstrip("/").rsplit("/", 1)[-1])
        else:
            parts.append(f"{name} {short(value)}")
    return ", ".join(parts) or fallback


def values_first(factors: Mapping[str, object], fallback: str) -> str:
    """The same for a narrow column that cuts the end off: ``8, 32 (batch_size, max_output_tokens)``."""
    if not factors:
        return fallback
    named = {key: key.rsplit(".", 1)[-1] for key in factors}
    values = [
        str(value).rstrip("/").rsplit("/", 1)[-1] if named[key] in NAMED_BY_VALUE and value else short(value)
        for key, value in factors.items()
    ]
    return f"{', '.join(values)} ({', '.join(named.values())})"


def short(value: object) -> str:
    """A configuration value on one short line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {short(item)}" for key, item in value.items())
    if value is None:
        return "\N{EN DASH}"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
