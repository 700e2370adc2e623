"""The study files of a folder, and which of them a DAG id can come from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path


def study_files(folder: Path) -> list[Path]:
    """Every study file, by name."""
    return sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")])


def files_naming(paths: Sequence[Path], dag_id: str) -> list[Path]:
    """The files that name a study or a DAG so.

    Reading a name is cheap, expanding a sweep is not. A name that is written in an unusual way is only missed here: the
    caller then reads every file.
    """
    written = re.compile(
        rf"""^\s*(?:study_name|dag_id)\s*:\s*["']?{re.escape(dag_id)}["']?\s*(?:#.*)?$""", re.MULTILINE
    )
    return [
        path
        for path in paths
        if path.stem == dag_id.removeprefix("invalid.")
        or written.search(path.read_text("utf-8", errors="replace"))
    ]
