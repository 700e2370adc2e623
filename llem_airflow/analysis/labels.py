"""What experiments of a run are called: by what sets them apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from llem_airflow.analysis.quantity import factor_text, short

_NAMED_BY_VALUE = ("engine", "model")
LONGEST = 80
"""A longer name says less than the id."""


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
    texts = [factor_text(e.factors, e.slug) for e in experiments]
    fits = all(len(text) <= LONGEST for text in texts) and len(set(texts)) == len(texts)
    return texts if fits else [e.id for e in experiments]


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Dotted keys whose values differ, in the order of the second."""
    return [key for key in dict.fromkeys([*other, *one]) if one.get(key) != other.get(key)]


def told_apart(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[str, str] | None:
    """``1`` and ``batch_size 8``, where one key alone differs; None where several do, or none."""
    keys = differing(before, after)
    if len(keys) != 1:
        return None
    name = keys[0].rsplit(".", 1)[-1]
    old, new = (_value(name, values.get(keys[0])) for values in (before, after))
    return old, new if name in _NAMED_BY_VALUE else f"{name} {new}"


def factor_changes(factors: Mapping[str, Sequence[Any]]) -> list[str]:
    """``batch_size 1 -> 8`` for each key; the whole dotted key where two would have the same name."""
    names = Counter(key.rsplit(".", 1)[-1] for key in factors)
    found = []
    for key, (old, new) in factors.items():
        name = key.rsplit(".", 1)[-1]
        found.append(f"{name if names[name] == 1 else key} {_value(name, old)} -> {_value(name, new)}")
    return found


def _value(name: str, value: object) -> str:
    if value is None:
        return "unset"
    return str(value).rstrip("/").rsplit("/", 1)[-1] if name in _NAMED_BY_VALUE else short(value)
