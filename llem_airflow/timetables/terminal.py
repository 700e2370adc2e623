"""What the command ``llem-airflow backfill`` shows."""

from __future__ import annotations

import os

import click

from llem_airflow.study import Study, StudyFileError
from llem_airflow.timetables.api import AirflowApi, AirflowApiError
from llem_airflow.timetables.backfill import BackfillError, backfill


def backfill_and_show(study: Study, url: str, versions: str | None, *, reprocess: str, unpause: bool) -> int:
    """Backfill and print its progress; a refusal goes to standard error.

    Returns:
        0 when every run succeeded, 1 when one did not, 2 when the backfill could not be made.
    """
    names = [name.strip() for name in (versions or "").split(",") if name.strip()]
    try:
        api = AirflowApi(
            url,
            token=os.environ.get("AIRFLOW_TOKEN"),
            user=os.environ.get("AIRFLOW_USER"),
            password=os.environ.get("AIRFLOW_PASSWORD"),
        )
        return backfill(study, names, api, reprocess=reprocess, unpause=unpause, say=click.echo)
    except (BackfillError, AirflowApiError, StudyFileError) as error:
        click.echo(str(error), err=True)
        return 2
    except KeyboardInterrupt:
        click.echo("The backfill that was begun goes on in Airflow; later ranges of releases were not begun.")
        return 1
