"""Every key that the JSON Schema of a study knows, one a line, whatever way the schema is written in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from llem_airflow.cli import main
from tests.study.golden.reports import FOLDER

_BOUNDS = (
    "minimum",
    "exclusiveMinimum",
    "maximum",
    "exclusiveMaximum",
    "minLength",
    "minItems",
    "minProperties",
)
_MIRRORS = ("experiments[].", "pytorch", "sweep[pytorch")
"""The keys of an experiment once more."""
Json = dict[str, Any]


def golden() -> tuple[Path, str]:
    """The golden file as it would be written now."""
    return FOLDER / "schema.txt", "".join(f"{line}\n" for line in schema_lines())


def schema_lines() -> list[str]:
    """``path: types; enum; bounds; default``, sorted by path."""
    schema = json.loads(CliRunner().invoke(main, ["schema"]).stdout)
    found = dict(_walk(schema, "", schema))
    return sorted(f"{path}: {text}" for path, text in found.items() if not path.startswith(_MIRRORS))


def key_paths() -> list[tuple[str | int, ...]]:
    """Every key and section of a study, but for the axes of a sweep; a row of a list is its index 0."""
    paths = []
    for line in schema_lines():
        text = line.partition(": ")[0]
        if not text.startswith("sweep") and not text.endswith("]"):
            parts = text.replace("[]", ".0").split(".")
            paths.append(tuple(0 if part == "0" else part for part in parts))
    return paths


def _walk(node: Json, path: str, root: Json) -> Iterator[tuple[str, str]]:
    parts = list(_alternatives(node, root))
    if path:
        yield path, _told(node, parts)
    for part in parts:
        for name, child in part.get("properties", {}).items():
            # The keys of a sweep have dots in them: they are the keys of an experiment once more.
            yield from _walk(child, f"{path}[{name}]" if "." in name else f"{path}.{name}".lstrip("."), root)
        for pattern, child in part.get("patternProperties", {}).items():
            yield from _walk(child, f"{path}/{pattern}/", root)
        if isinstance(part.get("items"), dict):
            yield from _walk(part["items"], f"{path}[]", root)


def _alternatives(node: Json, root: Json) -> Iterator[Json]:
    """The node without references and unions: each thing that it may be."""
    if "$ref" in node:
        target: Any = root
        for key in node["$ref"].removeprefix("#/").split("/"):
            target = target[key]
        yield from _alternatives(target, root)
        return
    inner = [*node.get("anyOf", ()), *node.get("oneOf", ()), *node.get("allOf", ())]
    if not inner:
        yield node
    for each in inner:
        yield from _alternatives(each, root)


def _told(node: Json, parts: list[Json]) -> str:
    types: set[str] = set()
    values: list[Any] = []
    facts: set[str] = set()
    for part in parts:
        said = part.get("type", "any" if "enum" not in part and "const" not in part else ())
        types |= {said} if isinstance(said, str) else set(said)
        values += [*part.get("enum", ()), *([part["const"]] if "const" in part else ())]
        facts |= {f"{name} {part[name]:g}" for name in _BOUNDS if name in part}
        if part.get("additionalProperties") not in (False, None) and "object" in types:
            facts.add("open")
    texts = [" or ".join(sorted(types)) or "any"]
    if values:
        texts.append("one of " + ", ".join(sorted({json.dumps(value) for value in values})))
    texts += sorted(facts)
    default = next((each["default"] for each in (node, *parts) if "default" in each), None)
    if default is not None:
        texts.append(f"default {json.dumps(default)}")
    return "; ".join(texts)
