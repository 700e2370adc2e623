"""What is wrong with a study file: every problem at once, each with its place and what to write instead."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from llem_airflow.text.wording import counted

KeyPath = tuple[str | int, ...]
"""Keys and list indices from the top of a file down to a value."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        file: Name of the file, as the user gave it.
        line: Line, from 1.
        column: Column, from 1.
        path: Dotted path of the key, empty for the file as a whole.
        found: What is there.
        allowed: What could be there instead, or what to do.
        suggestion: The name that was probably meant, or None.
    """

    file: str
    line: int
    column: int
    path: str
    found: str
    allowed: str
    suggestion: str | None = None

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}:{self.column}: "
        what = f"{self.path}: {self.found}" if self.path else self.found
        meant = f" Did you mean {self.suggestion!r}?" if self.suggestion else ""
        return f"{where}{what}; {self.allowed}.{meant}" if self.allowed else f"{where}{what}.{meant}"

    def to_json(self) -> dict[str, object]:
        """The problem as plain JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class StudyWarning:
    """Something the user should know although the study runs.

    Attributes:
        code: Short stable name of the kind of warning.
        message: One sentence.
        line: Line of the study file it is about, from 1, or None.
    """

    code: str
    message: str
    line: int | None = None

    def __str__(self) -> str:
        return f"line {self.line}: {self.message}" if self.line else self.message

    def to_json(self) -> dict[str, object]:
        """The warning as plain JSON."""
        return {"code": self.code, "message": self.message, "line": self.line}


SHOWN_PROBLEMS = 50
"""More than this many problems are counted, not printed: nobody reads them, and logs stay bounded."""


class StudyFileError(ValueError):
    """A study file cannot be used; its text is the whole readable report.

    Attributes:
        problems: Every problem, in the order of the file; where the text is wrong, nothing is said of its value.
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        found = set(problems)
        text = {(one.file, one.line, one.column) for one in found if not one.path}
        told = (one for one in found if not one.path or (one.file, one.line, one.column) not in text)
        self.problems = tuple(sorted(told, key=lambda m: (m.file, m.line, m.column, m.path, m.found)))
        lines = [str(problem) for problem in self.problems[:SHOWN_PROBLEMS]]
        if len(self.problems) > SHOWN_PROBLEMS:
            lines.append(f"... and {counted(len(self.problems) - SHOWN_PROBLEMS, 'more problem')}")
        super().__init__("\n".join(lines))


def dotted(path: KeyPath) -> str:
    """The path as people write it: ``experiments[2].task.model``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def closest(word: str, known: Iterable[str]) -> str | None:
    """The known name that ``word`` is probably a misspelling of, or None."""
    if len(word) > 100:
        return None
    from difflib import get_close_matches  # noqa: PLC0415  # only a file with a problem pays for it

    lowered = {name.lower(): name for name in known}
    key = word.lower().replace("-", "_").replace(" ", "_")
    if key in lowered:
        return lowered[key]
    found = get_close_matches(key, lowered, n=1, cutoff=0.6 if len(key) <= 5 else 0.72)
    return lowered[found[0]] if found else None


def show(value: object) -> str:
    """The value as it would be written in YAML, with its kind, short enough for a message."""
    kinds = {int: "whole number", float: "number", str: "text"}
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return f"a mapping of {len(value)}" if value else "an empty mapping"
    if isinstance(value, list):
        return f"the list {short(repr(value[:20]))}" if value else "an empty list"
    text = repr(value) if isinstance(value, str) else _number(value)
    return f"{short(text)} ({kinds.get(type(value), type(value).__name__)})"


def short(text: str) -> str:
    """The text, as far as a message has room for it."""
    return text if len(text) <= 60 else f"{text[:57]}..."


def _number(value: object) -> str:
    try:
        return str(value)
    except ValueError:  # Python refuses to print integers of more than 4300 digits
        return "a number of thousands of digits"


class PromptsError(ValueError):
    """The prompts of an experiment cannot be had; the text says why and what to do."""
