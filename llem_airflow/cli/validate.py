"""``llem-airflow validate``: every problem of every file, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from llem_airflow.study.load import load_study
from llem_airflow.study.plan.model import Study
from llem_airflow.study.problems import Problem, StudyFileError
from llem_airflow.study.prompts import prompt_problems
from llem_airflow.text.wording import counted


@dataclass(slots=True)
class _File:
    path: Path
    study: Study | None = None
    problems: tuple[Problem, ...] = ()

    def to_json(self) -> dict[str, Any]:
        warnings = self.study.warnings if self.study is not None and not self.problems else ()
        return {
            "file": str(self.path),
            "ok": not self.problems,
            "mistakes": [problem.to_json() for problem in self.problems],
            "notices": [warning.to_json() for warning in warnings],
        }

    def show(self) -> None:
        if self.problems:
            click.echo(str(StudyFileError(self.problems)), err=True)
        elif self.study is not None:
            click.echo(
                f"{self.path}: {counted(len(self.study.experiments), 'experiment')}, "
                f"{counted(len(self.study.plan.planned_cycles), 'cycle')}"
            )
            for warning in self.study.warnings:
                click.echo(f"{self.path}: note: {warning}")


def check_files(
    paths: Iterable[Path], refused: Callable[[Study], Iterable[Problem]], *, as_json: bool
) -> int:
    """Check each file and print what is wrong; problems go to standard error, or as JSON to standard output.

    Args:
        paths: The files.
        refused: What keeps a study that is well formed from becoming a DAG.
        as_json: Print JSON.

    Returns:
        The exit code: 0 when every file is right, else 2.
    """
    files = [_checked(path, refused) for path in paths]
    for file in files:
        file.problems += tuple(_taken(file, files))
    if as_json:
        click.echo(json.dumps({"format": 1, "files": [file.to_json() for file in files]}, indent=1))
    else:
        for file in files:
            file.show()
    return 2 if any(file.problems for file in files) else 0


def _checked(path: Path, refused: Callable[[Study], Iterable[Problem]]) -> _File:
    try:
        study = load_study(path)
    except StudyFileError as error:
        return _File(path, problems=error.problems)
    return _File(path, study, (*refused(study), *prompt_problems(study)))


def _taken(file: _File, files: Iterable[_File]) -> Iterable[Problem]:
    """Of two files of one folder that want one DAG id, only the first would be run."""
    for other in files:
        if (
            file.study is not None
            and other.study is not None
            and other.study.dag_id == file.study.dag_id
            and other.path.parent.absolute() == file.path.parent.absolute()
            and other.path.name != file.path.name
        ):
            where = ("airflow", "dag_id") if file.study.airflow.dag_id else ("study_name",)
            found = f"the DAG id {file.study.dag_id!r} is also that of {other.path}"
            yield file.study.problem(where, found, "set study_name or airflow.dag_id in one of them")
