"""Measure model releases by their names: they become ranges of dates for Airflow's own backfill, one by one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from llem_airflow.cli.airflow_api import AirflowApi, AirflowApiError
from llem_airflow.study import Study
from llem_airflow.text.wording import counted
from llem_airflow.timetables.release_dates import release_date, releases_of

REPROCESS = ("none", "failed", "completed")
_ENDED = ("success", "failed", "skipped", "upstream_failed", "removed")
_POLL_S = 2.0
_SILENCE_S = 600.0
"""How long an API server that is restarted may be away."""

Say = Callable[[str], None]
Seen = TypeVar("Seen")


class BackfillError(RuntimeError):
    """A backfill that cannot be made as it was asked for; the text says what to do."""


def backfill(
    study: Study,
    versions: Sequence[str],
    api: AirflowApi,
    *,
    reprocess: str = "none",
    unpause: bool = False,
    say: Say = print,
    poll_s: float = _POLL_S,
) -> int:
    """Run a study on some of its releases, at most one at a time, and wait for the end.

    Args:
        study: The study; its DAG must be known to Airflow.
        versions: Names of releases; none: all of them.
        api: The Airflow.
        reprocess: Whether releases that were measured before are measured again: one of REPROCESS.
        unpause: Unpause a paused DAG instead of refusing it.
        say: Gets each line of progress.
        poll_s: Pause between two looks, in seconds.

    Returns:
        0 when each run succeeded, else 1.

    Raises:
        BackfillError: There is no such release, or the DAG cannot run it.
        AirflowApiError: Airflow refused.
    """
    ranges = ranges_of(study, versions)
    dag_id = study.dag_id
    _ready(api, dag_id, unpause=unpause)
    states: dict[str, str] = {}
    for names in ranges:
        body = _request(study, dag_id, names, reprocess)
        if wanted := _wanted(api, body, names, say):
            states |= _follow(api, dag_id, _created(api, body), wanted, say, poll_s)
    ended = ", ".join(f"{name} {state}" for name, state in states.items()) or "nothing to do"
    say(f"{counted(len(states), 'run')}: {ended}")
    return 0 if all(state == "success" for state in states.values()) else 1


def ranges_of(study: Study, versions: Sequence[str]) -> list[list[str]]:
    """The wanted releases by date, cut wherever one that is not wanted lies between them.

    Raises:
        BackfillError: The study has no releases, or none of that name.
    """
    if not study.versions:
        raise BackfillError(f"the study {study.name!r} has no `versions`: there is nothing to backfill")
    known = list(releases_of(study))
    if unknown := [name for name in versions if name not in known]:
        raise BackfillError(
            f"the study {study.name!r} has no model release {', '.join(map(repr, unknown))}; "
            f"it has: {', '.join(known)}"
        )
    ranges: list[list[str]] = [[]]
    for name in known:
        if not versions or name in versions:
            ranges[-1].append(name)
        elif ranges[-1]:
            ranges.append([])
    return [names for names in ranges if names]


def _ready(api: AirflowApi, dag_id: str, *, unpause: bool) -> None:
    try:
        dag = api.get(f"/dags/{dag_id}")
    except AirflowApiError as error:
        if error.status != 404:
            raise
        raise BackfillError(
            f"Airflow has no DAG {dag_id!r} (yet): put the study where its DAG folder finds it"
        ) from error
    if dag["is_paused"] and unpause:
        api.send("PATCH", f"/dags/{dag_id}", {"is_paused": False})
    elif dag["is_paused"]:
        raise BackfillError(
            f"the DAG {dag_id!r} is paused and its runs would wait for ever: use --unpause, "
            f"or airflow dags unpause {dag_id}"
        )


def _request(study: Study, dag_id: str, names: Sequence[str], reprocess: str) -> dict[str, Any]:
    releases = releases_of(study)
    return {
        "dag_id": dag_id,
        "from_date": release_date(releases[names[0]]).isoformat(),
        "to_date": release_date(releases[names[-1]]).isoformat(),
        "max_active_runs": 1,
        "reprocess_behavior": reprocess,
    }


def _wanted(api: AirflowApi, body: dict[str, Any], names: Sequence[str], say: Say) -> list[str]:
    """The releases of a range that Airflow would run, by its own dry run."""
    found = [str(each["partition_key"]) for each in api.send("POST", "/backfills/dry_run", body)["backfills"]]
    if strange := [name for name in found if name not in names]:
        raise BackfillError(
            f"between {body['from_date']} and {body['to_date']} Airflow knows the releases {', '.join(strange)}, "
            "and the study file does not: wait until Airflow has read the file again"
        )
    for name in names:
        if name not in found:
            say(f"{name}: has a run already, or its DAG does not know it yet (see --reprocess)")
    return found


def _created(api: AirflowApi, body: dict[str, Any]) -> int:
    """The id of a new backfill; one that Airflow could not finish making does not stay behind as active."""
    known = _active(api, body["dag_id"])
    if known:
        raise BackfillError(
            f"backfill {known[0]} of the DAG {body['dag_id']!r} is active, and Airflow has one at a time: wait for "
            f"it, or end it in the UI (by REST: PUT /api/v2/backfills/{known[0]}/cancel)"
        )
    try:
        return int(api.send("POST", "/backfills", body)["id"])
    except AirflowApiError as error:
        if error.status is None or error.status >= 500:
            for orphan in _active(api, body["dag_id"]):
                api.send("PUT", f"/backfills/{orphan}/cancel")
        raise


def _active(api: AirflowApi, dag_id: str) -> list[int]:
    found = api.get("/backfills", dag_id=dag_id, limit=100, order_by="-id")["backfills"]
    return [int(each["id"]) for each in found if each["completed_at"] is None]


def _follow(
    api: AirflowApi, dag_id: str, backfill_id: int, wanted: Sequence[str], say: Say, poll_s: float
) -> dict[str, str]:
    """Wait for the end of each run of a backfill; the state of each by its release."""

    def look() -> tuple[dict[str, str], dict[str, str], bool]:
        runs = _runs(api, dag_id, wanted)
        states = {name: str(run["state"]) for name, run in runs.items()}
        lines = {name: _progress(api, dag_id, run) for name, run in runs.items()}
        # Not when the last run ends: until Airflow has closed this backfill, it refuses the next one.
        return states, lines, api.get(f"/backfills/{backfill_id}")["completed_at"] is not None

    say(f"backfill {backfill_id} of {dag_id}: {', '.join(wanted)}. It goes on when this command is ended.")
    shown: dict[str, str] = {}
    while True:
        states, lines, over = _patiently(look, poll_s)
        for name, line in lines.items():
            if shown.get(name) != line:
                shown[name] = line
                say(f"{name}: {line}")
        if over:
            return states
        time.sleep(poll_s)


def _patiently(look: Callable[[], Seen], poll_s: float) -> Seen:
    """What is seen, also when the API server is away for a while."""
    deadline = time.monotonic() + _SILENCE_S
    while True:
        try:
            return look()
        except AirflowApiError as error:
            refused = error.status is not None and error.status < 500
            if refused or time.monotonic() > deadline:
                raise
        time.sleep(poll_s)


def _runs(api: AirflowApi, dag_id: str, wanted: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The newest backfill run of each release."""
    found = api.get(f"/dags/{dag_id}/dagRuns", run_type="backfill", order_by="-id", limit=100)["dag_runs"]
    newest = {str(run["partition_key"]): run for run in reversed(found)}
    return {name: newest[name] for name in wanted if name in newest}


def _progress(api: AirflowApi, dag_id: str, run: dict[str, Any]) -> str:
    state = str(run["state"])
    if state != "running":
        return state
    path = f"/dags/{dag_id}/dagRuns/{run['dag_run_id']}/taskInstances"
    tasks = api.get(path, limit=1)["total_entries"]
    ended = api.get(path, limit=1, state=_ENDED)["total_entries"]
    return f"running, {ended} of {counted(tasks, 'task')} ended"
