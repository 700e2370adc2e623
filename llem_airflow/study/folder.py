"""The study files of a folder, and which of them a DAG id can come from."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

from llem_airflow.study.dag_ids import INVALID_PREFIX, dag_id_of, plain_name

log = logging.getLogger(__name__)


def study_files(folder: Path) -> list[Path]:
    """Every study file, by name: regular files and links to them, none that is hidden (an editor's lock or backup)."""
    found = []
    for path in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")]):
        if path.name.startswith("."):
            continue
        if os.path.isfile(path):  # noqa: PTH113  # Path.is_file() raises where a link leads into a closed folder
            found.append(path)
        else:
            log.warning("%s is no regular file and is left out", path)
    return found


def files_naming(paths: Sequence[Path], dag_id: str) -> list[Path]:
    """The files that a DAG of this id can come from.

    Reading a name is cheap, expanding a sweep is not. A name that is written in an unusual way is only missed here: the
    caller then reads every file. A file too many costs time; one too few could give the id to another study.
    """
    stem = dag_id.removeprefix(INVALID_PREFIX)
    # What a dash of the id stands for in the name is not known; a long name ends in its hash.
    parts = [re.escape(part) for part in re.split(r"-+", re.sub(r"(?<=.{229})-[0-9a-f]{8}\Z", "", dag_id))]
    written = re.compile(r"(?<![\w.])" + r"[^\w.]+".join(parts))
    return [path for path in paths if stem in _of_file(path) or written.search(_text(path))]


def _of_file(path: Path) -> tuple[str, str]:
    """Ids from the name of the file: of its study where the text names none, and of its mistakes."""
    return dag_id_of(plain_name(path.stem)), dag_id_of(path.stem)


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", errors="replace") if path.is_file() else ""
    except OSError:  # it cannot be read, or went away: it then names nothing
        return ""
