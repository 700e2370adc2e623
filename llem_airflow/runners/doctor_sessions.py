"""What the doctor says of sessions: whether the engine lets commands into containers, and what sessions have left."""

from __future__ import annotations

from typing import NamedTuple

import docker
from docker.errors import APIError

from llem_airflow.runners.attempt import LABEL_SESSION
from llem_airflow.runners.engine import LIVE_STATES

_NOBODY = "llem-doctor-asks-for-no-container"
_SWITCH = (
    "only studies with `study_execution.isolation` other than container need it: write `LLEM_SESSIONS=on` into the "
    "stack's .env, or let another proxy pass POST /containers/{id}/exec and POST /exec/{id}/start"
)


class Said(NamedTuple):
    """What is right, or what is wrong and what to do."""

    text: str
    fix: str = ""


def may_execute(api: docker.APIClient) -> Said:
    """Whether a proxy or policy in front of the engine lets pass what sessions need; nothing is executed."""
    calls = (
        lambda: api.exec_create(_NOBODY, ["true"]),
        lambda: api.exec_start(_NOBODY),
    )
    for call in calls:
        try:
            call()
        except APIError as error:
            if error.status_code != 404:  # the engine's own answer: there is no such container
                return Said(f"commands in containers are refused: {error.explanation or error}", _SWITCH)
    return Said("commands in containers pass")


def living(api: docker.APIClient) -> Said:
    """The containers of sessions: those that live, and those that ended and were not removed."""
    live: list[tuple[str, bool]] = []
    ended: list[tuple[str, bool]] = []
    for each in api.containers(all=True, filters={"label": LABEL_SESSION}):
        labels = each["Labels"]
        who = f"{labels[LABEL_SESSION]} of DAG {labels.get('llem.dag_id', '?')} ({each['Status']})"
        (live if each["State"] in LIVE_STATES else ended).append((who, "(unhealthy)" in each["Status"]))
    text = "; ".join(
        [
            f"{word}: {', '.join(who for who, _ in some)}"
            for word, some in (("live", live), ("ended", ended))
            if some
        ]
    )
    if ended:
        fix = "its run starts it again or removes it; where that run is over, `llem-airflow gc --yes`"
        return Said(text, fix)
    if any(unhealthy for _, unhealthy in live):
        return Said(
            text, "the next cycle starts its container again; `docker logs` says what its guard printed"
        )
    return Said(text or "none lives")
