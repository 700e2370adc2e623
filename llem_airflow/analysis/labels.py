"""What changed between experiments, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from llem_airflow.study.labels import NAMED_BY_VALUE, short


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
    return old, new if name in NAMED_BY_VALUE else f"{name} {new}"


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
    return str(value).rstrip("/").rsplit("/", 1)[-1] if name in NAMED_BY_VALUE else short(value)
