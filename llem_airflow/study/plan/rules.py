"""Combinations that an engine refuses or ignores, as data: study/data/rules-<engine>.json.

A rule is ``{"id", "effect", "when", "ignores", "reason", "version", "source"}``. ``effect`` is ``invalid``
(the point is skipped) or ``no-effect`` (the engine ignores the keys in ``ignores``). ``when`` is a list of
conditions, all of which must hold: ``[key, operator, value, default]``. A value ``{"key": other}`` compares
with another key. A key that is absent or null makes its condition false unless it has a default; ``unset``
is the operator for absent keys.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from llem_airflow.study.config.base import Config, KeyNames, lookup, overlap
from llem_airflow.study.names import OWN_ENGINES

_FOLDER = Path(__file__).parents[1] / "data"
Test = Callable[[Any, Any], bool]


def _same(left: Any, right: Any) -> bool:
    """Equality that keeps true apart from 1."""
    return bool(left == right) and isinstance(left, bool) == isinstance(right, bool)


_KINDS: dict[str, Any] = {"integer": int, "number": (int, float), "text": str}


def _is_a(value: Any, kind: str) -> bool:
    return isinstance(value, _KINDS[kind]) and not isinstance(value, bool)


def _numbers(test: Test) -> Test:
    return lambda value, other: _is_a(value, "number") and _is_a(other, "number") and test(value, other)


_TEST: dict[str, Test] = {
    "<": _numbers(operator.lt),
    "<=": _numbers(operator.le),
    ">": _numbers(operator.gt),
    ">=": _numbers(operator.ge),
    "is": _same,
    "is not": lambda value, other: not _same(value, other),
    "in": lambda value, other: any(_same(value, item) for item in other),
    "not in": lambda value, other: not any(_same(value, item) for item in other),
    "set": lambda _value, _other: True,
    "begins": lambda value, other: isinstance(value, str) and value.startswith(other),
    "is a": _is_a,
    "is not a": lambda value, kind: not _is_a(value, kind),
}


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition of a rule."""

    path: KeyNames
    operator: str
    value: Any = None
    default: Any = None

    def holds(self, config: Config) -> bool:
        """Whether the configuration meets it."""
        actual = lookup(config, self.path)
        if self.operator == "unset":
            return actual is None
        if actual is None:
            actual = self.default
        if actual is None:
            return False
        other = self.value
        if isinstance(other, dict):
            other = lookup(config, tuple(other["key"].split(".")))
            if other is None:
                return False
        return _TEST[self.operator](actual, other)

    def paths(self) -> list[KeyNames]:
        """The keys that it looks at."""
        other = [tuple(self.value["key"].split("."))] if isinstance(self.value, dict) else []
        return [self.path, *other]


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule.

    Attributes:
        id: Its stable name.
        invalid: The point cannot run; otherwise the keys in ``ignores`` have no effect.
        conditions: When it applies.
        ignores: Keys that have no effect.
        reason: One sentence for people.
        version: Versions of the engine it was read for.
        source: Where it was read.
        notice: Tell the user when it applies.
        neutral: The keys in ``ignores`` are left out of the hash, too.
    """

    id: str
    invalid: bool
    conditions: tuple[Condition, ...]
    ignores: tuple[KeyNames, ...]
    reason: str
    version: str
    source: str
    notice: bool
    neutral: bool

    @property
    def section(self) -> str:
        """The section of the keys that it makes idle; all its conditions look there, too."""
        return self.ignores[0][0] if self.ignores else ""

    def applies(self, config: Config) -> bool:
        """Whether every condition holds."""
        return all(condition.holds(config) for condition in self.conditions)

    def told(self, config: Config) -> str:
        """The reason, with the value where it is none of those that are allowed."""
        for condition in self.conditions:
            if condition.operator in {"not in", "is not a"}:
                found = f"found {lookup(config, condition.path)!r}"[:80]
                known = "" if "must" in self.reason else f"; allowed: {', '.join(map(str, condition.value))}"
                return f"{self.reason} ({found}{known})"
        return self.reason


@cache
def rules_of(engine: str) -> tuple[Rule, ...]:
    """The rules of an engine, those that hold for every engine first."""
    return tuple(
        _rule(entry)
        for name in ("any", *({engine} & set(OWN_ENGINES)))
        for entry in json.loads((_FOLDER / f"rules-{name}.json").read_text("utf-8"))
    )


def relevant(rules: tuple[Rule, ...], base: Config, varied: set[KeyNames]) -> tuple[Rule, ...]:
    """The rules that can apply to some point: what all points share decides the others."""

    def can_hold(condition: Condition) -> bool:
        touched = any(overlap(path, other) for path in condition.paths() for other in varied)
        return touched or condition.holds(base)

    return tuple(rule for rule in rules if all(map(can_hold, rule.conditions)))


def _rule(entry: dict[str, Any]) -> Rule:
    return Rule(
        id=entry["id"],
        invalid=entry["effect"] == "invalid",
        conditions=tuple(Condition(tuple(key.split(".")), *rest) for key, *rest in entry["when"]),
        ignores=tuple(tuple(key.split(".")) for key in entry.get("ignores", ())),
        reason=entry["reason"],
        version=entry["version"],
        source=entry["source"],
        notice=entry.get("notice", False),
        neutral=entry.get("neutral", False),
    )
