"""YAML text -> plain values and where each of them stands.

Read from libyaml's event stream instead of PyYAML's loader: the loader resolves duplicate keys silently,
expands aliases without bound, recurses as deep as the file says and forgets positions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import yaml

from llem_airflow.study.problems import KeyPath, Problem, StudyFileError, dotted, show

MAX_BYTES = 1024 * 1024
MAX_NODES = 100_000
"""Nodes of a file after its aliases are expanded; 10,000 written-out experiments stay below it."""
MAX_DEPTH = 32

_NULL = {"", "~", "null", "Null", "NULL"}
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_BOOL |= dict.fromkeys(("yes", "Yes", "YES", "on", "On", "ON"), True)
_BOOL |= dict.fromkeys(("no", "No", "NO", "off", "Off", "OFF"), False)
# At least one digit: int() refuses 0x_, which then is text.
_INT = re.compile(r"[-+]?(0|[1-9][0-9_]*|0x_*[0-9a-fA-F][0-9a-fA-F_]*|0o_*[0-7][0-7_]*|0b_*[01][01_]*)\Z")
# YAML 1.1 takes 1e-3 for text because of the missing point; nobody means that in a study.
_FLOAT = re.compile(
    r"[-+]?((\.[0-9]+|[0-9][0-9_]*\.[0-9_]*)([eE][-+]?[0-9]{1,3})?|[0-9]+[eE][-+]?[0-9]{1,3})\Z"
)
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
"""PostgreSQL, in which Airflow keeps a DAG, refuses NUL; no encoding has half a surrogate pair."""
_SPECIAL = {".inf": math.inf, "+.inf": math.inf, "-.inf": -math.inf, ".nan": math.nan}


class Node:
    """A value of the file and where it stands.

    ``value`` is a scalar, a list of nodes, or a dict of key to (key node, value node).
    """

    __slots__ = ("column", "line", "size", "value")

    def __init__(self, value: Any, line: int, column: int) -> None:
        self.value = value
        self.line = line
        self.column = column
        self.size = 1


class Source:
    """A parsed file.

    Attributes:
        name: The file's name as the user gave it.
        text: The text as read.
        value: The plain values.
        root: The same with positions.
    """

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text.removeprefix("\ufeff")
        self.root = _Builder(name, self.text).build()
        self.value = plain(self.root)

    def place(self, path: KeyPath, *, of_key: bool = False) -> tuple[int, int]:
        """Line and column, from 1, of the value (or key) at ``path``, or of its nearest parent."""
        node, key_node = self.root, self.root
        for part in path:
            value = node.value
            if isinstance(value, dict) and part in value:
                key_node, node = value[part]
            elif isinstance(value, list) and isinstance(part, int) and part < len(value):
                key_node = node = value[part]
            else:
                break
        chosen = key_node if of_key else node
        return chosen.line + 1, chosen.column + 1

    def has(self, path: KeyPath) -> bool:
        """Whether the file has a value at the path."""
        node: Any = self.value
        for part in path:
            if isinstance(node, dict):
                if part not in node:
                    return False
            elif not isinstance(node, list) or not isinstance(part, int) or part >= len(node):
                return False
            node = node[part]
        return True

    def find(self, path: KeyPath, value: Any) -> KeyPath:
        """Where the file first says that a key has a value: at the key, as an axis, in a group or an experiment."""
        dotted_path = dotted(path)
        for place, found in _values(self.value):
            keys = [part for part in place if isinstance(part, str)]
            if found == value and f".{'.'.join(keys)}".endswith(f".{dotted_path}"):
                return place
        return path

    def problem(
        self, path: KeyPath, found: str, allowed: str, suggestion: str | None = None, *, of_key: bool = False
    ) -> Problem:
        """A problem at the value (or key) at ``path``."""
        line, column = self.place(path, of_key=of_key)
        return Problem(self.name, line, column, dotted(path), found, allowed, suggestion)


def read_text(path: Path, name: str) -> str:
    """The text of a file, read with a bound.

    Raises:
        StudyFileError: Not there, not a file, too large, or not UTF-8.
    """
    try:
        kind = (
            "" if path.is_file() or not path.exists() else "a folder" if path.is_dir() else "no regular file"
        )
    except (OSError, ValueError):
        kind = ""  # opening it says why
    if kind:
        raise StudyFileError([Problem(name, 1, 1, "", f"this is {kind}", "name a study file (.yaml)")])
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise StudyFileError([Problem(name, 1, 1, "", "the file does not exist", "check the path")]) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise StudyFileError(
            [Problem(name, 1, 1, "", f"cannot be read: {reason}", "check the path")]
        ) from error
    if len(data) > MAX_BYTES:
        found = f"the file is larger than {MAX_BYTES // 1024 // 1024} MiB"
        raise StudyFileError(
            [Problem(name, 1, 1, "", found, "a study is a short text; use sweep axes and base files")]
        )
    return _decode(data, name)


def _decode(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line = before.count(b"\n") + 1
        column = error.start - (before.rfind(b"\n") + 1) + 1
        found = f"byte 0x{data[error.start]:02x} is not UTF-8"
        raise StudyFileError([Problem(name, line, column, "", found, "save the file as UTF-8")]) from None


def plain(node: Node) -> Any:
    """The node's plain value: dicts, lists and scalars."""
    value = node.value
    if isinstance(value, dict):
        return {key: plain(child) for key, (_, child) in value.items()}
    if isinstance(value, list):
        return [plain(child) for child in value]
    return value


def _values(value: Any, place: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Every value that holds no others, with its place."""
    if isinstance(value, (dict, list)):
        for part, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _values(child, (*place, part))
    else:
        yield place, value


class _Builder:
    """Turns the event stream into nodes, without recursion and within bounds."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text
        self.anchors: dict[str, Node] = {}
        self.problems: list[Problem] = []
        self.nodes = 0

    def build(self) -> Node:
        if len(self.text) > MAX_BYTES:
            self._stop(
                0,
                0,
                "the text is larger than 1 MiB",
                "a study is a short text; use sweep axes and base files",
            )
        try:
            self.text.encode()
        except UnicodeEncodeError as error:  # half a surrogate pair, from a text that was JSON
            before = self.text[: error.start]
            column = error.start - before.rfind("\n") - 1
            self._stop(before.count("\n"), column, *_unstorable(self.text[error.start]))
        try:
            root = self._document(yaml.parse(self.text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
        except yaml.YAMLError as error:
            raise StudyFileError([_syntax(self.name, self.text, error)]) from error
        if self.problems:
            raise StudyFileError(self.problems)
        if root is None or not isinstance(root.value, dict):
            found = (
                "the file is empty"
                if root is None or root.value is None
                else f"found {show(plain(root))} at the top"
            )
            raise StudyFileError(
                [Problem(self.name, 1, 1, "", found, "a study is a mapping of keys; see `llem-airflow init`")]
            )
        return root

    def _stop(self, line: int, column: int, found: str, allowed: str) -> NoReturn:
        raise StudyFileError([*self.problems, Problem(self.name, line + 1, column + 1, "", found, allowed)])

    def _document(self, events: Iterator[Any]) -> Node | None:
        stack: list[tuple[Node, list[Node], str | None]] = []
        root: Node | None = None
        documents = 0
        for event in events:
            node: Node | None = None
            if isinstance(event, yaml.ScalarEvent):
                node = self._scalar(event)
            elif isinstance(event, yaml.CollectionStartEvent):
                self._open(event, stack)
                continue
            elif isinstance(event, yaml.CollectionEndEvent):
                node = self._close(*stack.pop(), mapping=isinstance(event, yaml.MappingEndEvent))
            elif isinstance(event, yaml.AliasEvent):
                node = self._alias(event)
            elif isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    mark: Any = event.start_mark
                    self._stop(mark.line, mark.column, "a second document begins here", "one study per file")
            if node is not None:
                self._count(node)
                if stack:
                    stack[-1][1].append(node)
                else:
                    root = node
        return root

    def _count(self, node: Node) -> None:
        self.nodes += node.size if isinstance(node.value, (dict, list)) and node.size > 1 else 1
        if self.nodes > MAX_NODES or node.size > MAX_NODES:
            found = f"the file has more than {MAX_NODES:,} values after its aliases are expanded"
            self._stop(node.line, node.column, found, "use sweep axes instead of writing points out")

    def _open(self, event: Any, stack: list[tuple[Node, list[Node], str | None]]) -> None:
        mark = event.start_mark
        if len(stack) >= MAX_DEPTH:
            self._stop(
                mark.line,
                mark.column,
                f"values are nested deeper than {MAX_DEPTH}",
                "no key of a study is that deep",
            )
        if event.tag not in {None, "!", "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"}:
            self._tag(event)
        stack.append((Node(None, mark.line, mark.column), [], event.anchor))

    def _close(self, node: Node, children: list[Node], anchor: str | None, *, mapping: bool) -> Node:
        node.size = 1 + sum(child.size for child in children)
        node.value = self._mapping(children) if mapping else children
        if anchor:
            self.anchors[anchor] = node
        return node

    def _alias(self, event: yaml.AliasEvent) -> Node:
        target = self.anchors.get(str(event.anchor))
        mark: Any = event.start_mark
        if target is None:
            self._stop(
                mark.line,
                mark.column,
                f"the alias *{event.anchor} has no anchor before it",
                f"define it with &{event.anchor}",
            )
        node = Node(target.value, mark.line, mark.column)
        node.size = target.size
        return node

    def _mapping(self, children: list[Node]) -> dict[Any, tuple[Node, Node]]:
        result: dict[Any, tuple[Node, Node]] = {}
        merged: dict[Any, tuple[Node, Node]] = {}
        for key_node, value_node in zip(children[::2], children[1::2], strict=True):
            key = key_node.value
            if isinstance(key, (dict, list)):
                self._note(key_node, f"found {show(plain(key_node))} as a key", "keys are plain words")
                continue
            if key == "<<":
                self._merge(value_node, merged)
                continue
            name = key if isinstance(key, str) else _key_text(key)
            if name in result:
                first = result[name][0].line + 1
                self._note(
                    key_node, f"the key {name!r} is written twice (first in line {first})", "keep one of them"
                )
                continue
            result[name] = (key_node, value_node)
        return merged | result if merged else result

    def _merge(self, node: Node, merged: dict[Any, tuple[Node, Node]]) -> None:
        """The YAML merge key: what the mapping itself says wins, then the first of the merged mappings."""
        for each in node.value if isinstance(node.value, list) else [node]:
            if not isinstance(each.value, dict):
                self._note(
                    each, f"<< merges mappings, found {show(plain(each))}", "use <<: *anchor of a mapping"
                )
                continue
            for key, pair in each.value.items():
                merged.setdefault(key, pair)

    def _scalar(self, event: Any) -> Node:
        mark = event.start_mark
        value: Any = event.value
        if event.tag is not None and event.tag != "!":
            value = self._tagged(event)
        elif event.implicit[0]:
            value = resolve(value)
        node = Node(value, mark.line, mark.column)
        if isinstance(value, str) and (strange := _UNSTORABLE.search(value)):
            self._note(node, *_unstorable(strange[0]))
        if event.anchor:
            self.anchors[event.anchor] = node
        return node

    def _tagged(self, event: Any) -> Any:
        if event.tag == "tag:yaml.org,2002:str":
            return event.value
        if event.tag in {f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "bool", "null")}:
            return resolve(event.value)
        self._tag(event)
        return event.value

    def _tag(self, event: Any) -> None:
        mark = event.start_mark
        tag = str(event.tag).replace("tag:yaml.org,2002:", "!!")[:60]
        self.problems.append(
            Problem(
                self.name,
                mark.line + 1,
                mark.column + 1,
                "",
                f"found the YAML tag {tag}",
                "a study has no tags: delete it",
            )
        )

    def _note(self, node: Node, found: str, allowed: str) -> None:
        self.problems.append(Problem(self.name, node.line + 1, node.column + 1, "", found, allowed))


def _unstorable(character: str) -> tuple[str, str]:
    return f"found the character U+{ord(character):04X}", "no file or database can hold it: delete it"


def resolve(text: str) -> Any:
    """The value of an unquoted scalar: null, true/false, a whole number, a number, or else text."""
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    first = text[0]
    if first not in "0123456789+-.":
        return text
    if len(text) < 400 and _INT.match(text):
        return int(text.replace("_", ""), 0)
    if len(text) < 400 and _FLOAT.match(text):
        return float(text.replace("_", ""))
    return _SPECIAL.get(text.lower(), text)


def _key_text(key: Any) -> str:
    """A key that YAML took for a number or true/false, as text (``on:``, ``1:``)."""
    if key is None:
        return "null"
    return str(key).lower() if isinstance(key, bool) else str(key)


def _syntax(name: str, text: str, error: yaml.YAMLError) -> Problem:
    """PyYAML's complaint in our form."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is None:
        position = getattr(error, "position", 0)
        line = text[:position].count("\n")
        found = str(getattr(error, "reason", error)).strip().splitlines()[0]
        return Problem(name, line + 1, 1, "", f"not YAML: {found}", "remove the character")
    lines = text.splitlines()
    line_text = lines[mark.line] if mark.line < len(lines) else ""
    indent = line_text[: len(line_text) - len(line_text.lstrip())]
    if "\t" in indent or (line_text[mark.column : mark.column + 1] == "\t"):
        column = line_text.index("\t") + 1
        return Problem(
            name,
            mark.line + 1,
            column,
            "",
            "a tab is used to indent",
            "YAML indents with spaces: replace the tab",
        )
    problem = getattr(error, "problem", None) or str(error)
    context = getattr(error, "context", None)
    found = f"not YAML: {problem}" + (f" ({context})" if context else "")
    return Problem(
        name,
        mark.line + 1,
        mark.column + 1,
        "",
        found,
        "check the indentation, the colons and the quotes here",
    )
