"""YAML text -> plain values and where each of them stands.

Read from libyaml's event stream instead of PyYAML's loader: the loader resolves duplicate keys silently,
expands aliases without bound, recurses as deep as the file says and forgets positions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import yaml

from llem_airflow.study.problems import KeyPath, Problem, StudyFileError, dotted, show

MAX_BYTES = 1024 * 1024
MAX_NODES = 100_000
"""Nodes of a file after its aliases are expanded; 10,000 written-out experiments stay below it."""
MAX_DEPTH = 32
_SHORT = "a study is a short text; use sweep axes and base files"
_TAG = "tag:yaml.org,2002:"

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
        problems: What is wrong with the text and keeps nobody from reading the rest of it.
    """

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text.removeprefix("\ufeff")
        reader = _Reader(name, self.text)
        self.root = reader.read()
        self.problems = reader.problems
        self.value = plain(self.root)

    def place(self, path: KeyPath, *, of_key: bool = False) -> tuple[int, int]:
        """Line and column, from 1, of the value (or key) at ``path``, or of its nearest parent."""
        key_node, node, _ = self._nearest(path)
        chosen = key_node if of_key else node
        return chosen.line + 1, chosen.column + 1

    def has(self, path: KeyPath) -> bool:
        """Whether the file has a value at the path."""
        return self._nearest(path)[2]

    def _nearest(self, path: KeyPath) -> tuple[Node, Node, bool]:
        """The key and the value at ``path``, or of its nearest parent, and whether it is there."""
        key_node = node = self.root
        for part in path:
            value = node.value
            if isinstance(value, dict) and part in value:
                key_node, node = value[part]
            elif isinstance(value, list) and isinstance(part, int) and part < len(value):
                key_node = node = value[part]
            else:
                return key_node, node, False
        return key_node, node, True

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
    kind = ""
    with suppress(OSError, ValueError):  # opening it says why
        if path.exists() and not path.is_file():
            kind = "a folder" if path.is_dir() else "no regular file"
    if kind:
        raise _refused(name, f"this is {kind}", "name a study file (.yaml)")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise _refused(name, "the file does not exist", "check the path") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise _refused(name, f"cannot be read: {reason}", "check the path") from error
    if len(data) > MAX_BYTES:
        raise _refused(name, f"the file is larger than {MAX_BYTES // 1024 // 1024} MiB", _SHORT)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before, found = data[: error.start], f"byte 0x{data[error.start]:02x} is not UTF-8"
        place = (before.count(b"\n"), error.start - (before.rfind(b"\n") + 1))
        raise _refused(name, found, "save the file as UTF-8", *place) from None


def _problem(name: str, place: Any, found: str, allowed: str) -> Problem:
    """A problem at a node or a mark of the parser, both of which count from 0."""
    return Problem(name, place.line + 1, place.column + 1, "", found, allowed)


def _refused(name: str, found: str, allowed: str, line: int = 0, column: int = 0) -> StudyFileError:
    return StudyFileError([_problem(name, Node(None, line, column), found, allowed)])


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


class _Reader:
    """Turns the event stream into nodes, within bounds."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text
        self.events: Iterator[Any] = iter(())
        self.anchors: dict[str, Node] = {}
        self.problems: list[Problem] = []
        self.nodes = 0

    def read(self) -> Node:
        if len(self.text) > MAX_BYTES:
            raise _refused(self.name, "the text is larger than 1 MiB", _SHORT)
        try:
            self.text.encode()
        except UnicodeEncodeError as error:  # half a surrogate pair, from a text that was JSON
            before = self.text[: error.start]
            place = (before.count("\n"), error.start - before.rfind("\n") - 1)
            raise _refused(self.name, *_unstorable(self.text[error.start]), *place) from None
        try:
            root = self._document()
        except yaml.YAMLError as error:
            raise StudyFileError([*self.problems, _syntax(self.name, self.text, error)]) from error
        if root is None or not isinstance(root.value, dict):
            value = None if root is None else plain(root)
            found = "the file is empty" if value is None else f"found {show(value)} at the top"
            self._stop(Node(None, 0, 0), found, "a study is a mapping of keys; see `llem-airflow init`")
        return root

    def _document(self) -> Node | None:
        self.events = yaml.parse(self.text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        root: Node | None = None
        for event in self.events:
            if isinstance(event, yaml.NodeEvent):
                root = self._node(event, 0)
            elif isinstance(event, yaml.DocumentStartEvent) and root is not None:
                self._stop(event.start_mark, "a second document begins here", "one study per file")
        return root

    def _node(self, event: Any, depth: int) -> Node:
        node = Node(None, event.start_mark.line, event.start_mark.column)
        if isinstance(event, yaml.ScalarEvent):
            node.value = self._scalar(event, node)
        elif isinstance(event, yaml.AliasEvent):
            target = self.anchors.get(str(event.anchor))
            if target is None:
                found = f"the alias *{event.anchor} has no anchor before it"
                self._stop(node, found, f"define it with &{event.anchor}")
            node.value, node.size = target.value, target.size
        else:
            self._collection(event, node, depth)
        self.nodes += node.size if isinstance(event, yaml.AliasEvent) else 1
        if self.nodes > MAX_NODES:
            found = f"the file has more than {MAX_NODES:,} values after its aliases are expanded"
            self._stop(node, found, "use sweep axes instead of writing points out")
        if event.anchor and not isinstance(event, yaml.AliasEvent):
            self.anchors[event.anchor] = node
        return node

    def _collection(self, event: Any, node: Node, depth: int) -> None:
        if depth >= MAX_DEPTH:
            self._stop(node, f"values are nested deeper than {MAX_DEPTH}", "no key of a study is that deep")
        if event.tag not in {None, "!", f"{_TAG}map", f"{_TAG}seq"}:
            self._tag(event)
        children: list[Node] = []
        while not isinstance(each := next(self.events), yaml.CollectionEndEvent):
            children.append(self._node(each, depth + 1))
        node.size += sum(child.size for child in children)
        node.value = self._mapping(children) if isinstance(event, yaml.MappingStartEvent) else children

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
                first = f"first in line {result[name][0].line + 1}"
                self._note(key_node, f"the key {name!r} is written twice ({first})", "keep one of them")
                continue
            result[name] = (key_node, value_node)
        return merged | result

    def _merge(self, node: Node, merged: dict[Any, tuple[Node, Node]]) -> None:
        """The YAML merge key: what the mapping itself says wins, then the first of the merged mappings."""
        for each in node.value if isinstance(node.value, list) else [node]:
            if isinstance(each.value, dict):
                for key, pair in each.value.items():
                    merged.setdefault(key, pair)
            else:
                found = f"<< merges mappings, found {show(plain(each))}"
                self._note(each, found, "use <<: *anchor of a mapping")

    def _scalar(self, event: Any, node: Node) -> Any:
        value = event.value
        if event.tag in {f"{_TAG}{kind}" for kind in ("int", "float", "bool", "null")} or (
            event.tag in {None, "!"} and event.implicit[0]
        ):
            value = plain_scalar(value)
        elif event.tag not in {None, "!", f"{_TAG}str"}:
            self._tag(event)
        if isinstance(value, str) and (strange := _UNSTORABLE.search(value)):
            self._note(node, *_unstorable(strange[0]))
            value = _UNSTORABLE.sub("\ufffd", value)
        return value

    def _tag(self, event: Any) -> None:
        found = f"found the YAML tag {str(event.tag).replace(_TAG, '!!')[:60]}"
        self._note(event.start_mark, found, "a study has no tags: delete it")

    def _note(self, place: Any, found: str, allowed: str) -> None:
        self.problems.append(_problem(self.name, place, found, allowed))

    def _stop(self, place: Any, found: str, allowed: str) -> NoReturn:
        self._note(place, found, allowed)
        raise StudyFileError(self.problems)


def _unstorable(character: str) -> tuple[str, str]:
    return f"found the character U+{ord(character):04X}", "no file or database can hold it: delete it"


def plain_scalar(text: str) -> Any:
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
    mark: Any = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is None:
        line = text[: getattr(error, "position", 0)].count("\n")
        found = str(getattr(error, "reason", error)).strip().splitlines()[0]
        return Problem(name, line + 1, 1, "", f"not YAML: {found}", "remove the character")
    lines = text.splitlines()
    line_text = lines[mark.line] if mark.line < len(lines) else ""
    indent = line_text[: len(line_text) - len(line_text.lstrip())]
    if "\t" in indent or line_text[mark.column : mark.column + 1] == "\t":
        tab = Node(None, mark.line, line_text.index("\t"))
        return _problem(name, tab, "a tab is used to indent", "YAML indents with spaces: replace the tab")
    found = f"not YAML: {getattr(error, 'problem', None) or error}"
    if context := getattr(error, "context", None):
        found += f" ({context})"
    return _problem(name, mark, found, "check the indentation, the colons and the quotes here")
