"""The ``sweep:`` block: axes, groups and shorthands -> the points they stand for, each value checked once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pydantic.fields import FieldInfo

from llem_airflow.study.config.base import Section, is_mapping, keys_of, model_of, takes_null
from llem_airflow.study.config.engines import EngineSection, key_of_engines
from llem_airflow.study.config.experiment import Experiment
from llem_airflow.study.config.study import OF_STUDY
from llem_airflow.study.file.document import (
    WRONG,
    Report,
    check_free,
    check_value,
    engine_names,
    full_key,
    unknown,
)
from llem_airflow.study.names import ENGINES, canonical_key
from llem_airflow.study.problems import KeyPath, closest, show
from llem_airflow.text.wording import counted

MOST_POINTS = 200_000


class Delta(NamedTuple):
    """A key, as a path, the value it is set to, and where the file says so."""

    path: tuple[str, ...]
    value: Any
    place: KeyPath = ()


Variant = tuple[Delta, ...]


class Key(NamedTuple):
    """A dotted key: its path, and the model that has it; no model below a mapping of any keys."""

    path: tuple[str, ...]
    model: type[Section] | None = None

    @property
    def field(self) -> FieldInfo | None:
        """The field that it is."""
        return None if self.model is None else keys_of(self.model)[self.path[-1]]

    @property
    def section(self) -> type[Section] | None:
        """The model of the section that the key is."""
        return model_of(self.field)

    @property
    def takes_mapping(self) -> bool:
        """Whether a value of the key can be a mapping, so that a list of mappings is an axis and no group."""
        return self.field is None or is_mapping(self.field)

    @property
    def is_open(self) -> bool:
        """Whether it is a mapping of any keys of an engine, each of which can be swept."""
        return self.model is not None and issubclass(self.model, EngineSection) and self.takes_mapping


@dataclass(slots=True)
class Dimension:
    """An axis or a group: alternatives of which each point takes one.

    Attributes:
        engine: The engine it is limited to, or None.
        group: Whether it is a group; groups are applied after axes.
        variants: The alternatives.
    """

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
    heads: set[str] = field(default_factory=set)
    """First parts of all keys that it names, known or not."""
    cut_off: bool = False
    """Whether it has too many values, so that the rest of it was not looked at."""

    def __bool__(self) -> bool:
        """Whether it sweeps anything."""
        return bool(self.dimensions or self.engines)

    def variants(self) -> Iterator[Variant]:
        """Every alternative of every axis and group."""
        return (variant for dimension in self.dimensions for variant in dimension.variants)

    def scopes(self) -> set[str]:
        """Engines that some key or group of the sweep names."""
        named = {dimension.engine for dimension in self.dimensions if dimension.engine is not None}
        return named.union(*map(engines_of, self.variants()))

    def paths(self) -> set[tuple[str, ...]]:
        """Every key that the sweep sets."""
        return {delta.path for variant in self.variants() for delta in variant}

    def points(self, engine: str) -> Iterator[Variant]:
        """The points of one engine: groups outermost, then axes, the last fastest; groups win over axes."""
        groups, axes = self._of(engine)
        for chosen in itertools.product(*groups, *axes):
            yield tuple(itertools.chain(*chosen[len(groups) :], *chosen[: len(groups)]))

    def count(self, engine: str) -> int:
        """How many points the engine has."""
        return math.prod(map(len, itertools.chain(*self._of(engine))))

    def _of(self, engine: str) -> tuple[list[list[Variant]], list[list[Variant]]]:
        mine = [dimension for dimension in self.dimensions if dimension.engine in {None, engine}]
        groups = [dimension.of(engine) for dimension in mine if dimension.group]
        # Axes of all engines come before those of one engine: plans have the order of llenergymeasure.
        axes = sorted((one for one in mine if not one.group), key=lambda one: one.engine is not None)
        return groups, [dimension.of(engine) for dimension in axes]


def engines_of(variant: Variant) -> set[str]:
    """The engines whose sections the variant sets, or that it names."""
    return {
        path[0] if path[0] in ENGINES else value
        for path, value, _ in variant
        if path[0] in ENGINES or path == ("engine",)
    }


def parse_sweep(value: Any, report: Report) -> Sweep:
    """Read the block; every problem goes to ``report``."""
    sweep = Sweep()
    if value is None:
        return sweep
    if not isinstance(value, dict):
        report(("sweep",), f"found {show(value)}", "allowed: a mapping of axes (dotted key: list) and groups")
        return sweep
    seen: dict[str, str] = {}
    for name, content in value.items():
        key, path = canonical_key(name), ("sweep", name)
        if content is not None and seen.setdefault(key, name) != name:
            report(path, f"is the same key as {seen[key]!r}", "keep one of them", of_key=True)
            continue
        rows = [{key: None}, *(content if isinstance(content, list) else ())]
        sweep.heads |= {
            canonical_key(one).split(".")[0] for row in rows if isinstance(row, dict) for one in row
        }
        if key == "engine":
            values = enumerate(_axis_values(content, path, report))
            sweep.engines = engine_names((one for one in values if one[1] is not None), path, report)
            continue
        mappings = isinstance(content, list) and any(isinstance(item, dict) for item in content)
        found = _known(key)
        axis = not mappings or (found is not None and found.takes_mapping)
        sweep.dimensions.append((_axis if axis else _group)(key, content, path, report))
        if sum(len(dimension.variants) for dimension in sweep.dimensions) > MOST_POINTS:
            # Short ranges stand for many values: those of the rest would fill the memory.
            report(path, "the sweep has too many values", f"at most {MOST_POINTS:,} in all", of_key=True)
            sweep.cut_off = True
            break
    return sweep


def _scope(key: str) -> str | None:
    """The engine that a dotted key or the name of a group is limited to."""
    head, dot, _ = key.partition(".")
    return head if dot and head in ENGINES else None


def _axis(key: str, content: Any, path: KeyPath, report: Report) -> Dimension:
    values = _axis_values(content, path, report)
    where = resolve_key(key, path, report) if values else None
    variants: list[Variant] = []
    if where is not None:
        for index, item in enumerate(values):
            place = (*path, index) if isinstance(content, list) else path
            variants.append(_deltas(where, item, place, report))
    return Dimension(_scope(key), group=False, variants=variants)


def _axis_values(content: Any, path: KeyPath, report: Report) -> list[Any]:
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


def _walk(parts: tuple[str, ...]) -> tuple[Key | None, type[Section] | None, int]:
    """The key of a path; else the model that lacks a part, None where a value has no keys, and which part."""
    model: type[Section] | None = Experiment
    key = Key(())
    for depth, part in enumerate(parts):
        if key.is_open:
            return (Key(parts) if all(parts) else None), None, depth
        if model is None or part not in keys_of(model):
            return None, model, depth
        key = Key(parts[: depth + 1], model)
        model = key.section
    return key, None, 0


def _known(key: str) -> Key | None:
    return _walk(tuple(key.split(".")))[0]


def resolve_key(key: str, path: KeyPath, report: Report) -> Key | None:
    """What a dotted key names; an unknown one is reported."""
    parts = tuple(key.split("."))
    found, model, depth = _walk(parts)
    if found is None and model is None:
        said = f"{'.'.join(parts[:depth])!r} holds a value, it has no key {parts[depth]!r}"
        report(path, said[:200], "sweep the key itself", of_key=True)
    elif found is None and model is not None:
        _unknown_axis(model, parts, depth, path, report)
    return found


def _unknown_axis(
    model: type[Section], parts: tuple[str, ...], depth: int, path: KeyPath, report: Report
) -> None:
    name, before, whole = parts[depth], ".".join(parts[:depth]), ".".join(parts)
    found = f"unknown key {whole!r}"[:160]
    group = canonical_key(str(path[1])) if len(path) > 2 else ""
    if depth == 0 and (name in OF_STUDY or group in OF_STUDY):
        found = f"{name if name in OF_STUDY else group!r} belongs to the whole study and cannot be swept"
        report(path, found, "write it at the top level", of_key=True)
    elif depth == 0 and group and _known(f"{group}.{whole}"):
        report(path, found, "a key of a group is a full dotted key", f"{group}.{whole}", of_key=True)
    elif moved := model.moved_to(name):
        report(path, found, moved, of_key=True)
    elif len(parts) == 1 and (deep := full_key(name, Experiment)):
        report(path, found, "an axis is a full dotted key", deep, of_key=True)
    elif len(parts) == 1 and (theirs := key_of_engines(name)):
        report(path, found, theirs, of_key=True)
    else:
        meant = _corrected(parts)
        words = f"allowed keys{' of ' + before if before else ''}: {', '.join(keys_of(model))}"
        report(path, found, "no such key" if meant else words[:300], meant, of_key=True)


def _corrected(parts: tuple[str, ...]) -> str | None:
    """The dotted key that is probably meant, as far as it is known."""
    meant: str | None = None
    for _ in parts:
        key, model, depth = _walk(parts)
        better = None if model is None else closest(parts[depth], keys_of(model))
        if key is not None or better is None:
            return ".".join(parts) if key is not None else meant
        parts = (*parts[:depth], better, *parts[depth + 1 :])
        meant = ".".join(parts[: depth + 1])
    return meant


def _deltas(key: Key, value: Any, place: KeyPath, report: Report) -> Variant:
    """What setting a key comes to; a mapping for a section is taken apart into its values."""
    section = key.section
    if section is None and key.is_open and isinstance(value, dict):
        parts = [(Key((*key.path, name)), child, (*place, name)) for name, child in value.items()]
        return tuple(delta for each in parts for delta in _deltas(*each, report))
    if value is None and key.field is not None and not takes_null(key.field):
        return ()  # null is the same as leaving the key out
    if section is None:
        checked = _checked(key, value, place, report)
        return () if checked is WRONG else (Delta(key.path, checked, place),)
    if not isinstance(value, dict):
        report(place, f"found {show(value)} for the section {'.'.join(key.path)!r}", "sweep one of its keys")
        return ()
    found: list[Delta] = []
    for name, child in value.items():
        if name not in keys_of(section):
            unknown(section, name, place, report)
        else:
            found += _deltas(Key((*key.path, name), section), child, (*place, name), report)
    return tuple(found)


def _checked(key: Key, value: Any, place: KeyPath, report: Report) -> Any:
    if key.model is None:
        return check_free(value, place, report)
    return check_value(key.model, key.path[-1], value, place, report)


def _group(key: str, content: list[Any], path: KeyPath, report: Report) -> Dimension:
    found = Dimension(_scope(key), group=True, variants=[])
    named = _known(key)
    if not all(isinstance(item, dict) for item in content):
        advice = "an axis lists plain values, a group lists mappings"
        report(path, f"{path[-1]!r} mixes mappings and plain values"[:200], advice)
    elif named is not None and named.section is None:
        advice = "give the group a name of its own"
        report(path, f"the group {key!r} is named like a key that can be an axis", advice, of_key=True)
    else:
        for index, variant in enumerate(content):
            found.variants += _variants(variant, (*path, index), report)
            if len(found.variants) > MOST_POINTS:  # told by the caller
                break
    return found


def _variants(variant: dict[str, Any], path: KeyPath, report: Report) -> list[Variant]:
    """One entry of a group; lists in it span a small grid."""
    choices: list[list[Variant]] = []
    total = 1
    seen: dict[str, str] = {}
    for name, value in variant.items():
        key = canonical_key(name)
        if value is not None and seen.setdefault(key, name) != name:
            said = f"is the same key as {seen[key]!r}"
            report((*path, name), said, "keep one of them", of_key=True)
            continue
        where = resolve_key(key, (*path, name), report)
        if where is None:
            continue
        if isinstance(value, list) and not value:
            report((*path, name), f"the list of {name!r} is empty"[:200], "give it at least one value")
            continue
        items = [((*path, name, i), item) for i, item in enumerate(value)] if isinstance(value, list) else []
        choices.append([_deltas(where, item, at, report) for at, item in items or [((*path, name), value)]])
        total *= len(choices[-1])
    if total > MOST_POINTS:
        report(path, f"this variant is a grid of {counted(total, 'point')}", f"at most {MOST_POINTS:,}")
        return []
    return [tuple(itertools.chain.from_iterable(combination)) for combination in itertools.product(*choices)]


MOST_VALUES = 100_000
_RANGES = {"linear": {"min", "max", "num"}, "log": {"min", "max", "num"}, "pow2": {"min", "max"}}
SHAPES = "{min, max, num}, {log: {min, max, num}} or {pow2: {min, max}}"

Number = int | float


class RangeError(ValueError):
    """A shorthand is wrong; the text says what is wrong with it."""


def expand_range(shorthand: dict[str, Any]) -> list[Number]:
    """The values that the shorthand stands for, ascending, each once.

    Raises:
        RangeError: It is not one of the shapes, or its numbers make no range.
    """
    shape = next((name for name in ("log", "pow2") if set(shorthand) == {name}), "linear")
    given = shorthand if shape == "linear" else shorthand[shape]
    if not isinstance(given, dict) or set(given) != _RANGES[shape]:
        found = f"a mapping with the keys {', '.join(sorted(map(str, shorthand))) or 'none'} is no range"
        if shape != "linear":
            found = f"{shape} needs exactly the keys {', '.join(sorted(_RANGES[shape]))}"
        raise RangeError(f"{found}; the shapes are {SHAPES}")
    low, high = (_finite(name, given[name]) for name in ("min", "max"))
    if low > high:
        raise RangeError(f"min {low} is above max {high}")
    num = 2 if shape == "pow2" else _num(given["num"])
    if low <= 0 and shape != "linear":
        raise RangeError(f"{shape} needs min above 0, found {low}")
    if num == 1:
        return [low]
    made: list[Number] = {"linear": _linear, "log": _log, "pow2": _pow2}[shape](low, high, num)
    return list(dict.fromkeys(made))


def _finite(name: str, value: Any) -> Number:
    if type(value) is int and abs(value) < 2**63:
        return value
    if type(value) is float and math.isfinite(value):
        return value
    raise RangeError(f"{name} must be a finite number")


def _num(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise RangeError("num must be a whole number, 1 or more")
    if value > MOST_VALUES:
        raise RangeError(f"num is above {MOST_VALUES:,}")
    return value


def _linear(low: Number, high: Number, num: int) -> list[Number]:
    if isinstance(low, int) and isinstance(high, int) and (high - low) % (num - 1) == 0:
        return [low + (high - low) // (num - 1) * index for index in range(num)]
    inside = [_clean(low + (high - low) * index / (num - 1)) for index in range(1, num - 1)]
    return [float(low), *inside, float(high)]


def _log(low: Number, high: Number, num: int) -> list[Number]:
    # exp of logs, not a power of the ratio: high / low can overflow
    step = (math.log(high) - math.log(low)) / (num - 1)
    inside = [_clean(math.exp(math.log(low) + step * index)) for index in range(1, num - 1)]
    values = [float(low), *inside, float(high)]
    whole = isinstance(low, int) and isinstance(high, int) and all(value.is_integer() for value in values)
    return [int(value) if whole else value for value in values]


def _pow2(low: Number, high: Number, _num: int) -> list[Number]:
    first, last = math.floor(math.log2(low)) - 1, math.ceil(math.log2(high)) + 1
    inside = [2**power for power in range(first, last + 1) if low <= 2**power <= high]
    if not inside:
        raise RangeError(f"no power of two lies between {low} and {high}")
    return inside if all(isinstance(power, int) for power in inside) else [float(power) for power in inside]


def _clean(value: float) -> float:
    """Without binary noise: 0.30000000000000004 is 0.3."""
    return float(f"{value:.10g}")
