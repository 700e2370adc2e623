"""Experiments in quarantine: they run and are shown, and cannot fail the night."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from airflow.sdk import Variable

from llem_airflow.operators.request import names_in

VARIABLE = "llem_quarantine"
"""The Airflow Variable that holds names or globs of experiments, separated by commas or spaces."""


def quarantine() -> tuple[str, ...]:
    """The names and globs in quarantine now."""
    return names_in(Variable.get(VARIABLE, default=""))


def matches(experiment_id: str, patterns: Sequence[str]) -> bool:
    """Whether one of them is this experiment's, with or without the hash at the end of its id."""
    names = (experiment_id, experiment_id.rpartition("-")[0])
    return any(fnmatchcase(name, pattern) for pattern in patterns for name in names)
