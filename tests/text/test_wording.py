"""One thing is in the singular, wherever the package tells how many there are."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import llem_airflow
from llem_airflow.text.wording import counted

PACKAGE = Path(llem_airflow.__file__).parent
NOUNS = (
    "attempt", "byte", "character", "claim", "comparison", "core", "cycle", "device", "difference", "experiment",
    "failure", "file", "GPU", "iteration", "line", "mistake", "model", "night", "pair", "point", "problem", "prompt",
    "release", "request", "row", "run", "sample", "sequence", "study", "task", "token", "try", "value", "warning",
)  # fmt: skip
_NO_ADJECTIVE = "has|have|is|are|by|in|of|over|that|as|with|and|names|asks"
PLURAL = re.compile(rf"(?: (?!(?:{_NO_ADJECTIVE})\b)\w+)? (?P<noun>{'|'.join(NOUNS)})s\b")
NEVER_ONE = {
    "factory/releases.py": "written for two releases and more",
    "runners/engine_api/recorded.py": "copied into a container and run there: the standard library only",
    "study/config/types.py": "a text that is too long has many characters",
}
"""Files whose numbers are never one, each with the reason."""
_ELSEWHERE = "measurement/"
"""It is the standard library and the protocol only, and its numbers are limits of two and more."""


@pytest.mark.parametrize(
    ("number", "told"), [(0, "0 cycles"), (1, "1 cycle"), (2, "2 cycles"), (1200, "1,200 cycles")]
)
def test_only_one_thing_is_in_the_singular(number: int, told: str) -> None:
    assert counted(number, "cycle") == told


def may_be_one(value: ast.FormattedValue, noun: str) -> bool:
    """Whether the value is a number of things; ``MOST_POINTS`` is never one, and ``{name} runs`` is a verb."""
    inner, written = value.value, value.format_spec
    if isinstance(written, ast.JoinedStr) and re.fullmatch(
        r"'\.[1-9]f'", ast.unparse(written).removeprefix("f")
    ):
        return False  # 1.0 cores is a measure
    if isinstance(inner, ast.Name):
        return not inner.id.isupper() and (noun != "run" or len(inner.id) == 1)
    return noun != "run" or isinstance(inner, ast.Call) or value.format_spec is not None


def plurals_behind_a_number(tree: ast.AST) -> Iterator[int]:
    """Lines with a text such as ``f"{number} cycles"`` or ``"%s cycles"``, which one cycle would make wrong."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            for value, text in zip(node.values, node.values[1:], strict=False):
                if isinstance(value, ast.FormattedValue) and isinstance(text, ast.Constant):
                    found = PLURAL.match(str(text.value))
                    if found and may_be_one(value, found["noun"]):
                        yield text.lineno
        elif isinstance(node, ast.Constant) and re.search(r"%[sd]" + PLURAL.pattern, str(node.value)):
            yield node.lineno


def test_a_text_that_one_thing_would_make_wrong_is_found() -> None:
    faulty = "f'{n} cycles', f'{n:,} valid runs', '%s tasks failed', f'{n} of {m} prompts', f'{len(x)} runs'"
    right = "f'{what} is of two runs', f'{counted(n, a)} failed', f'{name} runs the cycles', f'at most {MOST} points'"
    assert len(list(plurals_behind_a_number(ast.parse(faulty)))) == 5
    assert not list(plurals_behind_a_number(ast.parse(right)))


def test_every_number_of_things_is_written_by_counted() -> None:
    found = [
        f"{name}:{line}"
        for file in sorted(PACKAGE.rglob("*.py"))
        if (name := file.relative_to(PACKAGE).as_posix()) not in NEVER_ONE and not name.startswith(_ELSEWHERE)
        for line in plurals_behind_a_number(ast.parse(file.read_text("utf-8")))
    ]
    assert found == []
