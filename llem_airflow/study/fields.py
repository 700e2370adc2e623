"""What a key may hold, as data, and the one checker that reads it.

A table instead of model classes: each value is checked once, where it is written, however many experiments
a sweep makes of it, and the same table gives the defaults, the JSON Schema and the proof that every key is
consumed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from llem_airflow.study.mistakes import Path, closest, show

Report = Callable[..., None]
"""``report(path, found, allowed, suggestion=None, of_key=False)`` notes one mistake."""

KINDS = {
    "integer": "a whole number",
    "number": "a number",
    "string": "text",
    "boolean": "true or false",
    "any": "any value",
    "strings": "a list of texts",
    "integers": "a list of whole numbers",
    "numbers": "a list of numbers",
    "mapping": "a mapping",
}


@dataclass(frozen=True, slots=True)
class Leaf:
    """A key that holds one value.

    Attributes:
        kind: One of KINDS.
        doc: One sentence for the JSON Schema and the README; names the unit.
        default: Value when the key is absent.
        required: The key has no default and must be there.
        nullable: null may be written.
        null_is: What null stands for, when it stands for a value.
        least: Smallest value allowed, or length of a text or list.
        above: Values must be greater than this.
        most: Largest value allowed.
        choices: Every value allowed.
        aliases: Other spellings of choices.
        also: Further check: returns what is wrong and what is allowed, or None.
    """

    kind: str
    doc: str
    default: Any = None
    required: bool = False
    nullable: bool = False
    null_is: Any = None
    least: float | None = None
    above: float | None = None
    most: float | None = None
    choices: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    also: Callable[[Any], tuple[str, str] | None] | None = None

    def allowed(self) -> str:
        """What may be written, in words."""
        if self.choices:
            words = f"allowed: {', '.join(self.choices)}"
        else:
            words = f"allowed: {KINDS[self.kind]}{self._bounds()}"
        return f"{words}, or null" if self.nullable or self.null_is is not None else words

    def _bounds(self) -> str:
        if self.kind in {"string", "strings", "integers", "mapping"}:
            return " that is not empty" if self.least else ""
        if self.least is not None and self.most is not None:
            return f" from {self.least:g} to {self.most:g}"
        if self.above is not None and self.most is not None:
            return f" above {self.above:g}, at most {self.most:g}"
        if self.above is not None:
            return f" above {self.above:g}"
        return f", {self.least:g} or more" if self.least is not None else ""


@dataclass(frozen=True, slots=True)
class Section:
    """A key that holds keys.

    Attributes:
        doc: One sentence.
        keys: What it holds.
        optional: Absent unless written: its defaults are not filled in.
        open: Unknown keys pass through; ``keys`` then only documents the known ones.
        moved: Keys of old places: name -> where it is now.
        also: Check over the whole section: yields (path below it, found, allowed).
    """

    doc: str
    keys: Mapping[str, Leaf | Section | Rows]
    optional: bool = False
    open: bool = False
    moved: Mapping[str, str] = field(default_factory=dict)
    also: Callable[[dict[str, Any]], Iterator[tuple[Path, str, str]]] | None = None


@dataclass(frozen=True, slots=True)
class Rows:
    """A key that holds a list of mappings.

    Attributes:
        doc: One sentence.
        row: What each holds.
        unique: The key whose values must all differ.
    """

    doc: str
    row: Section
    unique: str = ""


What = Leaf | Section | Rows


def check(what: What, value: Any, path: Path, report: Report) -> Any:
    """The value in canonical spelling; what is wrong with it goes to ``report``."""
    if isinstance(what, Section):
        return _check_section(what, value, path, report)
    return (
        _check_rows(what, value, path, report)
        if isinstance(what, Rows)
        else _check_leaf(what, value, path, report)
    )


def defaults(section: Section) -> dict[str, Any]:
    """The section with every default filled in; required keys and optional sections are left out."""
    filled: dict[str, Any] = {}
    for name, what in section.keys.items():
        if isinstance(what, Section):
            if not what.optional:
                filled[name] = {} if what.open else defaults(what)
        elif isinstance(what, Rows):
            filled[name] = []
        elif not what.required:
            filled[name] = what.default
    return filled


def leaves(section: Section, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], What]]:
    """Every leaf below the section with its path; an open section counts as one leaf."""
    for name, what in section.keys.items():
        if isinstance(what, Section) and not what.open:
            yield from leaves(what, (*path, name))
        elif isinstance(what, Rows):
            yield from leaves(what.row, (*path, name))
        else:
            yield (*path, name), what


def _check_section(section: Section, value: Any, path: Path, report: Report) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        report(
            path, f"found {show(value)}", f"allowed: a mapping with the keys {', '.join(section.keys)}"[:300]
        )
        return {}
    result: dict[str, Any] = {}
    for name, child in value.items():
        what = section.keys.get(name)
        if what is not None:
            result[name] = check(what, child, (*path, name), report)
        elif name in section.moved:
            report((*path, name), f"{name!r} is not a key here", section.moved[name], of_key=True)
        elif section.open:
            result[name] = check_free(child, (*path, name), report)
        else:
            unknown(section, name, path, report)
    if section.also is not None:
        for below, found, allowed in section.also(result):
            report((*path, *below), found, allowed)
    return result


def _check_rows(rows: Rows, value: Any, path: Path, report: Report) -> list[dict[str, Any]]:
    if value is None:
        return []
    if not isinstance(value, list):
        report(path, f"found {show(value)}", "allowed: a list of mappings")
        return []
    result = []
    for index, row in enumerate(value):
        checked = _check_section(rows.row, row, (*path, index), report)
        if isinstance(row, dict):
            missing = [
                name
                for name, leaf in rows.row.keys.items()
                if getattr(leaf, "required", False) and name not in row
            ]
            for name in missing:
                report((*path, index), f"the key {name!r} is missing", f"add {name}: ...")
        result.append(defaults(rows.row) | checked)
    marks = [row.get(rows.unique) for row in result]
    for index, mark in enumerate(marks):
        if mark is not None and mark in marks[:index]:
            report((*path, index, rows.unique), f"{mark!r} is there twice", "give each its own")
    return result


def unknown(section: Section, name: str, path: Path, report: Report) -> None:
    """Report a key that the section does not have."""
    known = list(section.keys)
    meant = closest(name, known)
    allowed = "no such key" if meant else f"allowed keys: {', '.join(known)}"
    report((*path, name), f"unknown key {name!r}"[:120], allowed[:400], meant, of_key=True)


def check_free(value: Any, path: Path, report: Report) -> Any:
    """Check a value that passes through to an engine: any JSON value with finite numbers."""
    if isinstance(value, float) and not math.isfinite(value):
        report(path, f"found {value}", "allowed: a finite number")
    elif isinstance(value, dict):
        return {name: check_free(child, (*path, name), report) for name, child in value.items()}
    elif isinstance(value, list):
        return [check_free(child, (*path, index), report) for index, child in enumerate(value)]
    return value


def _check_leaf(leaf: Leaf, value: Any, path: Path, report: Report) -> Any:
    if value is None and (leaf.nullable or leaf.kind == "any" or leaf.null_is is not None):
        return leaf.null_is
    result = _typed(leaf, value)
    if result is _WRONG:
        report(path, f"found {show(value)}", leaf.allowed() + _hint(leaf, value), _meant(leaf, value))
        return leaf.default
    if leaf.kind in {"any", "mapping"}:
        result = check_free(result, path, report)
    wrong = leaf.also(result) if leaf.also is not None and result is not None else None
    if wrong is not None:
        report(path, *wrong)
    return result


def _meant(leaf: Leaf, value: Any) -> str | None:
    return closest(value, (*leaf.choices, *leaf.aliases)) if isinstance(value, str) and leaf.choices else None


def _hint(leaf: Leaf, value: Any) -> str:
    if leaf.kind == "string" and isinstance(value, (int, float)):
        return " (put it in quotes)"
    if leaf.kind in {"integer", "number", "boolean"} and isinstance(value, str) and value.strip():
        text = value.strip()
        if text.replace(".", "", 1).lstrip("-").isdigit() or text.lower() in {"true", "false"}:
            return " (without quotes)"
    return ""


class _Wrong:
    """Marks a value of the wrong type; None is a possible right value."""


_WRONG = _Wrong()


def _typed(leaf: Leaf, value: Any) -> Any:
    """The value in canonical form, or _WRONG."""
    reader = _READERS.get(leaf.kind)
    return value if reader is None else reader(leaf, value)


def _integer(leaf: Leaf, value: Any) -> Any:
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        value = int(value)
    return value if type(value) is int and abs(value) < 2**63 and _inside(leaf, value) else _WRONG


def _real(leaf: Leaf, value: Any) -> Any:
    if type(value) not in {int, float} or (isinstance(value, int) and abs(value) >= 2**63):
        return _WRONG
    return value if math.isfinite(value) and _inside(leaf, value) else _WRONG


def _inside(leaf: Leaf, value: float) -> bool:
    if leaf.least is not None and value < leaf.least:
        return False
    if leaf.above is not None and value <= leaf.above:
        return False
    return leaf.most is None or value <= leaf.most


def _text(leaf: Leaf, value: Any) -> Any:
    if not isinstance(value, str) or (leaf.least and not value.strip()):
        return _WRONG
    if leaf.choices:
        value = leaf.aliases.get(value, value)
        return value if value in leaf.choices else _WRONG
    return value


def _boolean(_leaf: Leaf, value: Any) -> Any:
    return value if isinstance(value, bool) else _WRONG


def _mapping(leaf: Leaf, value: Any) -> Any:
    return value if isinstance(value, dict) and (value or not leaf.least) else _WRONG


def _list_of(types: tuple[type, ...]) -> Callable[[Leaf, Any], Any]:
    def read(leaf: Leaf, value: Any) -> Any:
        if not isinstance(value, list) or (leaf.least and not value):
            return _WRONG
        good = all(type(item) in types and (isinstance(item, str) or math.isfinite(item)) for item in value)
        if good and leaf.choices and not all(item in leaf.choices for item in value):
            return _WRONG
        return value if good else _WRONG

    return read


_READERS: dict[str, Callable[[Leaf, Any], Any]] = {
    "integer": _integer,
    "number": _real,
    "string": _text,
    "boolean": _boolean,
    "mapping": _mapping,
    "strings": _list_of((str,)),
    "integers": _list_of((int,)),
    "numbers": _list_of((int, float)),
}
