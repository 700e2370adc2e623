"""``llem-airflow validate``: every mistake of every file, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import click

from llem_airflow.study.load import load_study
from llem_airflow.study.mistakes import StudyFileError


def check_files(paths: Iterable[Path], *, as_json: bool) -> int:
    """Check each file and print what is wrong; mistakes go to standard error, or as JSON to standard output.

    Returns:
        The exit code: 0 when every file is right, else 2.
    """
    files = []
    for path in paths:
        mistakes: list[dict[str, object]] = []
        notices: list[dict[str, object]] = []
        try:
            study = load_study(path)
        except StudyFileError as error:
            mistakes = [mistake.to_json() for mistake in error.mistakes]
            if not as_json:
                click.echo(str(error), err=True)
        else:
            notices = [notice.to_json() for notice in study.notices]
            if not as_json:
                click.echo(f"{path}: {len(study.experiments)} experiments, {len(study.plan.runs)} runs")
                for notice in study.notices:
                    click.echo(f"{path}: note: {notice}")
        files.append({"file": str(path), "ok": not mistakes, "mistakes": mistakes, "notices": notices})
    if as_json:
        click.echo(json.dumps({"format": 1, "files": files}, indent=1))
    return 0 if all(file["ok"] for file in files) else 2
