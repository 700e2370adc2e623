"""The ``sweep:`` block: axes, groups and shorthands -> the points they stand for, each value checked once."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from llem_airflow.study.engine_names import ENGINES, canonical_key
from llem_airflow.study.fields import Leaf, Report, Section, check, check_free, unknown
from llem_airflow.study.keys import EXPERIMENT
from llem_airflow.study.mistakes import Path, closest, show
from llem_airflow.study.ranges import RangeError, expand_range
from llem_airflow.study.study_keys import STUDY_ONLY

Delta = tuple[tuple[str, ...], Any]
"""A key, as a path, and the value it is set to."""
Variant = tuple[Delta, ...]

MOST_POINTS = 200_000


@dataclass(slots=True)
class Dimension:
    """An axis or a group: alternatives of which each point takes one.

    Attributes:
        name: Its key in the sweep.
        engine: The engine it is limited to, or None.
        group: Whether it is a group; groups are applied after axes.
        variants: The alternatives.
    """

    name: str
    engine: str | None
    group: bool
    variants: list[Variant]

    def of(self, engine: str) -> list[Variant]:
        """The alternatives for one engine: those that set keys of another engine are not for it."""
        fitting = [variant for variant in self.variants if engines_of(variant) <= {engine}]
        return fitting or [()]


@dataclass(slots=True)
class Sweep:
    """A parsed sweep."""

    dimensions: list[Dimension] = field(default_factory=list)
    engines: list[str] = field(default_factory=list)
    """Engines of a swept ``engine`` key."""

    def scopes(self) -> set[str]:
        """Engines that some key or group of the sweep names."""
        named = {dimension.engine for dimension in self.dimensions if dimension.engine is not None}
        return named.union(
            *(engines_of(variant) for dimension in self.dimensions for variant in dimension.variants)
        )

    def paths(self) -> set[tuple[str, ...]]:
        """Every key that the sweep sets."""
        return {
            path for dimension in self.dimensions for variant in dimension.variants for path, _ in variant
        }

    def points(self, engine: str) -> Iterator[Variant]:
        """The points of one engine: groups outermost, then axes, the last fastest; groups win over axes."""
        groups, axes = self._of(engine)
        for overlay in itertools.product(*groups):
            after = tuple(itertools.chain.from_iterable(overlay))
            for values in itertools.product(*axes):
                yield tuple(itertools.chain.from_iterable(values)) + after

    def count(self, engine: str) -> int:
        """How many points the engine has."""
        product = 1
        for variants in itertools.chain(*self._of(engine)):
            product *= len(variants)
        return product

    def _of(self, engine: str) -> tuple[list[list[Variant]], list[list[Variant]]]:
        mine = [dimension for dimension in self.dimensions if dimension.engine in {None, engine}]
        groups = [dimension.of(engine) for dimension in mine if dimension.group]
        # Axes of all engines come before those of one engine: plans have the order of llenergymeasure.
        axes = [d for d in mine if not d.group and d.engine is None] + [
            d for d in mine if not d.group and d.engine
        ]
        return groups, [dimension.of(engine) for dimension in axes]


def _scope(key: str) -> str | None:
    """The engine that a dotted key or the name of a group is limited to."""
    head, dot, _ = key.partition(".")
    return head if dot and head in ENGINES else None


def engines_of(variant: Variant) -> set[str]:
    """The engines whose sections the variant sets, or that it names."""
    return {
        path[0] if path[0] in ENGINES else value
        for path, value in variant
        if path[0] in ENGINES or path == ("engine",)
    }


def parse_sweep(value: Any, report: Report) -> Sweep:
    """Read the block; every mistake goes to ``report``."""
    sweep = Sweep()
    if value is None:
        return sweep
    if not isinstance(value, dict):
        report(("sweep",), f"found {show(value)}", "allowed: a mapping of axes (dotted key: list) and groups")
        return sweep
    seen: dict[str, str] = {}
    for name, content in value.items():
        key = canonical_key(name)
        if key in seen:
            report(("sweep", name), f"is the same key as {seen[key]!r}", "keep one of them", of_key=True)
            continue
        seen[key] = name
        if key == "engine":
            sweep.engines = _engine_axis(content, ("sweep", name), report)
        elif isinstance(content, list) and any(isinstance(item, dict) for item in content):
            sweep.dimensions.append(_group(key, content, ("sweep", name), report))
        else:
            sweep.dimensions.append(_axis(key, content, ("sweep", name), report))
    return sweep


def _engine_axis(content: Any, path: Path, report: Report) -> list[str]:
    values = content if isinstance(content, list) else [content]
    if not values:
        report(path, "the axis is empty", "give it at least one value")
    leaf = EXPERIMENT.keys["engine"]
    return list(dict.fromkeys(check(leaf, item, (*path, index), report) for index, item in enumerate(values)))


def _axis(key: str, content: Any, path: Path, report: Report) -> Dimension:
    values = _axis_values(content, path, report)
    where = resolve_key(key, path, report) if values else None
    variants: list[Variant] = []
    if where is not None:
        for index, item in enumerate(values):
            place = (*path, index) if isinstance(content, list) else path
            variants.append(_delta(*where, item, place, report))
    return Dimension(key, _scope(key), group=False, variants=variants)


def _axis_values(content: Any, path: Path, report: Report) -> list[Any]:
    if isinstance(content, dict):
        try:
            return list(expand_range(content))
        except RangeError as error:
            report(path, f"sweep axis {path[-1]!r}: {error}"[:300], "write a list of values or a range")
            return []
    values = content if isinstance(content, list) else [content]
    if not values:
        report(path, f"the axis {path[-1]!r} is empty"[:200], "give it at least one value")
    return values


def resolve_key(key: str, path: Path, report: Report) -> tuple[tuple[str, ...], Leaf | Section | None] | None:
    """The table entry of a dotted key (None below an open section); an unknown key is reported."""
    parts = tuple(key.split("."))
    what: Any = EXPERIMENT
    for depth, part in enumerate(parts):
        if not isinstance(what, Section):
            report(
                path,
                f"{'.'.join(parts[:depth])!r} holds a value, it has no key {part!r}"[:200],
                "sweep the key itself",
                of_key=True,
            )
            return None
        if part not in what.keys:
            if what.open and part:
                return parts, None
            _unknown_axis(what, parts, depth, path, report)
            return None
        what = what.keys[part]
    return parts, what


def _unknown_axis(section: Section, parts: tuple[str, ...], depth: int, path: Path, report: Report) -> None:
    name = parts[depth]
    if depth == 0 and (name in STUDY_ONLY.keys or name in {"sweep", "experiments"}):
        report(
            path,
            f"{name!r} belongs to the whole study and cannot be swept",
            "write it at the top level",
            of_key=True,
        )
    elif name in section.moved:
        report(path, f"unknown key {'.'.join(parts)!r}"[:160], section.moved[name], of_key=True)
    elif depth == 0 and len(parts) == 1 and (known := _deep(name)):
        report(path, f"unknown key {name!r}", "an axis is a full dotted key", known, of_key=True)
    else:
        before = ".".join(parts[:depth])
        meant = closest(name, section.keys)
        suggestion = ".".join(filter(None, (before, meant))) if meant else None
        allowed = f"allowed keys{' of ' + before if before else ''}: {', '.join(section.keys)}"
        report(
            path,
            f"unknown key {'.'.join(parts)!r}"[:160],
            "no such key" if meant else allowed[:300],
            suggestion,
            of_key=True,
        )


def _deep(name: str, section: Section = EXPERIMENT, before: str = "") -> str | None:
    """The full dotted key of a bare name, when some section has it."""
    for key, what in section.keys.items():
        if key == name and before:
            return before + key
        if isinstance(what, Section):
            found = _deep(name, what, f"{before}{key}.")
            if found:
                return found
    return None


def _delta(
    parts: tuple[str, ...], what: Leaf | Section | None, value: Any, path: Path, report: Report
) -> Variant:
    if isinstance(what, Section):
        if not isinstance(value, dict):
            report(path, f"found {show(value)} for the section {'.'.join(parts)!r}", "sweep one of its keys")
            return ()
        return flatten(value, parts, what, path, report)
    if what is None:
        return ((parts, check_free(value, path, report)),)
    return ((parts, check(what, value, path, report)),)


def flatten(
    value: dict[str, Any], parts: tuple[str, ...], section: Section, path: Path, report: Report
) -> Variant:
    """The leaves of a nested mapping below a section, checked, as deltas."""
    deltas: list[Delta] = []
    for name, child in value.items():
        what = section.keys.get(name)
        if what is None and not section.open:
            unknown(section, name, path, report)
            continue
        if what is None or isinstance(what, Leaf):
            deltas += _delta((*parts, name), what, child, (*path, name), report)
        elif isinstance(child, dict) and isinstance(what, Section):
            deltas += flatten(child, (*parts, name), what, (*path, name), report)
    return tuple(deltas)


def _group(key: str, content: list[Any], path: Path, report: Report) -> Dimension:
    found = Dimension(key, _scope(key), group=True, variants=[])
    if not all(isinstance(item, dict) for item in content):
        report(
            path,
            f"{path[-1]!r} mixes mappings and plain values"[:200],
            "an axis lists plain values, a group lists mappings",
        )
        return found
    if isinstance(_leaf_named(key), Leaf):
        report(
            path,
            f"the group {key!r} is named like a key that can be an axis",
            "give the group a name of its own",
            of_key=True,
        )
        return found
    for index, variant in enumerate(content):
        found.variants += _variants(variant, (*path, index), report)
    if len(found.variants) > MOST_POINTS:
        report(
            path, f"the group has {len(found.variants):,} variants", f"at most {MOST_POINTS:,}", of_key=True
        )
    return found


def _leaf_named(key: str) -> Any:
    what: Any = EXPERIMENT
    for part in key.split("."):
        what = what.keys.get(part) if isinstance(what, Section) else None
    return what


def _variants(variant: dict[str, Any], path: Path, report: Report) -> list[Variant]:
    """One entry of a group; lists in it span a small grid."""
    choices: list[list[Variant]] = []
    for name, value in variant.items():
        where = resolve_key(canonical_key(name), (*path, name), report)
        if where is None:
            continue
        if isinstance(value, list) and not value:
            report((*path, name), f"the list of {name!r} is empty"[:200], "give it at least one value")
            continue
        values = value if isinstance(value, list) else [value]
        places = [
            (*path, name, index) if isinstance(value, list) else (*path, name) for index in range(len(values))
        ]
        choices.append(
            [_delta(*where, item, place, report) for item, place in zip(values, places, strict=True)]
        )
    total = 1
    for choice in choices:
        total *= len(choice)
    if total > MOST_POINTS:
        report(path, f"this variant is a grid of {total:,} points", f"at most {MOST_POINTS:,}")
        return []
    return [tuple(itertools.chain.from_iterable(combination)) for combination in itertools.product(*choices)]
