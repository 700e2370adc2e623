"""Study texts for the tests: a head that is right, and what a text comes to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llem_airflow.study import Study, StudyFileError, load_study_text

HEAD = "serving_mode: offline\ntask: {model: org/model}\nmeasurement: {meter: cpu-estimate}\n"


def study(body: str = "", *, head: str = HEAD, folder: Path | None = None) -> Study:
    """The study of a text."""
    return load_study_text(head + body, name="study.yaml", folder=folder)


def report(body: str = "", *, head: str = HEAD, folder: Path | None = None) -> str:
    """The report of a text that must be refused."""
    try:
        load_study_text(head + body, name="study.yaml", folder=folder)
    except StudyFileError as error:
        return str(error)
    raise AssertionError("the text was accepted")


def values(body: str, *path: str, head: str = HEAD) -> list[Any]:
    """What each experiment has at a path."""
    found = []
    for experiment in study(body, head=head).experiments:
        node: Any = experiment.config
        for key in path:
            node = node.get(key) if isinstance(node, dict) else None
        found.append(node)
    return found
