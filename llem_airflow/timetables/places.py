"""A mistake that shows only when a study becomes a DAG, with its place in the file."""

from __future__ import annotations

from typing import Any

import yaml

from llem_airflow.study import Study
from llem_airflow.study.mistakes import Mistake


def mistake_at(study: Study, path: tuple[str | int, ...], found: str, allowed: str) -> Mistake:
    """The mistake at this path of the study's text."""
    line, column = _place(study.text, path)
    dotted = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
    return Mistake(str(study.path or study.name), line, column, dotted, found, allowed)


def _place(text: str, path: tuple[str | int, ...]) -> tuple[int, int]:
    """Line and column of the deepest part of the path that the text has."""
    node: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    for part in path:
        if isinstance(node, yaml.MappingNode):
            child = next((value for key, value in node.value if key.value == part), None)
        else:
            child = (
                node.value[part] if isinstance(part, int) and isinstance(node, yaml.SequenceNode) else None
            )
        if child is None:
            break
        node = child
    return node.start_mark.line + 1, node.start_mark.column + 1
