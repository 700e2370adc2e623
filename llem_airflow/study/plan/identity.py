"""Who an experiment is: the hash of what it measures, and a readable name.

In the hash: everything of the experiment's configuration with its defaults, older names replaced: engine,
serving mode, task, measurement, warm-up or traffic, engine arguments, sampling, number and kind of GPUs
when asked for. Not in the hash: where (runner, image, GPU ids, results), when (Airflow, gaps, order), how
often (cycles), limits, names, the SLO bounds, which classify a result without changing it, and keys of ours that
never have an effect, or belong to a warm-up that is off, which count as left out.
"""

from __future__ import annotations

import json
import math
import re
from functools import cache
from hashlib import sha256
from typing import Any

from llem_airflow.study.config.base import Config, lookup, with_values, without
from llem_airflow.study.config.experiment import section_model
from llem_airflow.study.plan.rules import Rule, rules_of

HASH_DIGITS = 16
MOST_SLUG = 51
"""Longest slug: with a dash and eight digits of the hash an id has at most 60 characters."""

_NOT_IN_ID = re.compile(r"[^a-z0-9_]+")


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: keys sorted, no spaces, whole numbers without a point."""
    if isinstance(value, dict):
        return "{" + ",".join([f"{_text(key)}:{canonical_json(value[key])}" for key in sorted(value)]) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join([canonical_json(item) for item in value]) + "]"
    return _scalar(value)


def _scalar(value: Any) -> str:
    """A scalar by hand: json.dumps costs more than the rest of planning an experiment."""
    if isinstance(value, str):
        return _text(value)
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value.is_integer() else repr(value)
    raise TypeError(f"no JSON value: {value!r}")


_text = json.encoder.encode_basestring_ascii


def digest(text: str) -> str:
    """The first 16 hex digits of the text's SHA-256."""
    return sha256(text.encode()).hexdigest()[:HASH_DIGITS]


def identity_view(config: Config) -> Config:
    """The configuration, or some of its sections, without what does not change the measurement."""
    for rule in _neutral_rules():
        if rule.section in config and rule.applies(config):
            values = [(path, lookup(defaults(path[0]), path[1:])) for path in rule.ignores]
            config = with_values(config, values)
    gpus, server = config.get("gpus"), config.get("server")
    if gpus is not None:
        config = config | {"gpus": {"count": gpus["count"], "kind": gpus["kind"]}}
    for key in _NOT_MEASURED if server is not None else ():
        config = without(config, ("server", *key))
    return config


_NOT_MEASURED = (
    ("traffic", "slo"),
    ("traffic", "request_timeout_seconds"),
    ("startup_timeout_seconds",),
    ("max_failed_ratio",),
)
"""Keys of ``server`` that judge a cycle or bound it, and change nothing of what is measured."""


NEEDED: dict[str, Config] = {"task": {"model": "-"}, "server": {"traffic": {"rate": 1}}}
"""What must be written of a section, with any values."""


@cache
def _neutral_rules() -> tuple[Rule, ...]:
    return tuple(rule for rule in rules_of("") if rule.neutral)


@cache
def defaults(section: str) -> Config:
    """A section of an experiment of which nothing is written but what must be."""
    return section_model(section).model_validate(NEEDED.get(section, {})).config()


def experiment_hash(config: Config) -> str:
    """Identity of an experiment: 16 hex digits, the same on every machine and Python version."""
    return digest(canonical_json(identity_view(config)))


class Slugs:
    """Readable names from what differs between the experiments of one study."""

    def __init__(self, varied: list[tuple[str, ...]]) -> None:
        self.varied = [path for path in varied if path not in {("engine",), ("task", "model")}]
        self.name_model = ("task", "model") in varied or not self.varied
        self._pieces: dict[tuple[tuple[str, ...], Any], str] = {}

    def slug(self, config: dict[str, Any]) -> str:
        """Engine, model if it varies, and every varied value; at most 51 characters of ``[a-z0-9_-]``."""
        parts = [config["engine"]]
        if self.name_model:
            parts.append(word(str(config["task"]["model"]).rstrip("/").rsplit("/", 1)[-1]))
        for path in self.varied:
            value = lookup(config, path)
            if value is not None:
                parts.append(self._piece(path, value))
        return "-".join(part for part in parts if part)[:MOST_SLUG].strip("-_")

    def _piece(self, path: tuple[str, ...], value: Any) -> str:
        key = (path, value if isinstance(value, (str, int, float, bool)) else canonical_json(value))
        piece = self._pieces.get(key)
        if piece is None:
            piece = self._pieces[key] = _piece(path[-1], value)
        return piece


def _piece(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return word(f"{name}-{'on' if value else 'off'}")
    if isinstance(value, str) and not value.isdigit():
        return word(value.rstrip("/").rsplit("/", 1)[-1])
    if isinstance(value, (dict, list)):
        return word(f"{name}-{digest(canonical_json(value))[:4]}")
    return word(f"{name}-{value:g}".replace(".", "p") if isinstance(value, float) else f"{name}-{value}")


def word(text: str) -> str:
    """The text as a part of a name: at most 40 characters of ``[a-z0-9_-]``."""
    return _NOT_IN_ID.sub("-", text.lower()).strip("-")[:40].strip("-")
