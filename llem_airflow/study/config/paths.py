"""Nested mappings, by the paths of their keys. Nothing is changed; what is untouched is shared."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

Config = dict[str, Any]
"""The configuration of an experiment, as written or as it is measured."""
KeyPath = tuple[str, ...]


def lookup(config: Config, path: KeyPath) -> Any:
    """The value at a path, or None."""
    node: Any = config
    for key in path:
        if not isinstance(node, dict):
            return None
        node = node.get(key)
    return node


def merged(below: Config, above: Config) -> Config:
    """``above`` laid over ``below``, mapping by mapping."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def replaced(config: Config, path: KeyPath, value: Any) -> Config:
    """The mapping with one key set; a mapping that is set is laid over the one that is there."""
    head, *rest = path
    old = config.get(head)
    if rest:
        value = replaced(old if isinstance(old, dict) else {}, tuple(rest), value)
    elif isinstance(old, dict) and isinstance(value, dict):
        value = merged(old, value)
    return config | {head: value}


def with_values(config: Config, values: Iterable[tuple[KeyPath, Any]]) -> Config:
    """The mapping with some keys set, in order."""
    for path, value in values:
        config = replaced(config, path, value)
    return config


def without(config: Config, path: KeyPath) -> Config:
    """The mapping without one key."""
    head, *rest = path
    if head not in config:
        return config
    if not rest:
        return {key: value for key, value in config.items() if key != head}
    if isinstance(config[head], dict):
        return config | {head: without(config[head], tuple(rest))}
    return config


def leaf_paths(value: Mapping[str, Any], before: KeyPath = ()) -> Iterator[KeyPath]:
    """The paths of all values that are no mappings."""
    for key, child in value.items():
        if isinstance(child, dict):
            yield from leaf_paths(child, (*before, key))
        else:
            yield (*before, key)


def overlap(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    """Whether one of two paths lies below the other."""
    length = min(len(one), len(other))
    return one[:length] == other[:length]
