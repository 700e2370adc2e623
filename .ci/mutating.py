"""What is changed: cosmic-ray's operators, one altered, and two of our own, at each place that a test could see.

mutants-survivors.toml lists the changes that are left on purpose, with why.
"""

from __future__ import annotations

import ast
import copy
import difflib
import fnmatch
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import parso
from cosmic_ray.ast import ast_nodes
from cosmic_ray.operators import number_replacer as cosmic_ray
from cosmic_ray.operators.operator import Operator
from cosmic_ray.plugins import get_operator
from parso.python.tree import Name, Number

ROOT = Path(__file__).parents[1]
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mutants"]
LISTED = tomllib.loads((ROOT / ".ci/mutants-survivors.toml").read_text(encoding="utf-8"))


class Own(Operator):
    """An operator whose places in a node are one list of parts."""

    def parts(self, node: Any) -> list[list[Any]]:
        """The nodes of each place; empty where the operator has nothing to change."""
        raise NotImplementedError

    def mutation_positions(self, node: Any) -> Iterator[tuple[Any, Any]]:
        """Where the places are."""
        for first, *_ in self.parts(node):
            yield first.start_pos, first.end_pos

    @classmethod
    def examples(cls) -> tuple[()]:
        """None: cosmic-ray's own tests use them."""
        return ()


class DropElement(Own):
    """Leaves one element out of a list, tuple, set or mapping of three or more: a field forgotten in a record."""

    def parts(self, node: Any) -> list[list[Any]]:
        """The elements, each with its comma."""
        if node.type not in ("testlist_comp", "dictorsetmaker"):
            return []
        if any(child.type in ("sync_comp_for", "comp_for") for child in node.children):
            return []
        found: list[list[Any]] = [[]]
        for child in node.children:
            found[-1].append(child)
            if getattr(child, "value", "") == ",":
                found.append([])
        found = [element for element in found if element]
        return found if len(found) > 2 else []

    def mutate(self, node: Any, index: int) -> Any:
        """The display without one element."""
        kept = [each for number, each in enumerate(self.parts(node)) if number != index]
        node.children = [child for element in kept for child in element]
        return node


class CatchNothing(Own):
    """An exception that is no longer caught; cosmic-ray's own fails at a dotted name."""

    def parts(self, node: Any) -> list[list[Any]]:
        """The names of exceptions."""
        if node.type != "except_clause":
            return []
        caught = node.children[1]
        if caught.type == "atom":
            caught = caught.children[1]
        return [[one] for one in (caught.children[::2] if caught.type == "testlist_comp" else [caught])]

    def mutate(self, node: Any, index: int) -> Any:
        """The clause with an exception that nobody raises for one of its names."""
        name = self.parts(node)[index][0]
        around = name.parent.children
        around[around.index(name)] = Name("StopAsyncIteration", name.start_pos, name.get_first_leaf().prefix)
        return node


LARGE = 1_000_000


class NumberReplacer(cosmic_ray.NumberReplacer):
    """A number one larger or smaller; from a million on twice as large or half.

    A second that is a billionth longer is nothing that a test could tell, nor a user.
    """

    def mutate(self, node: Any, index: int) -> Any:
        """The other number."""
        value = ast.literal_eval(node.value)
        if isinstance(value, complex) or abs(value) < LARGE:
            return super().mutate(node, index)
        other = value // 2 if isinstance(value, int) else value / 2
        return Number(f" {(value * 2, other)[index]}", node.start_pos)


OWN: dict[str, Callable[[], Operator]] = {
    one.__name__: one for one in (DropElement, CatchNothing, NumberReplacer)
}


class Mutant(NamedTuple):
    """One change.

    Attributes:
        path: The module, from the root.
        line: Line of the change, from 1.
        operator: Name of the operator.
        occurrence: Which of its places in the module.
    """

    path: str
    line: int
    operator: str
    occurrence: int


def operator_of(name: str) -> Operator:
    """An operator by its name."""
    return OWN[name]() if name in OWN else get_operator(f"core/{name}")()


def modules(room: str) -> list[str]:
    """The room's modules, from the root."""
    told = CONFIG["rooms"][room]
    found = [
        path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "llem_airflow" / room).rglob("*.py"))
    ]
    return [
        path
        for path in found
        if not any(fnmatch.fnmatch(path, f"*/{no}") for no in told.get("leave_out", ()))
    ]


def mutants(path: str) -> Iterator[Mutant]:
    """Every mutant of a module that compiles to something else; annotations, decorators and assertions of zip stay."""
    source = (ROOT / path).read_text(encoding="utf-8")
    nodes = list(ast_nodes(parso.parse(source)))
    spared = _spared(ast.parse(source))
    for name in CONFIG["operators"]:
        operator = operator_of(name)
        places = [
            (begin, node, index)
            for node in nodes
            for index, (begin, _) in enumerate(operator.mutation_positions(node))
        ]
        for occurrence, (begin, node, index) in enumerate(places):
            in_signature = node.parent is not None and node.parent.type == "parameters"  # a bare star
            if not in_signature and not any(first <= tuple(begin) < last for first, last in spared):
                mutant = Mutant(path, begin[0], name, occurrence)
                _places[mutant] = source, node, index
                yield mutant


def _spared(tree: ast.AST) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    found: list[ast.AST] = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found += node.decorator_list
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            found += [node.returns] if node.returns else []
            found += [
                one.annotation for one in ast.walk(node.args) if isinstance(one, ast.arg) and one.annotation
            ]
        if isinstance(node, ast.AnnAssign):
            found.append(node.annotation)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":  # for the type checker
            found.append(node.value)
        if (
            isinstance(node, ast.keyword) and node.arg == "strict"
        ):  # of zip: an assertion about what is alike anyway
            found.append(node.value)
    return [((one.lineno, one.col_offset), (one.end_lineno, one.end_col_offset)) for one in found]


_places: dict[Mutant, tuple[str, Any, int]] = {}
"""Where mutants are: the module's text, the node, and which of the operator's places in it."""


def _offset(source: str, at: tuple[int, int]) -> int:
    return sum(len(line) for line in source.splitlines(keepends=True)[: at[0] - 1]) + at[1]


@cache
def mutated(mutant: Mutant) -> str | None:
    """The module's text with the change; None where that is no Python, or the same."""
    source, node, index = _places[mutant]
    begin, end = (_offset(source, at) for at in (node.get_start_pos_of_prefix(), node.end_pos))
    alone = copy.deepcopy(node, {id(node.parent): node.parent})
    text = source[:begin] + operator_of(mutant.operator).mutate(alone, index).get_code() + source[end:]
    try:
        return text if ast.dump(ast.parse(text)) != parsed(source) else None
    except SyntaxError:
        return None


@cache
def parsed(source: str) -> str:
    """What Python makes of a module's text."""
    return ast.dump(ast.parse(source))


@cache
def changed(mutant: Mutant) -> tuple[str, str]:
    """The changed lines before and after, without what is around them."""
    before = _places[mutant][0].splitlines()
    lines = difflib.unified_diff(before, (mutated(mutant) or "").splitlines(), n=0, lineterm="")
    differing = list(lines)[2:]  # behind the names of the two files
    sides = [" ".join(line[1:].strip() for line in differing if line.startswith(sign)) for sign in "-+"]
    return sides[0], sides[1]


def listed(mutant: Mutant) -> dict[str, Any] | None:
    """What the list of those left on purpose says of a mutant."""
    if mutant.path not in LISTED:
        return None
    sides = changed(mutant)
    return next((one for one in LISTED[mutant.path] if (one["before"], one["after"]) == sides), None)


def outdated() -> list[str]:
    """Entries of the list whose code is there no more."""
    return [
        f"{path}: {one['before']}"
        for path, entries in LISTED.items()
        for one in entries
        if "".join(one["before"].split()) not in "".join((ROOT / path).read_text(encoding="utf-8").split())
    ]
